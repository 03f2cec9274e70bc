"""One request: only missing bytes are requested, wrong parts are refused, bounds and redirects are checked."""

import errno
import gc
import gzip
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.net import fetch as transfer
from pipeline.net.fetch import Bounds, Interrupted, Refused, Session, receive
from pipeline.net.store import Partial
from tests.servers import drip, offer, pour, reset, send, stall

BODY = b"0123456789"
HOUR = Bounds(gigabytes=1, hours=1)
DATE = "Sun, 22 Nov 2026 10:00:00 GMT"
ANOTHER_PART = "the response is not the part that was requested"


def ask(url, bounds=HOUR):
    """Ask once for what is missing; the whole file."""
    with Session() as session, Partial(url) as partial:
        receive(session, url, partial, bounds, time.monotonic() + bounds.hours * 3600)
        return partial.keep().read_bytes()


def fault_of(url, bounds=HOUR, kind=Interrupted):
    """Ask once, and be told why there is no whole file."""
    with pytest.raises(kind) as caught:
        ask(url, bounds)
    return str(caught.value)


def cut_short(server, *answers, etag='"1"', **headers):
    """The URL of a file of which 4 bytes have come in; what the server answers from now on."""
    server.answers["/a"] = [offer(BODY, stop=4, etag=etag, **headers), *answers]
    fault_of(f"{server.url}/a")
    return f"{server.url}/a"


# Resuming


def test_the_rest_alone_is_asked_for(root, server):
    url = cut_short(server, offer(BODY))
    assert (ask(url), server.headers[1]["Range"], server.headers[1]["If-Range"]) == (BODY, "bytes=4-", '"1"')


def test_the_first_request_asks_for_no_part(root, server):
    server.answers["/a"] = [offer(BODY)]
    ask(f"{server.url}/a")
    assert (server.headers[0]["Range"], server.headers[0]["If-Range"]) == (None, None)


def test_a_part_whose_end_is_missing_is_resumed_too(root, server):
    url = cut_short(server, offer(BODY, stop=7), offer(BODY))
    assert fault_of(url) == "the response ended after 7 of 10 bytes"
    assert (ask(url), server.headers[2]["Range"]) == (BODY, "bytes=7-")


@pytest.mark.parametrize("etag", ["", 'W/"1"', "1", '"1"2"', f'"{"x" * 201}"', '"\x01"', '"\xe9"', '"1\r\n Evil: 1"'])
def test_without_a_strong_etag_the_date_is_the_validator(root, server, etag):
    url = cut_short(server, offer(BODY, etag=etag, Last_Modified=DATE), etag=etag, Last_Modified=DATE)
    assert (ask(url), server.headers[1]["If-Range"], server.headers[1]["Evil"]) == (BODY, DATE, None)


@pytest.mark.parametrize("date", ["yesterday", "Sun, 22 Nov 2026 10:00:00 +0000", f"{DATE}\r\n Evil: 1", "x" * 9999])
def test_without_a_validator_all_is_asked_for_again(root, server, date):
    url = cut_short(server, offer(BODY), etag="", Last_Modified=date)
    assert (ask(url), server.headers[1]["Range"]) == (BODY, None)


def test_without_a_validator_all_is_asked_for_again_in_the_same_process(root, server):
    url = f"{server.url}/a"
    server.answers["/a"] = [offer(BODY, stop=4, etag=""), offer(BODY, etag="")]
    with Session() as session, Partial(url) as partial:
        with pytest.raises(Interrupted):
            receive(session, url, partial, HOUR, time.monotonic() + 10)
        receive(session, url, partial, HOUR, time.monotonic() + 10)
        assert partial.keep().read_bytes() == BODY
    assert server.headers[1]["Range"] is None


def test_a_file_that_changed_on_the_server_is_taken_anew(root, server):
    url = cut_short(server, offer(b"other bytes", etag='"2"'))
    assert ask(url) == b"other bytes"


