"""A project's root and a web server, both for one test."""

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.data import fetch


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The project's root, and with it the store, in a folder of this test."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(folder))
    return folder


@pytest.fixture
def sleeps(monkeypatch):
    """The seconds that `fetch` would have slept between its attempts."""
    slept = []
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    return slept


@pytest.fixture
def server(monkeypatch, sleeps):
    """A server on this machine: `answers[path]` are (status, headers, body), the last one again and again; `asked` are the paths."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers, asked = defaultdict(list), []

    def answer(handler):
        asked.append(handler.path)
        waiting = answers[handler.path]
        status, headers, body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    handler_class = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": answer, "log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_class) as listening:
        listening.answers, listening.asked = answers, asked
        listening.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()
