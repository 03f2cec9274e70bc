"""Downloads: once for all processes, retried if that may help, refused in one line otherwise."""

import hashlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from pipeline.core.errors import PipelineError
from pipeline.net import fetch as module
from pipeline.net import fetch as transfer
from pipeline.net import store
from pipeline.net.fetch import Bounds, Pin, fetch
from tests.conftest import ROOT
from tests.servers import drip, offer, pour, reset, stall

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc"
ABD = "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"  # sha256 of "abd"
CURE = "; check the address and the network, or name a local file"
HOUR = Bounds(gigabytes=1, hours=1)
PINNED = Pin(ABC, "is {found}, not {digits}", "look again")
MD5 = Pin("900150983cd24fb0d6963f7d28e17f72", "is {found}, not {digits}", "look again", "md5")  # that of "abc"
NAMED = "0" * 64


def message_of(*arguments, bounds=HOUR, **settings):
    with pytest.raises(PipelineError) as caught:
        fetch(*arguments, bounds, **settings)
    return str(caught.value)


def stored_names(root):
    """The files of the store, without the notes of what addresses provided."""
    return sorted(path.name for path in (root / ".cache" / "store").iterdir() if not path.name.endswith(".seen.json"))


def plant(url, content, validator='"1"'):
    """What a process that was killed left of a URL."""
    with store.Partial(url) as partial:
        partial.restart(validator)
        partial.append(content)


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise TimeoutError