def test_a_server_that_ignores_the_range_is_taken_anew(root, server):
    url = cut_short(server, (200, {"Content-Length": "10", "ETag": '"1"'}, BODY))
    assert ask(url) == BODY


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Range": "bytes 3-9/10"},
        {"Content-Range": "bytes 5-9/10"},
        {"Content-Range": "bytes 4-9/4"},
        {"Content-Range": "bytes 4-x/10"},
        {"Content-Range": "lines 4-9/10"},
        {"Content-Range": "bytes 4-9/10", "ETag": '"2"'},
        {"Content-Range": "bytes 4-9/10", "Last-Modified": DATE},
        {"Content-Range": "bytes 4-9/10", "Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_another_part_than_was_asked_for_is_not_taken(root, server, headers):
    url = cut_short(server, (206, headers, BODY[4:]), offer(BODY))
    assert fault_of(url) == ANOTHER_PART
    assert (ask(url), server.headers[2]["Range"]) == (BODY, None)


def test_a_part_of_a_file_of_unknown_length_is_taken(root, server):
    url = cut_short(server, (206, {"Content-Range": "bytes 4-9/*", "ETag": '"1"'}, BODY[4:]))
    assert ask(url) == BODY


def test_a_part_that_ends_before_the_file_is_not_the_rest(root, server):
    url = cut_short(server, (206, {"Content-Range": "bytes 4-6/10", "ETag": '"1"'}, BODY[4:7]))
    assert fault_of(url) == "the response ended after 7 of 10 bytes"


def test_a_part_that_goes_beyond_the_file_is_not_the_rest(root, server):
    url = cut_short(server, (206, {"Content-Range": "bytes 4-9/10", "ETag": '"1"'}, BODY[4:] + b"and more"))
    assert fault_of(url) == "the response ended after 18 of 10 bytes"


def test_a_416_begins_again(root, server):
    url = cut_short(server, (416, {}, b""), offer(BODY))
    assert fault_of(url) == "HTTP 416"
    assert (ask(url), server.headers[2]["Range"]) == (BODY, None)


def test_a_416_where_no_part_was_asked_for_is_refused(root, server):
    server.answers["/a"] = [(416, {}, b"")]
    assert fault_of(f"{server.url}/a", kind=Refused) == "HTTP 416"


def test_what_was_resumed_is_known(root, server):
    url = cut_short(server, offer(BODY))
    with Session() as session, Partial(url) as partial:
        receive(session, url, partial, HOUR, time.monotonic() + 10)
        assert partial.resumed


def test_the_bar_starts_where_the_last_attempt_ended(root, server, monkeypatch):
    bars = []
    monkeypatch.setattr(transfer, "tqdm", lambda **settings: bars.append(settings) or tqdm(**settings))
    from tqdm import tqdm

    ask(cut_short(server, offer(BODY)))
    assert bars[1] == {"desc": "fetch", "total": 10, "initial": 4, "unit": "B", "unit_scale": True, "disable": None}


def test_a_full_disk_stays_what_it_is_and_leaves_the_bytes_before(root, server, monkeypatch):
    server.answers["/a"] = [offer(BODY, stop=4, after=lambda handler: handler.wfile.write(BODY[4:])), offer(BODY)]
    append = Partial.append

    def append_to_full_disk(partial, content):
        append(partial, content[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left on device"):
        full.setattr(Partial, "append", append_to_full_disk)
        ask(f"{server.url}/a")
    assert (ask(f"{server.url}/a"), server.headers[1]["Range"]) == (BODY, "bytes=4-")


# Bodies


def test_no_compression_is_asked_for(root, server):
    server.answers["/a"] = [offer(BODY)]
    ask(f"{server.url}/a")
    assert server.headers[0]["Accept-Encoding"] == "identity"


def compressed(stop=None):
    body = gzip.compress(BODY)
    return (200, {"Content-Length": str(len(body)), "Content-Encoding": "gzip", "ETag": '"1"'}, body[:stop])


def test_a_compressed_body_is_taken_as_what_it_means(root, server):
    server.answers["/a"] = [compressed()]
    assert ask(f"{server.url}/a") == BODY


def test_a_compressed_body_is_not_resumed(root, server):
    server.answers["/a"] = [compressed(stop=25), compressed()]
    assert fault_of(f"{server.url}/a").endswith("of an unknown number of bytes")
    assert (ask(f"{server.url}/a"), server.headers[1]["Range"]) == (BODY, None)


def test_a_compressed_body_that_is_damaged_may_come_better(root, server):
    server.answers["/a"] = [(200, {"Content-Encoding": "gzip"}, b"no gzip at all")]
    assert fault_of(f"{server.url}/a") == "the response ended after 0 of an unknown number of bytes"


def test_a_body_said_to_be_as_it_is_can_be_resumed(root, server):
    url = cut_short(server, offer(BODY, Content_Encoding="Identity"), Content_Encoding="Identity")
    assert (ask(url), server.headers[1]["Range"]) == (BODY, "bytes=4-")


@pytest.mark.parametrize("length", ["-1", "ten", "", "1e1", "٣", "10, 10", "9" * 5000])
def test_a_length_that_is_no_number_is_no_length(root, server, length):
    server.answers["/a"] = [(200, {"Content-Length": length.encode().decode("latin-1")}, BODY)]
    assert ask(f"{server.url}/a") == BODY


def chunked(body):
    """An answer in chunks, whose lengths stand in the body."""

    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        send(handler, 200, {"Transfer-Encoding": "chunked"}, body)
        handler.close_connection = True

    return answer


def test_a_chunked_body_is_put_together(root, server):
    server.answers["/a"] = [chunked(b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n")]
    assert ask(f"{server.url}/a") == BODY


def test_a_chunked_body_that_ends_early_is_not_whole(root, server):
    server.answers["/a"] = [chunked(b"4\r\n0123\r\n6\r\n45")]
    assert fault_of(f"{server.url}/a").endswith("of an unknown number of bytes")


def test_a_body_longer_than_announced_is_cut(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "4"}, BODY)]
    assert ask(f"{server.url}/a") == BODY[:4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lengths_that_differ_are_refused(root, server):
    server.answers["/a"] = [(200, {"Content-Length": "10, 11"}, BODY)]
    assert fault_of(f"{server.url}/a", kind=Refused) == "the address or the response is malformed"
    gc.collect()  # urllib3 forgets to close an answer that it refuses


def test_a_connection_that_is_reset_may_come_back(root, server):
    server.answers["/a"] = [offer(BODY, stop=4, after=reset)]
    assert fault_of(f"{server.url}/a").endswith("of 10 bytes")


def test_a_body_that_stalls_is_given_up(root, server, monkeypatch):
    monkeypatch.setattr(transfer, "_STALL_SECONDS", 0.1)
    server.answers["/a"] = [offer(BODY, stop=4, after=stall)]
    assert fault_of(f"{server.url}/a") == "no response in time"


def test_a_server_that_says_nothing_is_given_up(root, server, monkeypatch):
    monkeypatch.setattr(transfer, "_STALL_SECONDS", 0.1)
    server.answers["/a"] = [stall]
    assert fault_of(f"{server.url}/a") == "no response in time"


# Answers without the file


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410])
def test_what_another_request_would_not_change_is_refused(root, server, status):
    server.answers["/a"] = [(status, {}, b"")]
    assert fault_of(f"{server.url}/a", kind=Refused) == f"HTTP {status}"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 599])
