"""What tests of several rooms share: generated pictures, clones of this project, a fresh database, and no network but loopback."""

import shutil
import socket

import pytest

from tests import checkout, projects
from tests.checkout import ROOT

HYMENOPTERA = ROOT.parent / "shared" / "data" / "hymenoptera_data.zip"


LONGEST_FIRST = ["test_readme.py", "test_digits.py", "test_crash.py", "test_retrain.py"]  # the rest fills up the time of both workers


def pytest_collection_modifyitems(items):
    """Run whole pipelines first, so that neither worker is left with one at the end."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is None, order.get(item.path.name, len(order))))


@pytest.fixture(autouse=True)
def no_network_but_loopback(monkeypatch):
    """Connections to any other machine fail at once."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test reached for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def make_pictures():
    """Write `count` pictures per class into a folder."""
    return checkout.make_pictures


@pytest.fixture(scope="session")
def type_in():
    """Run a command in a clone and return its stdout; its exit code must be `code`."""
    return checkout.type_in


@pytest.fixture(scope="session")
def clone():
    """Copy the files of this checkout that git does not ignore, as they are now, into a new repository."""
    return checkout.clone


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    """A database made as the first process of a project makes it."""
    from pipeline.tracking import connection

    folder = tmp_path_factory.mktemp("fresh")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DVC_ROOT", str(folder))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connection._create_database(folder / "mlflow.db")
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture(scope="session")
def small_project(tmp_path_factory, fresh_database):
    """A folder in which every stage before `train` has run, with an empty database. Copy it: it is shared."""
    folder = tmp_path_factory.mktemp("small") / "project"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(fresh_database)
    with pytest.MonkeyPatch.context() as monkeypatch:
        projects.enter(folder, monkeypatch)
        projects.make_project(folder)
    return folder


@pytest.fixture
def in_small_project(small_project, tmp_path, monkeypatch):
    """A copy of the small project, which is the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(small_project, folder)
    projects.enter(folder, monkeypatch)
    return folder