@pytest.fixture
def closed_port():
    """The address of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def elsewhere(root):
    """Fetch a URL in another process."""
    started = []

    def start(url, key=None):
        code = (
            "import sys; from pipeline.net.fetch import fetch; from pipeline.net.fetch import Bounds; "
            "print(fetch(sys.argv[1], Bounds(1, 1), sys.argv[2] or None).name)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, url, key or ""], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# The store


def test_a_file_is_stored_under_its_sum(root, server):
    server.answers["/a"] = [offer(b"abc")]
    path = fetch(f"{server.url}/a", HOUR)
    assert (path, path.read_bytes(), stored_names(root)) == (root / ".cache" / "store" / ABC, b"abc", [ABC])


def test_a_large_file_is_stored_whole(root, server):
    body = bytes(range(256)) * 10_000
    server.answers["/a"] = [offer(body)]
    assert fetch(f"{server.url}/a", HOUR).name == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("key", [ABC, NAMED])
def test_what_was_fetched_by_a_key_is_not_fetched_again(root, server, key):
    server.answers["/a"] = [offer(b"abc")]
    assert [fetch(f"{server.url}/a", HOUR, key).name for _ in range(2)] == [ABC, ABC]
    assert server.asked == ["/a"]


def test_without_a_key_it_is_fetched_anew(root, server):
    server.answers["/a"] = [offer(b"abc"), offer(b"abd", etag='"2"')]
    assert [fetch(f"{server.url}/a", HOUR).name for _ in range(2)] == [ABC, ABD]


@pytest.mark.parametrize("validator", [{"etag": '"7"'}, {"etag": None, "Last_Modified": "Thu, 26 Nov 2026 10:00:00 GMT"}])
def test_without_a_key_what_did_not_change_is_not_sent_again(root, server, validator):
    server.answers["/a"] = [offer(b"abc", **validator), offer(b"abc", after=pytest.fail, **validator), offer(b"abd", etag='"8"')]
    assert [fetch(f"{server.url}/a", HOUR).name for _ in range(3)] == [ABC, ABC, ABD]


def test_a_file_that_is_no_more_in_the_store_is_sent_again(root, server):
    server.answers["/a"] = [offer(b"abc")]
    fetch(f"{server.url}/a", HOUR).write_bytes(b"damaged")
    assert fetch(f"{server.url}/a", HOUR).read_bytes() == b"abc"


@pytest.mark.parametrize("note", ["[]", '{"validator": "a\\r\\nb", "sha256": "' + ABC + '"}', '{"validator": "\\"1\\"", "sha256": "../a"}'])
def test_a_note_that_this_project_did_not_write_is_not_sent(root, server, note):
    server.answers["/a"] = [offer(b"abc")]
    fetch(f"{server.url}/a", HOUR)
    (path,) = (root / ".cache/store").glob("*.seen.json")
    path.write_text(note)
    fetch(f"{server.url}/a", HOUR)
    assert {headers["If-None-Match"] for headers in server.headers} == {None}


def test_an_alias_to_another_file_than_the_pinned_one_is_not_followed(root, server):
    server.answers["/a"] = [offer(b"abd"), offer(b"abc")]
    fetch(f"{server.url}/a", HOUR, NAMED)
    assert fetch(f"{server.url}/a", HOUR, NAMED, PINNED).name == ABC


def test_a_key_that_is_the_sum_needs_no_alias(root, server):
    server.answers["/a"] = [offer(b"abc")]
    fetch(f"{server.url}/a", HOUR, ABC)
    assert stored_names(root) == [ABC]


# Sums


@pytest.mark.parametrize("digits", [ABC, ABC[:8]])
def test_a_file_as_pinned_is_stored(root, server, digits):
    server.answers["/a"] = [offer(b"abc")]
    assert fetch(f"{server.url}/a", HOUR, pin=Pin(digits, "", "")).name == ABC


def test_a_file_with_the_published_md5_is_stored_under_its_sha256(root, server):
    server.answers["/a"] = [offer(b"abc")]
    assert fetch(f"{server.url}/a", HOUR, pin=MD5).name == ABC


def test_a_file_of_another_md5_is_refused_and_not_kept(root, server):
    server.answers["/a"] = [offer(b"abd")]
    assert message_of(f"{server.url}/a", pin=MD5) == f"{server.url}/a: is 4911e516e5aa21d327512e0c8b197616, not {MD5.digits}; look again"
    assert stored_names(root) == []


def test_what_was_resumed_is_checked_by_its_md5_as_a_whole(root, server):
    plant(f"{server.url}/a", b"ab")
    server.answers["/a"] = [offer(b"abc")]
    assert fetch(f"{server.url}/a", HOUR, pin=MD5).name == ABC
    assert server.headers[-1]["Range"] == "bytes=2-"


def test_an_alias_to_a_file_of_another_md5_is_not_followed(root, server):
    server.answers["/a"] = [offer(b"abd"), offer(b"abc")]
    fetch(f"{server.url}/a", HOUR, MD5.digits)
    assert [fetch(f"{server.url}/a", HOUR, MD5.digits, MD5).name for _ in range(2)] == [ABC, ABC]
    assert len(server.asked) == 2


def test_a_file_of_another_sum_is_refused_with_the_cure_of_its_pin(root, server):
    server.answers["/a"] = [offer(b"abd")]
    assert message_of(f"{server.url}/a", pin=PINNED) == f"{server.url}/a: is {ABD}, not {ABC}; look again"


def test_a_file_of_another_sum_is_never_in_the_store(root, server):
    server.answers["/a"] = [offer(b"abd")]
    message_of(f"{server.url}/a", pin=PINNED)
    assert stored_names(root) == []


def test_a_file_of_another_sum_is_not_asked_for_again(root, server):
    server.answers["/a"] = [offer(b"abd")]
    message_of(f"{server.url}/a", pin=PINNED)
    assert server.asked == ["/a"]


def test_a_file_cut_by_a_length_that_is_too_short_is_refused(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "2"}, b"abc")]
    found = hashlib.sha256(b"ab").hexdigest()
    assert message_of(f"{server.url}/a", pin=PINNED) == f"{server.url}/a: is {found}, not {ABC}; look again"


def test_a_wrong_start_is_caught_and_all_is_asked_for_once_more(root, server):
    server.answers["/a"] = [offer(b"abc")]
    plant(f"{server.url}/a", b"xy")
    assert fetch(f"{server.url}/a", HOUR, pin=PINNED).name == ABC
    assert [headers["Range"] for headers in server.headers] == ["bytes=2-", None]


def test_a_wrong_file_that_was_resumed_is_asked_for_only_once_more(root, server):
    server.answers["/a"] = [offer(b"abd")]
    plant(f"{server.url}/a", b"xy")
    assert message_of(f"{server.url}/a", pin=PINNED) == f"{server.url}/a: is {ABD}, not {ABC}; look again"
    assert (server.asked, stored_names(root)) == (["/a"] * 2, [])


# Mirrors


def test_a_mirror_is_used_where_the_address_does_not_answer(root, server):
    server.answers["/a"], server.answers["/b"] = [(404, {}, b"")], [offer(b"abc")]
    assert fetch(f"{server.url}/a", HOUR, mirrors=(f"{server.url}/b", f"{server.url}/c")).name == ABC
    assert server.asked == ["/a", "/b"]


def test_a_mirror_is_used_where_the_sum_is_wrong(root, server):
    server.answers["/a"], server.answers["/b"] = [offer(b"abd")], [offer(b"abc")]
    assert fetch(f"{server.url}/a", HOUR, pin=PINNED, mirrors=(f"{server.url}/b",)).name == ABC


@pytest.mark.parametrize("answer", [pour, drip], ids=["too large", "too slow"])
def test_a_mirror_is_used_where_the_bounds_are_broken(root, server, answer):
    server.answers["/a"], server.answers["/b"] = [answer], [offer(b"abc")]
    bounds = Bounds(gigabytes=1e-5, hours=0.0001)
    assert fetch(f"{server.url}/a", bounds, mirrors=(f"{server.url}/b",)).name == ABC


def test_every_address_that_failed_is_named(root, server):
    server.answers["/a"], server.answers["/b"] = [(404, {}, b"")], [(410, {}, b"")]
    url = server.url
    assert message_of(f"{url}/a", mirrors=(f"{url}/b",)) == f"{url}/a: HTTP 404; {url}/b: HTTP 410{CURE}"


def test_a_wrong_sum_has_its_cure_where_a_mirror_fails_too(root, server):
    server.answers["/a"], server.answers["/b"] = [offer(b"abd")], [(404, {}, b"")]
    url = server.url
    message = message_of(f"{url}/a", mirrors=(f"{url}/b",), pin=PINNED)
    assert message == f"{url}/a: is {ABD}, not {ABC}; {url}/b: HTTP 404; look again"


# Asking again


def test_a_404_is_not_asked_for_again(root, server):
    server.answers["/a"] = [(404, {}, b"")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: HTTP 404{CURE}"
    assert server.asked == ["/a"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(root, server, status):
    server.answers["/a"] = [(status, {}, b""), offer(b"abc")]
    assert (fetch(f"{server.url}/a", HOUR).name, server.asked) == (ABC, ["/a", "/a"])


def test_a_server_in_trouble_is_asked_five_times_with_growing_pauses(root, server, sleeps):
    server.answers["/a"] = [(503, {}, b"")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: HTTP 503{CURE}"
    assert (server.asked, sleeps) == (["/a"] * 5, [1.0, 2.0, 4.0, 8.0])


def test_why_nothing_comes_is_said_meanwhile(root, server, capsys):
    server.answers["/a"] = [(503, {}, b""), offer(b"abc")]
    fetch(f"{server.url}/a", HOUR)
    assert capsys.readouterr().err == f"{server.url}/a: HTTP 503; trying again in 1 s\n"


def test_a_server_that_asks_for_patience_is_given_it(root, server, sleeps):
    server.answers["/a"] = [(429, {"Retry-After": "17"}, b""), offer(b"abc")]
    fetch(f"{server.url}/a", HOUR)
    assert sleeps == [17]


def test_a_server_is_not_waited_for_longer_than_there_is_time(root, server, sleeps):
    server.answers["/a"] = [(429, {"Retry-After": "3601"}, b"")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: HTTP 429{CURE}"
    assert sleeps == []


def test_a_server_that_breaks_off_but_advances_wins(root, server):
    body = bytes(range(20))
    server.answers["/a"] = [offer(body, stop=stop) for stop in range(1, 21)]
    assert fetch(f"{server.url}/a", HOUR).read_bytes() == body
    assert [headers["Range"] for headers in server.headers] == [None, *(f"bytes={start}-" for start in range(1, 20))]


def test_pauses_start_small_again_after_a_new_byte(root, server, sleeps):
    server.answers["/a"] = [(503, {}, b""), (503, {}, b""), offer(b"abc", stop=1), (503, {}, b""), offer(b"abc")]
    fetch(f"{server.url}/a", HOUR)
    assert sleeps == [1.0, 2.0, 0.5, 1.0]


def test_bytes_that_came_before_are_no_advance(root, server):
    server.answers["/a"] = [offer(b"abc", stop=2, etag="")]
    assert message_of(f"{server.url}/a") == f"{server.url}/a: the response ended after 2 of 3 bytes{CURE}"
    assert server.asked == ["/a"] * 6


def test_the_bytes_of_a_file_that_changed_are_an_advance(root, server):
    body = bytes(range(10))
    plant(f"{server.url}/a", b"x" * 50)
    server.answers["/a"] = [offer(body, stop=stop, etag='"2"') for stop in range(1, 11)]
    assert fetch(f"{server.url}/a", HOUR).read_bytes() == body


@pytest.mark.parametrize("after", [reset, stall])
def test_a_connection_that_breaks_is_resumed(root, server, monkeypatch, after):
    monkeypatch.setattr(transfer, "_STALL_SECONDS", 0.1)
    body = bytes(range(100)) * 1000
    server.answers["/a"] = [offer(body, stop=50_000, after=after), offer(body)]
    assert (fetch(f"{server.url}/a", HOUR).read_bytes(), len(server.asked)) == (body, 2)


def test_a_port_without_a_server_is_named(root, sleeps, closed_port, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert message_of(f"{closed_port}/a") == f"{closed_port}/a: cannot be reached{CURE}"


def test_a_server_that_hangs_up_is_named(root, server):
    server.answers["/a"] = []  # the handler dies
    assert message_of(f"{server.url}/a") == f"{server.url}/a: cannot be reached{CURE}"


# What is left


def test_what_can_be_resumed_is_left(root, server):
    server.answers["/a"] = [offer(b"abc", stop=2)]
    message_of(f"{server.url}/a")
    server.answers["/a"] = [offer(b"abc")]
    assert (fetch(f"{server.url}/a", HOUR).name, server.headers[-1]["Range"]) == (ABC, "bytes=2-")


def test_what_cannot_be_resumed_is_not_left(root, server):
    server.answers["/a"] = [offer(b"abc", stop=2, etag="")]
    message_of(f"{server.url}/a")
    assert stored_names(root) == []


def test_what_is_too_large_is_not_left(root, server):
    server.answers["/a"] = [pour]
    message_of(f"{server.url}/a", bounds=Bounds(1e-5, 1))
    assert stored_names(root) == []


def test_what_took_too_long_is_left(root, server):
    server.answers["/a"] = [drip]
    message_of(f"{server.url}/a", bounds=Bounds(1, 0.0001))
    assert [name[64:] for name in stored_names(root)] == [".json", ".partial"]


def test_the_bound_that_was_broken_is_named_with_its_setting(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "1001"}, b"")]
    assert message_of(f"{server.url}/a", bounds=Bounds(1e-6, 1, "download.limits")) == (
        f"{server.url}/a: is larger than 1e-06 gigabytes; raise download.limits.fetch_gigabytes if this is intended"
    )


# Addresses


@pytest.mark.parametrize("url", ["ftp://host/a", "file:///etc/passwd", "httpx://host/a", "a.zip", ""])
def test_only_http_and_https_are_asked(root, url):
    assert message_of(url) == f"{url}: is not an http or https address{CURE}"


def test_a_mirror_that_is_malformed_is_named(root, server):
    server.answers["/a"] = [(404, {}, b"")]
    url = f"{server.url}/a"
    assert message_of(url, mirrors=("http://[",)) == f"{url}: HTTP 404; http://[: the address or the response is malformed{CURE}"


def test_a_password_is_in_no_message(root, server, capsys):
    server.answers["/a"] = [(503, {}, b"")]
    message = message_of(f"{server.url}/a".replace("//", "//user:word@"), mirrors=("ftp://user:word@host",))
    assert message == f"{server.url}/a: HTTP 503; ftp://host: is not an http or https address{CURE}"
    assert "word" not in capsys.readouterr().err


# Several processes


def test_after_a_kill_the_rest_alone_is_asked_for(root, server, elsewhere):
    body = bytes(range(256)) * 1000
    server.answers["/a"] = [offer(body, stop=200_000, after=stall), offer(body)]
    process = elsewhere(f"{server.url}/a")
    wait_until(lambda: any(path.stat().st_size > 100_000 for path in (root / ".cache").glob("store/*.partial")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = next((root / ".cache").glob("store/*.partial")).stat().st_size
    assert fetch(f"{server.url}/a", HOUR).read_bytes() == body
    assert server.headers[1]["Range"] == f"bytes={left}-"


def test_two_processes_download_once_and_the_second_says_that_it_waits(root, server, elsewhere):
    go_on = threading.Event()
    server.answers["/a"] = [lambda handler: (go_on.wait(60), offer(b"abc")(handler))]
    url = f"{server.url}/a".replace("//", "//user:word@")
    first = elsewhere(url, NAMED)
    wait_until(lambda: server.asked)
    second = elsewhere(url, NAMED)
    assert second.stderr.readline() == f"{server.url}/a: another process is downloading it; waiting until it ends\n"
    go_on.set()
    assert [process.communicate()[0] for process in (first, second)] == [f"{ABC}\n"] * 2
    assert server.asked == ["/a"]


def test_two_runs_whose_mirrors_are_each_others_address_do_not_wait_for_ever(root, server, elsewhere):
    server.answers["/a"], server.answers["/b"] = [(404, {}, b"")], [(404, {}, b"")]
    a, b = f"{server.url}/a", f"{server.url}/b"
    with module._alone(b):
        other = threading.Thread(target=lambda: message_of(a, mirrors=(b,)))
        other.start()
        wait_until(lambda: "/a" in server.asked)
        with module._alone(a):  # free, while the other waits for b
            pass
    other.join()
    assert server.asked == ["/a", "/b"]


def test_the_lock_is_free_after_a_fault(root, server):
    server.answers["/a"] = [(404, {}, b"")]
    message_of(f"{server.url}/a")
    with module._alone(f"{server.url}/a"):
        pass
