"""Under pressure and at the end: a full queue, deadlines, clients that have gone, too many connections, tokens, SIGTERM."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pipeline.server.engine import Limits
from pipeline.server.listening import bind
from pipeline.server.page import page_router
from pipeline.server.uploads import Bounds
from tests.checkout import ROOT
from tests.server.running import SHORT, SMALL, drain, form, parse, picture, request, running

RED = picture()


class Held:
    """A model that answers only when it is let go, and counts the pictures that it ran."""

    def __init__(self, predictor):
        self.predictor, self.gate, self.begun, self.count = predictor, threading.Event(), threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def run(self, pixels, *others):
        self.count += len(pixels)
        self.begun.set()
        assert self.gate.wait(10)
        return self.predictor.run(pixels, *others)


@contextmanager
def held(folder, wrap=Held, **arguments):
    """A server whose model, in a `wrap`, waits; at the end it is let go."""
    with running(folder, **arguments) as server:
        predictor = wrap(server.engine.model.predictor)
        server.engine.swap(replace(server.engine.model, predictor=predictor))
        try:
            yield server, predictor
        finally:
            predictor.gate.set()


def wait_until(condition):
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


def test_a_full_queue_is_answered_with_503_and_when_to_try_again_and_what_was_accepted_is_answered(model_folder):
    with held(model_folder, limits=Limits(queue=2)) as (server, predictor), server.connect() as one, server.connect() as two:
        one.sendall(request("POST", "/predict", RED, connection="close"))
        assert predictor.begun.wait(5)
        body, kind = form(RED, RED)
        two.sendall(request("POST", "/predict", body, content_type=kind, connection="close"))
        wait_until(lambda: server.engine.depth == 2)
        status, headers, answer = server.ask("POST", "/predict", RED)
        assert (status, int(headers["retry-after"]) >= 1, "busy" in answer["error"]) == (503, True, True)
        assert server.count("pipeline_refusals_total", reason="queue") == 1
        predictor.gate.set()
        assert [parse(drain(client))[0] for client in (one, two)] == [200, 200]


def test_an_answer_that_takes_too_long_is_refused(model_folder):
    with held(model_folder, limits=Limits(deadline_seconds=0.2)) as (server, _):
        status, headers, _ = server.ask("POST", "/predict", RED)
        assert (status, headers["retry-after"]) == (503, "1")


class Decoding:
    """A decoder that ends when it is let go, and counts the pictures that it began."""

    def __init__(self, predictor):
        self.predictor, self.gate, self.count = predictor, threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def read(self, content):
        if len(content) > 1000:
            self.count += 1
            assert self.gate.wait(10)
        return self.predictor.read(content)


SLOW = RED + bytes(2000)


def test_the_deadline_is_also_that_of_the_decoder(model_folder):
    with held(model_folder, Decoding, limits=Limits(deadline_seconds=0.3)) as (server, decoder):
        started = time.monotonic()
        assert server.ask("POST", "/predict", SLOW)[0] == server.ask("POST", "/predict", SLOW)[0] == 503
        assert server.ask("POST", "/predict", RED)[0] == 503  # one thread decodes, and one picture is given to it in advance
        assert time.monotonic() - started < 4
        assert server.count("pipeline_refusals_total", reason="deadline") == 3
        decoder.gate.set()
        wait_until(lambda: server.app.state.service.decoder.busy == 0)
        assert server.ask("POST", "/predict", RED)[0] == 200


def test_the_deadline_is_also_that_of_a_map(model_folder):
    with held(model_folder, limits=Limits(deadline_seconds=0.2), routers=[page_router()]) as (server, predictor):
        assert server.ask("POST", "/explain", RED)[0] == 503
        assert server.count("pipeline_refusals_total", reason="deadline") == 1
        assert server.app.state.service.bodies.held == 0
        predictor.gate.set()
        assert server.ask("POST", "/explain", RED)[0] == 200
        assert server.count("pipeline_seconds_count", phase="explain") == 1


def test_clients_that_go_while_the_decoder_is_busy_leave_neither_bytes_nor_work(model_folder):
    with held(model_folder, Decoding, limits=Limits(queue=50)) as (server, decoder):
        for gone in range(1, 21):
            with server.connect() as client:
                client.sendall(request("POST", "/predict", SLOW + bytes(gone)))
                wait_until(lambda gone=gone: server.engine.coming == 1)
            wait_until(lambda gone=gone: server.count("pipeline_refusals_total", reason="gone") == gone)
        assert (server.app.state.service.bodies.held, server.app.state.service.decoder.busy) == (0, 2)
        decoder.gate.set()
        assert server.ask("POST", "/predict", RED)[0] == 200
        assert decoder.count == 2


def test_a_large_picture_does_not_hold_up_others(model_folder, monkeypatch):
    monkeypatch.setattr("pipeline.server.uploads._LARGE", 10_000)
    large = picture("red", (300, 300)) + bytes(2000)
    with held(model_folder, Decoding) as (server, decoder), server.connect() as one:
        one.sendall(request("POST", "/predict", large, connection="close"))
        wait_until(lambda: decoder.count == 1)
        assert server.ask("POST", "/predict", RED)[0] == 200
        decoder.gate.set()
        assert parse(drain(one))[0] == 200


def test_answers_near_the_end_close_their_connections(model_folder):
    with running(model_folder) as server:
        server.app.state.service.is_ready = False
        assert b"connection: close" in server.send(request("POST", "/predict", RED)).lower()


def test_the_picture_of_a_client_that_has_gone_is_not_run(model_folder):
    with held(model_folder) as (server, predictor), server.connect() as stays:
        stays.sendall(request("POST", "/predict", RED, connection="close"))
        assert predictor.begun.wait(5)
        with server.connect() as goes:
            goes.sendall(request("POST", "/predict", RED))
            wait_until(lambda: server.engine.depth == 1)
        wait_until(lambda: server.count("pipeline_refusals_total", reason="gone") == 1)
        predictor.gate.set()
        assert parse(drain(stays))[0] == 200
        assert server.ask("POST", "/predict", RED)[0] == 200
        assert predictor.count == 2


def test_too_many_bytes_in_memory_are_answered_with_503(model_folder):
    with running(model_folder, Bounds(body_bytes=200_000, held_bytes=250_000, body_seconds=3)) as server, server.connect() as client:
        client.sendall(request("POST", "/predict", content_length="199999") + bytes(150_000))
        wait_until(lambda: server.app.state.service.bodies.held == 150_000)
        status, headers, _ = server.ask("POST", "/predict", RED + bytes(120_000))
        assert (status, "retry-after" in headers) == (503, True)
    assert server.app.state.service.bodies.held == 0


def test_a_connection_above_the_bound_is_refused_and_there_is_room_again_when_one_ends(model_folder):
    with running(model_folder, connections=replace(SHORT, most=2, header_seconds=5)) as server:
        with server.connect(), server.connect():
            wait_until(lambda: len(server.server.server_state.connections) == 2)
            status, headers, _ = parse(server.send(b""))
            assert (status, headers["retry-after"]) == (503, "1")
        wait_until(lambda: not server.server.server_state.connections)
        assert server.ask("POST", "/predict", RED)[0] == 200


def test_with_a_token_only_live_and_ready_are_open(model_folder):
    with running(model_folder, token="ünsafe secret") as server:
        assert [server.ask("GET", path)[0] for path in ("/live", "/ready")] == [200, 200]
        right = "Bearer ünsafe secret".encode().decode("latin-1")
        for wrong in (None, "", "Bearer", "Bearer wrong", "Basic abc", "ünsafe secret", f"{right}x"):
            for method, path in (
                ("POST", "/predict"),
                ("POST", "/invocations"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("GET", "/x"),
            ):
                status, headers, answer = server.ask(method, path, RED, authorization=wrong)
                assert (status, headers["www-authenticate"]) == (401, "bearer")
                assert answer["request_id"]
        assert server.ask("POST", "/predict", RED, authorization=right)[0] == 200


def test_the_end_answers_what_was_accepted_and_ready_says_so_before(model_folder):
    with held(model_folder, connections=replace(SHORT, linger_seconds=0.5)) as (server, predictor), server.connect() as client:
        client.sendall(request("POST", "/predict", RED))
        assert predictor.begun.wait(5)
        server.server.handle_exit(signal.SIGTERM, None)
        assert server.ask("GET", "/ready")[0] == 503
        time.sleep(0.8)
        with pytest.raises(OSError):
            server.connect()
        predictor.gate.set()
        assert parse(drain(client))[0] == 200


def test_the_end_waits_for_no_answer_longer_than_stated(model_folder):
    with running(model_folder, SMALL, Limits(deadline_seconds=60), replace(SHORT, drain_seconds=0.3)) as server:
        predictor = Held(server.engine.model.predictor)
        server.engine.swap(replace(server.engine.model, predictor=predictor))
        with server.connect() as client:
            client.sendall(request("POST", "/predict", RED))
            assert predictor.begun.wait(5)
            threading.Timer(1.0, predictor.gate.set).start()
            server.server.handle_exit(signal.SIGTERM, None)
            started = time.monotonic()
            assert b" 200 " not in drain(client)
            assert time.monotonic() - started < 0.9


SERVE = "import runpy, sys; sys.argv[0] = 'pipeline'; runpy.run_module('pipeline', run_name='__main__')"


@contextmanager
def serving(model_folder, tmp_path, *arguments, code=SERVE):
    """The command in a process of its own: yields the process and the address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code, "serve", "--model", str(model_folder), "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def test_the_command_serves_without_torch_and_mlflow_and_ends_on_sigterm_with_code_0(model_folder, tmp_path):
    import requests

    modules = f"import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules)))\n{SERVE}"
    with serving(model_folder, tmp_path, code=modules) as (process, line):
        url = re.fullmatch(r"model [0-9a-f]{16} answers at (http://127\.0\.0\.1:\d+)\n", line)[1]
        assert requests.post(f"{url}/predict", data=RED, timeout=10).status_code == 200
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
    loaded = set(output.split())
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "onnx", "dvc", "timm"} == set()


def test_the_parts_of_an_answer_do_not_wait_for_each_other():
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
