"""Hostile and broken requests: each is refused with 4xx, or its connection is closed in time, and the server then answers as before."""

import json
import socket
import struct
import time
import zlib

import pytest

from tests.server.running import form, parse, picture, request, running

RED = picture()
FORM = "multipart/form-data; boundary=b"
IN_TIME = 4  # seconds; the limits of the server are half a second


@pytest.fixture(scope="module")
def server(model_folder):
    with running(model_folder) as listening:
        yield listening


@pytest.fixture(autouse=True)
def answers_afterwards(server):
    """After each case a picture is answered, quickly, and nothing of the case is left."""
    yield
    started = time.monotonic()
    assert server.ask("POST", "/predict", RED)[0] == 200
    assert time.monotonic() - started < 2
    until = time.monotonic() + IN_TIME
    while (server.app.state.service.bodies.held or server.engine.coming or server.engine.depth) and time.monotonic() < until:
        time.sleep(0.005)
    assert (server.app.state.service.bodies.held, server.engine.coming, server.engine.depth) == (0, 0, 0)


def png(width, height, data=b"", extra=b"", mode=2):
    """A PNG that claims a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ztxt(size):
    """A chunk of text that grows when it is unpacked."""
    content = b"a\0\0" + zlib.compress(bytes(size), 9)
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


def gif(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\x02\x02D\x01\0;"
    )


BODIES = {
    "an empty body": b"",
    "one byte": b"\0",
    "text": b"hello",
    "html": b"<html><script>alert(1)</script>",
    "an svg that names a file": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94.",
    "a path": b"/etc/passwd",
    "an address": b"http://169.254.169.254/latest/meta-data",
    "an elf": b"\x7fELF" + bytes(200),
    "a zip": b"PK\x03\x04" + bytes(200),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "a pdf": b"%PDF-1.7\n",
    "a png cut short": RED[:-30],
    "a png without pixels": png(12, 12),
    "a png of a billion pixels": png(40_000, 40_000),
    "a png larger than any": png(2**31 - 1, 2**31 - 1),
    "a png of no size": png(0, 0),
    "a png above the bound": png(2000, 2000, zlib.compress(bytes(2000 * 6001), 9)),
    "a png of text that unpacks": png(4, 4, b"", ztxt(80_000_000)),
    "a gif of many pixels": gif(65535, 65535),
    "a jpeg cut short": picture("red", (300, 300), "JPEG")[:200],
    "a jpeg that is only its start": b"\xff\xd8\xff\xe0",
    "a bmp of negative size": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0),
    "a tiff that points at itself": b"II*\0\x08\0\0\0" + b"\x01\0\0\x01\x03\0\x01\0\0\0\x01\0\0\0\x08\0\0\0",
    "a webp of nothing": b"RIFF\x04\0\0\0WEBP",
    "a ppm without an end": b"P6 99999 99999 255\n",
    "bytes that are nothing": bytes(range(256)) * 100,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_picture_is_refused(server, name):
    status, _, answer = server.ask("POST", "/predict", BODIES[name])
    assert status in (400, 422)
    assert_sentence(answer)


def assert_sentence(answer):
    """An error in one line, without a trace, a path or an object's address."""
    assert isinstance(answer["error"], str)
    assert not any(text in answer["error"] for text in ("\n", "Traceback", 'File "', "/work", "0x", "<script"))


def a_part(headers, content=RED):
    return b"--b\r\n" + headers + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


