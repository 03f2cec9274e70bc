"""Files from the network: stored by their sum, asked for again where that may help, refused in one line where not."""

import gzip
import hashlib
import socket

import pytest

from pipeline.data import fetch
from pipeline.errors import PipelineError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc"
CURE = "; check the address and the network, or name a local file"


def message_of(*arguments):
    with pytest.raises(PipelineError) as caught:
        fetch.fetch(*arguments)
    return str(caught.value)


def stored_names(root):
    return sorted(path.name for path in (root / ".cache" / "store").iterdir())


@pytest.fixture
def closed_port():
    """The address of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_file_is_stored_under_its_sum(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "3"}, b"abc")]
    path = fetch.fetch(f"{server.url}/a")
    assert (path, path.read_bytes(), stored_names(root)) == (root / ".cache" / "store" / ABC, b"abc", [ABC])


def test_a_body_of_unknown_length_is_stored(root, server):
    server.answers["/a"] = [(200, {}, b"abc")]
    assert fetch.fetch(f"{server.url}/a").name == ABC


def test_a_compressed_body_is_stored_as_what_it_means(root, server):
    body = gzip.compress(b"abc")
    server.answers["/a"] = [(200, {"Content-Length": str(len(body)), "Content-Encoding": "gzip"}, body)]
    assert fetch.fetch(f"{server.url}/a").name == ABC


def test_a_redirect_is_followed(root, server):
    server.answers["/a"] = [(302, {"Location": "/b", "Content-Length": "0"}, b"")]
    server.answers["/b"] = [(200, {"Content-Length": "3"}, b"abc")]
    assert fetch.fetch(f"{server.url}/a").name == ABC


def test_a_404_is_named(root, server):
    server.answers["/a"] = [(404, {}, b"")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: HTTP 404{CURE}"


def test_a_404_is_not_asked_for_again(root, server):
    server.answers["/a"] = [(404, {}, b"")]
    message_of(f"{server.url}/a")
    assert server.asked == ["/a"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(root, server, status):
    server.answers["/a"] = [(status, {}, b""), (200, {}, b"abc")]
    assert (fetch.fetch(f"{server.url}/a").name, server.asked) == (ABC, ["/a", "/a"])


def test_a_server_in_trouble_is_asked_three_times_and_named(root, server, sleeps):
    server.answers["/a"] = [(503, {}, b"")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: HTTP 503{CURE}"
    assert (server.asked, sleeps) == (["/a"] * 3, [0.5, 1.0])


def test_a_body_that_ends_early_is_asked_for_again(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "3"}, b"a"), (200, {"Content-Length": "3"}, b"abc")]
    assert (fetch.fetch(f"{server.url}/a").name, stored_names(root)) == (ABC, [ABC])


def test_a_body_that_always_ends_early_is_refused(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "10"}, b"12345")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: the body ended after 5 of 10 bytes{CURE}"


def test_nothing_is_left_of_a_body_that_ends_early(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "10"}, b"12345")]
    message_of(f"{server.url}/a")
    assert (server.asked, stored_names(root)) == (["/a"] * 3, [])


def test_a_mirror_is_used_where_the_address_does_not_answer(root, server):
    server.answers["/a"] = [(404, {}, b"")]
    server.answers["/b"] = [(200, {}, b"abc")]
    assert (fetch.fetch(f"{server.url}/a", (f"{server.url}/b", f"{server.url}/c")).name, server.asked) == (ABC, ["/a", "/b"])


def test_every_address_that_failed_is_named(root, server):
    server.answers["/a"], server.answers["/b"] = [(404, {}, b"")], [(410, {}, b"")]
    url = server.url
    assert message_of(f"{url}/a", (f"{url}/b",)) == f"{url}/a: HTTP 404; {url}/b: HTTP 410{CURE}"


def test_a_port_without_a_server_is_named(root, sleeps, closed_port, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert message_of(f"{closed_port}/a") == f"{closed_port}/a: cannot be reached{CURE}"


def test_a_server_that_hangs_up_is_named(root, server):
    server.answers["/a"] = []  # the handler dies
    server.handle_error = lambda *_: None
    assert message_of(f"{server.url}/a") == f"{server.url}/a: cannot be reached{CURE}"


def test_an_address_of_another_kind_is_named(root, sleeps):
    assert message_of("ftp://host/a") == f"ftp://host/a: No connection adapters were found for 'ftp://host/a'{CURE}"


def test_what_was_kept_is_found_by_its_sum(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    kept = fetch.keep(tmp_path / "a")
    assert (kept, fetch.stored(ABC)) == (root / ".cache" / "store" / ABC, kept)


def test_what_was_kept_is_moved(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    fetch.keep(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_was_never_kept_is_not_found(root):
    assert fetch.stored(ABC) is None


def test_a_damaged_stored_file_is_removed(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    fetch.keep(tmp_path / "a").write_bytes(b"abd")
    assert (fetch.stored(ABC), stored_names(root)) == (None, [])


def test_an_alias_leads_to_the_file(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    kept = fetch.keep(tmp_path / "a")
    fetch.alias("0" * 64, kept)
    assert fetch.stored("0" * 64) == kept


def test_a_forgotten_alias_leads_nowhere_and_the_file_stays(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    kept = fetch.keep(tmp_path / "a")
    fetch.alias("0" * 64, kept)
    fetch.forget("0" * 64)
    assert (fetch.stored("0" * 64), fetch.stored(ABC)) == (None, kept)


def test_an_alias_of_a_damaged_file_leads_nowhere(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    kept = fetch.keep(tmp_path / "a")
    fetch.alias("0" * 64, kept)
    kept.write_bytes(b"abd")
    assert fetch.stored("0" * 64) is None


def test_forgetting_what_is_not_there_is_no_fault(root):
    fetch.forget("0" * 64)
    assert stored_names(root) == []


def test_a_large_body_is_stored_whole(root, server):
    body = bytes(range(256)) * 10_000
    server.answers["/a"] = [(200, {"Content-Length": str(len(body))}, body)]
    assert fetch.fetch(f"{server.url}/a").name == hashlib.sha256(body).hexdigest()
