"""What tests of several rooms share: generated pictures, clones of this project, a fresh database, and no network but loopback."""

import os
import shutil
import socket
from contextlib import contextmanager

import pytest
from filelock import FileLock

from tests import checkout, projects
from tests.checkout import ROOT

HYMENOPTERA = ROOT.parent / "shared" / "data" / "hymenoptera_data.zip"


# The first of three workers makes the clone that the next three files wait for; the others begin with something else. Short files fill up
# the time of all at the end.
LONGEST_FIRST = [
    *(
        "e2e/test_teams.py",
        "e2e/test_story.py",
        "e2e/test_workflow.py",
        "e2e/test_readme.py",
        "e2e/test_mlflow_page.py",
        "stages/test_train.py",
        "test_processes.py",
    ),
    *("e2e/test_digits.py", "e2e/test_crash.py", "e2e/test_retrain.py", "e2e/test_report_page.py", "e2e/test_faults.py"),
    *("evaluation/test_coverage.py", "tracking/test_publish.py", "test_pipeline.py", "tracking/test_connection.py"),
    *("tracking/test_runs.py", "networks/test_families.py", "test_privacy.py", "commands/test_tune.py", "commands/test_advise.py"),
    *("networks/test_onnx_file.py", "stages/test_embed.py", "stages/test_split.py", "pictures/test_duplicates.py"),
]
# Tests of the rooms whose coverage is measured. Elsewhere nothing is traced, which would cost half as much time again.
MEASURED = ("net/", "sources/", "pictures/", "stages/test_download", "stages/test_split", "stages/test_hostile", "training/test_checkpoint")


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that no worker is left with one at the end."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(name_of(item), len(order)))


def name_of(item):
    """The path of a test's file below tests/."""
    return item.path.relative_to(ROOT / "tests").as_posix()


@contextmanager
def unmeasured(config):
    """Pause the measurement of coverage, if there is one."""
    plugin = config.pluginmanager.getplugin("_cov")
    controller = plugin and plugin.cov_controller
    if not (controller and controller.started):
        yield
        return
    controller.pause()
    try:
        yield
    finally:
        controller.resume()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Import the tests unmeasured: xdist's controller, which imports this file alone, has seen every module being imported."""
    with unmeasured(session.config):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Measure coverage by the tests of the measured rooms."""
    if name_of(item).startswith(MEASURED):
        return (yield)
    with unmeasured(item.config):
        return (yield)


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
def once(tmp_path_factory):
    """Fill a folder once for all workers: `once(name, fill)` returns the folder and the text that `fill(folder)` returned."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def fill_once(name, fill):
        folder, printed = shared / name, shared / f"{name}.txt"
        with FileLock(shared / f"{name}.lock"):
            if not printed.exists():
                shutil.rmtree(folder, ignore_errors=True)
                printed.write_text(fill(folder))
        return folder, printed.read_text()

    return fill_once


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
def fresh_database(once):
    """A database made as the first process of a project makes it."""
    from pipeline.tracking import connection

    def create(folder):
        folder.mkdir()
        with pytest.MonkeyPatch.context() as monkeypatch:
            projects.enter(folder, monkeypatch)
            connection._create_database(folder / "mlflow.db")
        return ""

    return (once("fresh_database", create)[0] / "mlflow.db").read_bytes()


@pytest.fixture(scope="session")
def small_project(once, fresh_database):
    """A folder in which every stage before `train` has run, with an empty database. Copy it: it is shared."""

    def make(folder):
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(fresh_database)
        with pytest.MonkeyPatch.context() as monkeypatch:
            projects.enter(folder, monkeypatch)
            projects.make_project(folder)
        return ""

    return once("small_project", make)[0]


@pytest.fixture
def in_small_project(small_project, tmp_path, monkeypatch):
    """A copy of the small project, which is the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(small_project, folder)
    projects.enter(folder, monkeypatch)
    return folder
