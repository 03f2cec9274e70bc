"""A real server in a thread, and clients that speak to it byte by byte."""

import io
import json
import socket
import threading
import time
from contextlib import contextmanager

from PIL import Image

from pipeline.server.app import Settings, create_app
from pipeline.server.engine import Engine, Limits, load_served
from pipeline.server.listening import Connections, bind, make_server
from pipeline.server.uploads import Bounds

SHORT = Connections(header_seconds=0.5, idle_seconds=1, write_seconds=0.5, linger_seconds=0.0, drain_seconds=5.0)
SMALL = Bounds(body_bytes=200_000, pictures=8, pixels=1_000_000, body_seconds=0.5, held_bytes=1_000_000)


@contextmanager
def running(folder, bounds=SMALL, limits=None, connections=SHORT, token=None, host_names=None, **parts):
    """Serve the model of a folder; yields a `Running`. `parts`: arguments of `create_app`."""
    engine = Engine(load_served("small", folder, 1, "7"), limits or Limits(runners=1))
    app = create_app(engine, Settings(bounds, token, decoders=1, host_names=host_names), **parts)
    with bind("127.0.0.1", 0) as listening:
        server = make_server(app, connections)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        try:
            yield Running(listening.getsockname()[1], app, engine, server)
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


class Running:
    """A running server: its port, its application, its engine."""

    def __init__(self, port, app, engine, server):
        self.port, self.app, self.engine, self.server = port, app, engine, server
        self.metrics = app.state.service.metrics

    def connect(self, seconds=5):
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    def send(self, content, seconds=5, half_close=False):
        """All bytes that the server sends in answer to these, until it closes the connection. Fails if it does not in time."""
        with self.connect(seconds) as client:
            try:
                client.sendall(content)
                if half_close:
                    client.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return drain(client)

    def ask(self, method, path, body=b"", **headers):
        """Status, headers and JSON of a whole request."""
        answer = self.send(request(method, path, body, connection="close", **headers))
        return parse(answer)

    def count(self, name, **labels):
        """A figure of /metrics, 0 if it is not there."""
        return self.metrics.registry.get_sample_value(name, labels) or 0


def drain(client):
    chunks = []
    try:
        while chunk := client.recv(65536):
            chunks.append(chunk)
    except ConnectionError:
        pass
    return b"".join(chunks)


def request(method, path, body=b"", **headers):
    """The bytes of a request; a header is named as a keyword."""
    lines = {"host": "x", **({"content_length": str(len(body))} if body or method == "POST" else {})}
    lines |= {name.lower(): value for name, value in headers.items()}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def parse(answer):
    """Status, headers and JSON, or text, of the first answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    content = body[: int(headers.get("content-length", len(body)))]
    return int(first.split()[1]), headers, json.loads(content) if "json" in headers.get("content-type", "") else content.decode()


def picture(colour="red", size=(12, 12), form="PNG"):
    """The bytes of a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def form(*contents, names=None, boundary="b"):
    """A multipart form: its body and its content type."""
    names = names or [f"{number}.png" for number in range(len(contents))]
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in zip(names, contents, strict=True)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