def test_a_server_in_trouble_may_recover(root, server, status):
    server.answers["/a"] = [(status, {}, b"")]
    assert fault_of(f"{server.url}/a") == f"HTTP {status}"


def pause_of(server, retry_after):
    server.answers["/a"] = [(503, {"Retry-After": retry_after}, b"")]
    with pytest.raises(Interrupted) as caught:
        ask(f"{server.url}/a")
    return caught.value.pause_seconds


def test_a_server_says_in_seconds_how_long_to_wait(root, server):
    assert pause_of(server, "17") == 17


def test_a_server_says_by_a_date_how_long_to_wait(root, server):
    assert 90 < pause_of(server, format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)) <= 100


@pytest.mark.parametrize(
    "text",
    ["soon", "-5", "1.5", "", DATE.replace("2026", "2006"), "Sun, 99 Nov 2026 10:00:00 GMT", "Wed, 21 Oct 2015 07:28:00 +99999999999999"],
)
def test_a_wait_that_cannot_be_read_or_is_over_is_none(root, server, text):
    assert pause_of(server, text) == 0


# Bounds


@pytest.mark.parametrize("length", ["1001", "9" * 30])
def test_more_bytes_than_allowed_are_refused_before_they_come(root, server, length):
    server.answers["/a"] = [(200, {"Content-Length": length}, b"")]
    assert fault_of(f"{server.url}/a", Bounds(1e-6, 1), Refused) == "is larger than 1e-06 gigabytes"


def test_more_bytes_than_allowed_are_refused_before_the_rest_comes(root, server):
    url = cut_short(server, (206, {"Content-Range": "bytes 4-1000/1001", "ETag": '"1"'}, b""))
    assert fault_of(url, Bounds(1e-6, 1), Refused) == "is larger than 1e-06 gigabytes"


def test_as_many_bytes_as_allowed_are_taken(root, server):
    server.answers["/a"] = [offer(bytes(1000))]
    assert ask(f"{server.url}/a", Bounds(1e-6, 1)) == bytes(1000)


def test_bytes_without_end_are_refused(root, server):
    server.answers["/a"] = [pour]
    assert fault_of(f"{server.url}/a", Bounds(1e-3, 1), Refused) == "is larger than 0.001 gigabytes"


def test_a_body_that_grows_beyond_all_bounds_when_decompressed_is_refused(root, server):
    server.answers["/a"] = [(200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(3_000_000)))]
    assert fault_of(f"{server.url}/a", Bounds(1e-3, 1), Refused) == "is larger than 0.001 gigabytes"


def test_bytes_that_drip_one_by_one_do_not_outlast_the_time(root, server):
    server.answers["/a"] = [drip]
    assert fault_of(f"{server.url}/a", Bounds(1, 0.0001), Refused) == "was not complete after 0.0001 hours"


def test_a_server_that_says_nothing_does_not_outlast_the_time(root, server):
    server.answers["/a"] = [stall]
    assert fault_of(f"{server.url}/a", Bounds(1, 0.0001)) == "no response in time"