DISPOSITION = b'Content-Disposition: form-data; name="picture"'
FORMS = {
    "no boundary": (RED, "multipart/form-data"),
    "an empty boundary": (RED, "multipart/form-data; boundary="),
    "a boundary that is not in the body": (RED, FORM),
    "a very long boundary": (RED, f"multipart/form-data; boundary={'b' * 5000}"),
    "a boundary of unicode": (RED, "multipart/form-data; boundary=\xff\xfe"),
    "no part": (b"--b--\r\n", FORM),
    "an empty part": (a_part(DISPOSITION, b""), FORM),
    "no last boundary": (a_part(DISPOSITION)[:-8], FORM),
    "more parts than allowed": form(*[RED] * 9),
    "many empty parts": form(*[b""] * 2000),
    "a header without an end": (b"--b\r\nContent-Disposition: " + b"a" * 50_000, FORM),
    "a header that is none": (b"--b\r\n\0\0\0\r\n\r\nx\r\n--b--\r\n", FORM),
    "a form within a form": (a_part(b"Content-Type: multipart/mixed; boundary=c", b"--c\r\n\r\n" + RED + b"\r\n--c--"), FORM),
    "an empty form": (b"", FORM),
    "only line breaks": (b"\r\n" * 20_000, FORM),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_form_is_refused(server, name):
    body, kind = FORMS[name]
    status, _, answer = server.ask("POST", "/predict", body, content_type=kind)
    assert status in (400, 413, 415, 422)
    assert_sentence(answer)


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b.png",
    "<script>alert(1)</script>",
    "%2e%2e%2f",
    "🐜" * 100,
    "CON",
    "a" * 9000,
    "file:///etc/passwd",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_is_neither_opened_nor_echoed(server, name):
    body, kind = form(b"no picture", names=[name])
    status, headers, answer = server.ask("POST", "/predict", body, content_type=kind)
    assert status in (400, 422)
    assert name not in json.dumps(answer, ensure_ascii=False) + str(headers)


JSON = "application/json"
INVOCATIONS = {
    "no json": (b"{", JSON),
    "deep json": (b"[" * 90_000, JSON),
    "deep objects": (b'{"a":' * 30_000, JSON),
    "many small values": (b'{"dataframe_records": [' + b"[]," * 60_000 + b"[]]}", JSON),
    "a list": (b"[]", JSON),
    "NaN": (b'{"dataframe_records": NaN}', JSON),
    "infinity in a cell": (b'{"dataframe_records": [{"picture": Infinity}]}', JSON),
    "a number of many digits": (b'{"dataframe_records": ' + b"9" * 50_000 + b"}", JSON),
    "two forms": (b'{"dataframe_records": [], "dataframe_split": {}}', JSON),
    "no column": (b'{"dataframe_split": {"columns": ["x"], "data": [["YQ=="]]}}', JSON),
    "a row that is too short": (b'{"dataframe_split": {"columns": ["x", "picture"], "data": [["YQ=="]]}}', JSON),
    "columns that are no list": (b'{"dataframe_split": {"columns": 7, "data": []}}', JSON),
    "a cell that is a number": (b'{"dataframe_records": [{"picture": 7}]}', JSON),
    "a cell that is an object": (b'{"dataframe_records": [{"picture": {"a": 1}}]}', JSON),
    "half of base64": (b'{"dataframe_records": [{"picture": "abc"}]}', JSON),
    "a lone surrogate": (b'{"dataframe_records": [{"picture": "\\ud800"}]}', JSON),
    "a path in place of a picture": (b'{"dataframe_records": [{"picture": "/etc/passwd!"}]}', JSON),
    "more rows than allowed": (json.dumps({"dataframe_records": [{"picture": "YQ=="}] * 9}).encode(), JSON),
    "another encoding": ('{"dataframe_records": []}'.encode("utf-16"), JSON),
    "another charset": (b"{}", "application/json; charset=latin-1"),
    "csv": (b"picture\n/etc/passwd\n", "text/csv"),
    "xml": (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "application/xml"),
    "no type": (b"{}", None),
}


@pytest.mark.parametrize("name", INVOCATIONS)
def test_a_wrong_request_to_invocations_is_refused_as_mlflow_refuses(server, name):
    body, kind = INVOCATIONS[name]
    status, _, answer = server.ask("POST", "/invocations", body, content_type=kind)
    assert status in (400, 413, 415)
    assert_sentence(answer)
    assert answer["message"] == answer["error"]


def chunk(content):
    return b"%x\r\n%s\r\n" % (len(content), content)


CHUNKED = request("POST", "/predict", transfer_encoding="chunked", content_length=None)
# The status of the answer; 0: the connection is closed without one, because the application waits for the body.
RAW = {
    "not http": (400, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(60)),
    "http/0.9": (405, b"GET /predict\r\n\r\n"),
    "http/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a method that does not exist": (400, b"HACK / HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a line without an end": (431, b"GET /" + b"a" * 30_000),
    "a long address": (431, b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"),
    "one huge header": (431, b"GET /live HTTP/1.1\r\nhost: x\r\na: " + b"a" * 60_000 + b"\r\n\r\n"),
    "many headers": (431, b"GET /live HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n"),
    "nul in a header": (400, b"GET /live HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n"),
    "a folded header": (400, b"GET /live HTTP/1.1\r\nhost: x\r\na: b\r\n c: d\r\n\r\n"),
    "a header without a colon": (400, b"GET /live HTTP/1.1\r\nhost x\r\n\r\n"),
    "a negative length": (400, request("POST", "/predict", content_length="-5")),
    "a length of letters": (400, request("POST", "/predict", content_length="many")),
    "a length that overflows": (400, request("POST", "/predict", content_length="9" * 30)),
    "two lengths": (400, b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabc"),
    "a length and chunks": (400, request("POST", "/predict", RED, transfer_encoding="chunked")),
    "a length above the bound": (413, request("POST", "/predict", content_length="100000000") + RED),
    "a length that is too large, and silence": (408, request("POST", "/predict", content_length="500") + RED),
    "chunks of a wrong size": (0, CHUNKED + b"zz\r\nabc\r\n"),
    "a chunk of enormous size": (408, CHUNKED + b"ffffffffffffffff\r\nabc"),
    "chunks above the bound": (413, CHUNKED + chunk(bytes(50_000)) * 5 + b"0\r\n\r\n"),
    "chunks without an end": (408, CHUNKED + chunk(RED)),
    "a body that is compressed": (415, request("POST", "/predict", zlib.compress(RED), content_encoding="gzip")),
    "a transfer that is compressed": (0, request("POST", "/predict", transfer_encoding="gzip", content_length=None)),
    "silence": (408, b""),
    "half a request line": (408, b"POST /pred"),
    "half of the headers": (408, b"POST /predict HTTP/1.1\r\nhost: x\r\n"),
    "only line breaks": (408, b"\r\n" * 1000),
    "a path upwards": (404, request("GET", "/../../etc/passwd", connection="close")),
    "an encoded path upwards": (404, request("GET", "/%2e%2e/%2e%2e/etc/passwd", connection="close")),
    "an encoded nul": (404, request("GET", "/predict%00.png", connection="close")),
    "bytes that are no unicode": (404, request("GET", "/%ff%fe", connection="close")),
    "a whole address": (404, request("GET", "http://example.org/", connection="close")),
    "a tunnel": (400, b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n"),
    "trace": (405, request("TRACE", "/predict", connection="close")),
    "the wrong method": (405, request("GET", "/predict", connection="close")),
    "no host": (400, b"GET /live HTTP/1.1\r\nconnection: close\r\n\r\n"),
    "two hosts": (400, b"GET /live HTTP/1.1\r\nhost: x\r\nhost: y\r\nconnection: close\r\n\r\n"),
    "a form of a foreign page": (403, request("POST", "/predict", *form(RED)[:1], content_type=FORM, origin="http://evil.example")),
    "a page without an origin": (403, request("POST", "/predict", RED, origin="null")),
    "a script of a foreign page": (403, request("POST", "/predict", RED, sec_fetch_site="cross-site", origin="http://x")),
    "a web socket": (405, request("GET", "/predict", connection="upgrade", upgrade="websocket", sec_websocket_key="x")),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_bytes_are_refused_or_their_connection_is_closed_in_time(server, name):
    status, content = RAW[name]
    started = time.monotonic()
    answer = server.send(content, seconds=IN_TIME)
    assert time.monotonic() - started < IN_TIME
    if status:
        found, _, facts = parse(answer)
        assert found == status
        assert_sentence(facts)
    else:
        assert answer == b""


@pytest.mark.parametrize("name", ["headers", "body", "chunks", "line breaks"])
def test_a_client_that_drips_is_cut_off_in_time(server, name):
    begin, drop = {
        "headers": (b"GET /live HTTP/1.1\r\n", b"a: b\r\n"),
        "body": (request("POST", "/predict", content_length="100000"), b"a"),
        "chunks": (CHUNKED, chunk(b"a")),
        "line breaks": (b"", b"\r\n"),
    }[name]
    started = time.monotonic()
    with server.connect(IN_TIME) as client:
        client.sendall(begin)
        try:
            while time.monotonic() - started < IN_TIME:
                client.sendall(drop)
                time.sleep(0.02)
        except OSError:
            pass
    assert time.monotonic() - started < IN_TIME


def test_chunks_for_ever_are_cut_off_and_the_client_reads_why(server):
    with server.connect(IN_TIME) as client:
        client.sendall(CHUNKED)
        client.settimeout(IN_TIME)
        try:
            until = time.monotonic() + IN_TIME
            while time.monotonic() < until:
                client.sendall(chunk(bytes(10_000)))
        except OSError:
            pass
        else:
            pytest.fail("the server reads for ever")
    assert server.count("pipeline_refusals_total", reason="bytes") > 0


@pytest.mark.parametrize("begin", [b"5;a=", b"5\r\nabcde\r\n0\r\na: "], ids=["extension", "trailer"])
def test_what_a_chunk_has_beside_its_bytes_has_the_bound_of_headers(server, begin):
    sent = 0
    with server.connect(IN_TIME) as client:
        client.sendall(CHUNKED + begin)
        try:
            while sent < 50_000_000:
                sent += client.send(bytes(10_000).replace(b"\0", b"a"))
        except OSError:
            pass
    assert sent < 20_000_000  # what the buffers of the system take; the time for a body would allow hundreds of megabytes


def test_trailers_are_ignored(server):
    body = chunk(RED) + b"0\r\nContent-Type: text/plain\r\nHost: y\r\n\r\n"
    answers = server.send(CHUNKED + body + request("GET", "/live", connection="close"), IN_TIME)
    assert answers.count(b"HTTP/1.1 200") == 2


def test_a_body_above_the_bound_is_refused_with_a_sentence_that_the_client_can_read(server):
    answer = server.send(request("POST", "/predict", bytes(300_000)), IN_TIME)
    assert parse(answer)[0] == 413


@pytest.mark.parametrize("content", [request("POST", "/predict", RED), request("POST", "/predict", RED)[:-30], b"GET /li"])
def test_a_connection_that_is_half_closed_is_ended(server, content):
    answer = server.send(content, IN_TIME, half_close=True)
    assert not answer or parse(answer)[0] in (200, 400, 408)


def test_pipelined_requests_are_answered_in_order_and_a_broken_one_ends_the_connection(server):
    good = request("POST", "/predict", RED)
    answers = server.send(good * 50 + request("POST", "/predict", b"x", connection="close") + good, IN_TIME)
    assert (answers.count(b"HTTP/1.1 200"), answers.count(b"HTTP/1.1 422")) == (50, 1)


@pytest.mark.parametrize("bad", [b"\0nothing\r\n\r\n", b"GET /live HTTP/1.1\r\nno colon\r\n\r\n", b"GET /" + b"a" * 30_000])
def test_whole_requests_before_one_that_is_not_http_are_answered(server, bad):
    answers = server.send(request("POST", "/predict", RED) * 3 + bad + request("POST", "/predict", RED), IN_TIME)
    assert answers.count(b"HTTP/1.1 200") == answers.count(b"HTTP/1.1") == 3


def test_a_client_that_sends_many_requests_before_it_reads_is_answered_64_and_one(server):
    answers = server.send(request("GET", "/live") * 5000, IN_TIME)
    assert answers.count(b"HTTP/1.1 200") == 65


def test_a_wish_for_another_protocol_is_ignored(server):
    wish = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABk"}  # as Java's client sends it
    answers = server.send(request("POST", "/predict", RED, **wish) + request("GET", "/live", connection="close"), IN_TIME)
    assert answers.count(b"HTTP/1.1 200") == 2


def test_a_client_that_reads_nothing_is_cut_off(server, monkeypatch):
    monkeypatch.setattr("pipeline.server.listening._PIPELINED", 1000)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(request("GET", "/openapi.json") * 1000)
        until = time.monotonic() + IN_TIME
        while not any(each.flow.write_paused for each in connections(server)) and time.monotonic() < until:
            time.sleep(0.01)
        assert [each.flow.write_paused for each in connections(server)] == [True]
        wait_for_nobody(server)


def connections(server):
    return list(server.server.server_state.connections)


def wait_for_nobody(server):
    """Wait until no connection is open, which must be in time."""
    until = time.monotonic() + IN_TIME
    while connections(server) and time.monotonic() < until:
        time.sleep(0.01)
    assert connections(server) == []


def test_clients_that_close_at_once_leave_nothing_behind(server):
    for size in (0, 10, 80, 200):
        for _ in range(10):
            with server.connect() as client:
                client.sendall(request("POST", "/predict", RED)[:size])
    wait_for_nobody(server)


def test_a_header_of_the_answer_cannot_be_injected(server):
    _, headers, _ = server.ask("POST", "/predict", RED, X_Request_ID="a%0d%0aSet-Cookie:b")
    assert "set-cookie" not in headers


HOSTS = {
    "127.0.0.1:8000": 200,
    "[::1]:8000": 200,
    "192.168.0.7": 200,
    "LocalHost:1": 200,
    "pictures.example": 200,
    "evil.example:8000": 421,
    "127.0.0.1.evil.example": 421,
    "localhost.evil.example": 421,
    "[evil.example]": 421,
    "": 421,
}


def test_a_name_that_a_foreign_page_lets_point_here_is_refused(model_folder):
    with running(model_folder, host_names=frozenset({"pictures.example"})) as server:
        assert {host: server.ask("GET", "/metadata", host=host)[0] for host in HOSTS} == HOSTS
        own = {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}
        assert server.ask("POST", "/predict", RED, **own)[0] == 200
        assert server.ask("POST", "/predict", RED, sec_fetch_site="same-origin", origin="https://proxy.example", host="127.0.0.1")[0] == 200
        assert server.send(b"GET /live HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
