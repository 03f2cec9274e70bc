"""A web server on this machine, and the ways in which it answers, well or badly; the fixtures of tests that download."""

import logging
import socket
import ssl
import struct
import threading
from collections import defaultdict
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address

import pytest
import requests

from pipeline.net import fetch


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The project's root, and so the store, in a folder of this test."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(folder))
    return folder


@pytest.fixture
def sleeps(monkeypatch):
    """The seconds that `fetch` would have slept between attempts. It does not sleep."""
    slept = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    return slept


@pytest.fixture
def server(monkeypatch, sleeps):
    """A server on this machine. `answers[path]`: sent in turn, the last one repeatedly; `asked`: the requested paths, `headers`: theirs.

    An answer is (status, headers, body), or a function of the handler.
    """
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as listening:
        yield listening


@pytest.fixture
def tls_server(monkeypatch, sleeps, tmp_path):
    """The same server over TLS, with a trusted certificate."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    certificate = write_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as listening:
        yield listening


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints every request
    listening = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    listening.start()
    host, port = listening.get_host_and_port()
    yield f"http://{host}:{port}"
    listening.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The file system of that server, with an empty bucket `pictures`; credentials and endpoint are where AWS's tools look for them."""
    import s3fs

    settings = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    requests.post(f"{s3_server}/moto-api/reset", timeout=10)
    filesystem = s3fs.S3FileSystem()  # one for all tests, since making a client takes half a second
    filesystem.invalidate_cache()
    filesystem.mkdir("pictures")
    return filesystem


@contextmanager
def serving(context=None):
    """A server during the block, over TLS if there is a context."""
    answers, asked, headers = defaultdict(list), [], []

    def answer(handler):
        asked.append(handler.path)
        headers.append(handler.headers)
        waiting = answers[handler.path]
        chosen = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        chosen(handler) if callable(chosen) else send(handler, *chosen)

    handler_class = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": answer, "log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_class) as listening:
        listening.answers, listening.asked, listening.headers = answers, asked, headers
        listening.handle_error = lambda *_: None  # a client may hang up, a handler may die
        if context:
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        listening.url = f"http{'s' * bool(context)}://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listening
        finally:
            listening.shutdown()
            thread.join()


def send(handler, status, headers, body):
    """Send a whole answer."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def offer(body, stop=None, etag='"1"', after=lambda handler: None, **headers):
    """Answer as a file server does, with a part if one is requested. Before the byte `stop`, call `after` and hang up."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | ({"ETag": etag} if etag else {})

    def answer(handler):
        if {handler.headers["If-None-Match"], handler.headers["If-Modified-Since"]} & set(headers.values()):
            send(handler, 304, headers, b"")
            return
        first = int(handler.headers["Range"][len("bytes=") : -1]) if handler.headers["If-Range"] in headers.values() else 0
        part = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        length = {"Content-Length": str(len(body) - first)}
        send(handler, 206 if first else 200, {**length, **part, **headers}, body[first:stop])
        handler.wfile.flush()
        after(handler)

    return answer


def reset(handler):
    """Reset the connection, as a crashing machine does."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()


def stall(handler):
    """Send nothing more until the client hangs up."""
    handler.connection.settimeout(10)
    handler.connection.recv(1)


def drip(handler):
    """Send bytes one by one until the client hangs up."""
    send(handler, 200, {"ETag": '"1"'}, b"")
    while not threading.Event().wait(0.01):
        handler.wfile.write(b"x")


def pour(handler):
    """Send bytes endlessly."""
    send(handler, 200, {"ETag": '"1"'}, b"")
    while True:
        handler.wfile.write(bytes(1000))


def write_certificate(folder):
    """A certificate of this machine and its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(key.private_bytes(*form) + certificate.public_bytes(serialization.Encoding.PEM))
    return path
