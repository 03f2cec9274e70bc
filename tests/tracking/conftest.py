"""What the tests of this room share: a project around a fresh database, and servers on this machine that are no help."""

import socket
import threading
from contextlib import contextmanager

import pytest

from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def this_checkout_first(monkeypatch):
    """Processes that a test starts import from here, also after MLflow put the code of a loaded model first on the path."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def project(tmp_path, monkeypatch, fresh_database):
    """A project's root with a fresh database. What threads are still at work at the end of a test have ended before the next."""
    (tmp_path / "mlflow.db").write_bytes(fresh_database)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield tmp_path
    for thread in threading.enumerate():
        if thread.name == "live log":
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def use_server(project, monkeypatch):
    """`with use_server(answer):` MLflow is to be at a server that sends `answer` to every request, or hangs where it is None."""

    @contextmanager
    def use(answer):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
            connections = []
            thread = threading.Thread(target=_accept, args=(listening, connections, answer))
            thread.start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join()
                for each in connections:
                    each.close()

    return use


def _accept(listening, connections, answer):
    while True:
        try:
            connected, _ = listening.accept()
        except OSError:  # it was shut down
            return
        connections.append(connected)
        if answer is not None:
            connected.recv(65536)
            connected.sendall(answer)
            connected.shutdown(socket.SHUT_RDWR)