@pytest.mark.parametrize(
    ("size", "cure"),
    [(2 * 10**9, "raise download.limits.fetch_gigabytes if this is intended"), (0, "run again, or raise download.limits.fetch_hours")],
)
def test_the_setting_to_raise_is_named(size, cure):
    with pytest.raises(Refused) as caught:
        Bounds(1, 1, "download.limits").check(size, deadline=0)
    assert caught.value.cure == cure


def test_no_setting_is_named_where_there_is_none():
    with pytest.raises(Refused) as caught:
        HOUR.check(0, deadline=0)
    assert caught.value.cure == ""


# Redirects


def redirect(target):
    return (302, {"Location": target, "Content-Length": "0"}, b"")


def test_a_redirect_is_followed(root, server):
    server.answers["/a"], server.answers["/b"] = [redirect("/b")], [offer(BODY)]
    assert ask(f"{server.url}/a") == BODY


def test_a_redirect_is_followed_with_the_range(root, server):
    url = cut_short(server, redirect("/b"))
    server.answers["/b"] = [offer(BODY)]
    assert (ask(url), server.headers[2]["Range"]) == (BODY, "bytes=4-")


def test_the_body_of_a_redirect_is_not_waited_for(root, server):
    def endless(handler):
        send(handler, 302, {"Location": "/b"}, b"")
        while True:
            handler.wfile.write(bytes(1000))

    server.answers["/a"], server.answers["/b"] = [endless], [offer(BODY)]
    assert ask(f"{server.url}/a") == BODY


def test_redirects_without_end_are_refused(root, server):
    server.answers["/a"] = [redirect("/a")]
    assert fault_of(f"{server.url}/a", kind=Refused) == "redirects more than 10 times"
    assert len(server.asked) == 11


def test_https_is_not_left_for_http(root, server, tls_server):
    tls_server.answers["/a"], server.answers["/b"] = [redirect(f"{server.url}/b")], [offer(BODY)]
    assert fault_of(f"{tls_server.url}/a", kind=Refused) == "redirects to an address that is not https"
    assert server.asked == []


def test_https_is_not_left_for_http_further_on(root, server, tls_server):
    server.answers["/a"], server.answers["/c"] = [redirect(f"{tls_server.url}/b")], [offer(BODY)]
    tls_server.answers["/b"] = [redirect("/d")]
    tls_server.answers["/d"] = [redirect(f"{server.url}/c")]
    assert fault_of(f"{server.url}/a", kind=Refused) == "redirects to an address that is not https"
    assert (server.asked, tls_server.asked) == (["/a"], ["/b", "/d"])


def test_http_may_be_left_for_https(root, server, tls_server):
    server.answers["/a"], tls_server.answers["/b"] = [redirect(f"{tls_server.url}/b")], [offer(BODY)]
    assert ask(f"{server.url}/a") == BODY


@pytest.mark.parametrize("target", ["ftp://host/b", "file:///etc/passwd", "data:,x"])
def test_another_scheme_is_refused(root, server, target):
    server.answers["/a"] = [redirect(target)]
    assert fault_of(f"{server.url}/a", kind=Refused) == "redirects to an address that is not http or https"


@pytest.mark.parametrize("target", ["http://[", "/\xff"])
def test_a_redirect_to_no_address_is_refused(root, server, target):
    server.answers["/a"] = [redirect(target)]
    assert fault_of(f"{server.url}/a", kind=Refused) == "redirects to a malformed address"


def with_password(url):
    return url.replace("//", "//user:word@")


def test_a_password_goes_with_a_redirect_on_its_host(root, server):
    server.answers["/a"], server.answers["/b"] = [redirect(f"{server.url}/b")], [offer(BODY)]
    ask(f"{with_password(server.url)}/a")
    assert server.headers[1]["Authorization"] == server.headers[0]["Authorization"] == "Basic dXNlcjp3b3Jk"


def test_a_password_does_not_go_to_another_host(root, server, tls_server):
    server.answers["/a"], tls_server.answers["/b"] = [redirect(f"{tls_server.url}/b")], [offer(BODY)]
    ask(f"{with_password(server.url)}/a")
    assert tls_server.headers[0]["Authorization"] is None


# Addresses


def test_a_certificate_that_nobody_signed_is_not_asked_again(root, tls_server, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert fault_of(f"{tls_server.url}/a", kind=Refused) == "its TLS certificate is not trusted"


@pytest.mark.parametrize(
    "url", ["http://", "http://[/a", "http://.host/a", f"http://{'a' * 64}.org/a", "http://h:99999999/", "http://例:例@127.0.0.1/"]
)
def test_a_malformed_address_is_refused(root, url):
    assert fault_of(url, kind=Refused) == "the address or the response is malformed"
