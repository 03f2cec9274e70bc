"""Machines that publish equal bytes to one MLflow at the same time leave one run and one logged model, whoever dies in between."""

import os
import random
import shutil
import signal
import threading
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipeline.core.errors import PipelineError
from pipeline.networks.artifact import read_facts
from pipeline.tracking import connection, runs
from pipeline.tracking import publish as publishing
from pipeline.tracking.connection import EXPERIMENT, connect, copy_id, tracking_uri
from pipeline.tracking.registry import Registration, update_registry
from tests.tracking.test_publish import WHOLE, WRITES, Server, by_id, files, publish, state, the_run, write_scores  # noqa: F401 - a fixture
from tests.tracking.test_registry import keep, mlflow_server
from tests.tracking.test_runs import FACTS, FORKING, SHA256, train_live

# The decision, with an MLflow in memory


class Machines:
    """Machines that agree on a run, one call of MLflow after the other in a random order. Each may die before any of its calls."""

    def __init__(self, seed, count, deaths):
        self.random = random.Random(seed)
        self.runs, self.waiting, self.kept = {}, {}, {}
        self.changed = threading.Condition()
        self.mortal = range(deaths)
        self.threads = [threading.Thread(target=self.live, args=(number,), daemon=True) for number in range(count)]

    def agree(self):
        """What each machine that lives keeps, by its number."""
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads):
            with self.changed:
                alive = sum(thread.is_alive() for thread in self.threads)
                if len(self.waiting) < alive:
                    self.changed.wait(0.001)
                    continue
                self.waiting.pop(self.random.choice(sorted(self.waiting))).set()
        return self.kept

    def live(self, number):
        try:
            run, _ = connection.agree_on_run(Client(self, number), connection.KEPT, lambda: self.find(number), lambda: self.create(number))
            self.kept[number] = run.info.run_id
        except SystemExit:
            pass

    def turn(self, number):
        """Wait for the turn of a machine. All calls are made in turn, so each is atomic."""
        event = threading.Event()
        with self.changed:
            self.waiting[number] = event
            self.changed.notify()
        event.wait()
        if number in self.mortal and self.random.random() < 0.3:
            raise SystemExit

    def create(self, number):
        self.turn(number)
        clock = self.random.randrange(3)  # a clock may be behind: a later run may have an earlier start
        run = SimpleNamespace(
            info=SimpleNamespace(start_time=clock, run_id=f"{self.random.random():.12f}"),
            data=SimpleNamespace(params={}, tags={"by": number}, metrics={}), inputs=None,
        )  # fmt: skip
        self.runs[run.info.run_id] = run
        return run

    def find(self, number):
        self.turn(number)
        return [SimpleNamespace(info=run.info, data=SimpleNamespace(params=dict(run.data.params))) for run in self.runs.values()]


class Client:
    def __init__(self, machines, number):
        self.machines, self.number = machines, number

    def log_param(self, run_id, name, value):
        self.machines.turn(self.number)
        run = self.machines.runs.get(run_id)
        if run is None or run.data.params.setdefault(name, value) != value:
            raise MlflowException("another value, or a deleted run", INVALID_PARAMETER_VALUE)

    def get_run(self, run_id):
        return self.machines.runs[run_id]

    def list_artifacts(self, run_id):
        return []

    def delete_run(self, run_id):
        self.machines.turn(self.number)
        assert self.machines.runs[run_id].data.tags["by"] == self.number
        del self.machines.runs[run_id]


@pytest.mark.parametrize(("count", "deaths"), [(2, 0), (3, 0), (3, 1), (5, 3)])
def test_machines_agree_in_any_order_of_their_calls_whatever_their_clocks_say(count, deaths):
    decided = set()
    for seed in range(150):
        machines = Machines(seed, count, deaths)
        kept = machines.agree()
        assert len(kept) >= count - deaths, seed
        (run_id,) = set(kept.values())
        assert [each for each, run in machines.runs.items() if run.data.params.get(connection.KEPT) == "yes"] == [run_id], seed
        if not deaths:
            assert list(machines.runs) == [run_id], seed
        decided.add(machines.runs[run_id].data.tags["by"])
    assert decided == set(range(count))


# Machines one after the other, at a database


@pytest.fixture
def machine(files, tmp_path_factory, monkeypatch):  # noqa: F811
    """`machine(name)`: go to that machine, a copy of the project without its cache; all write to one database."""
    uri = tracking_uri()
    root = tmp_path_factory.mktemp("machines")
    monkeypatch.setattr(connection, "_PATIENCE_SECONDS", 0)

    def go(name):
        clone(files, root / name)
        monkeypatch.chdir(root / name)
        monkeypatch.setenv("DVC_ROOT", str(root / name))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return root / name

    return go


def clone(project, folder):
    if not folder.exists():
        shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".cache", "mlflow.db", "mlruns"))


def test_a_publication_that_dies_at_any_write_is_completed_by_another_machine(machine, monkeypatch):
    server, at = Server(monkeypatch, WRITES), 1
    while True:
        server.calls, server.last = 0, at
        dying = machine("dying")
        try:
            publish(dying)
            break
        except PipelineError:
            server.last = None
        publish(machine("another"))
        assert whole() == WHOLE, at
        publish(machine("dying"))
        assert state() == WHOLE, at
        client, run = the_run()
        client.delete_logged_model(client.search_logged_models([run.info.experiment_id])[0].model_id)
        client.delete_run(run.info.run_id)
        at += 1
    assert at > 12


def whole():
    """The state, in which an incomplete logged model of another machine does not count: that machine may be alive."""
    *others, models = state()
    return (*others, [status for status in models if status == "READY"])


def test_a_run_that_lost_is_deleted_unless_somebody_wrote_to_it(files):  # noqa: F811
    client, experiment_id = connect()

    def rivals(write):
        """Another machine's run, kept while this machine creates its own; `write`: what somebody does with that."""
        found = []

        def create():
            ours, theirs = (runs.create_run(client, experiment_id, FACTS) for _ in range(2))
            client.log_param(ours.info.run_id, connection.KEPT, "no")
            client.log_param(theirs.info.run_id, connection.KEPT, "yes")
            write(ours.info.run_id)
            found.extend([ours.info.run_id, theirs.info.run_id])
            return ours

        kept, is_ours = connection.agree_on_run(client, connection.KEPT, lambda: [client.get_run(each) for each in found], create)
        assert (kept.info.run_id, is_ours) == (found[1], False)
        return client.get_run(found[0]).info.lifecycle_stage

    assert rivals(lambda run_id: None) == "deleted"
    assert rivals(lambda run_id: client.set_tag(run_id, "reviewed_by", "Kim")) == "active"
    assert rivals(lambda run_id: client.log_metric(run_id, "field_accuracy", 0.5)) == "active"
    assert rivals(lambda run_id: client.log_param(run_id, "camera", "old")) == "active"


def test_what_a_killed_machine_created_and_did_not_write_to_is_deleted_by_the_next_publication(machine):
    publish(machine("first"))
    client, run = the_run()
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    twin = client.create_run(run.info.experiment_id, tags={**tags, runs.REQUEST: "of a killed machine"}, run_name="finetuned")
    client.log_param(twin.info.run_id, connection.KEPT, "no")
    assert publish(machine("second")) == []
    assert state() == WHOLE


def test_a_run_of_a_stored_model_that_a_killed_machine_gave_up_is_deleted_by_the_next(files):  # noqa: F811
    kept = keep(files)
    client, experiment_id = connect()
    facts = read_facts(kept.folder)
    given_up = runs.create_run(client, experiment_id, facts, {runs.MODEL: kept.sha256}).info.run_id
    client.log_param(given_up, connection.STORED, "no")
    for _ in range(2):
        update_registry([kept], {"champion": kept.sha256})
        publishing.log_stored_model(client, experiment_id, kept.folder, kept.sha256)
    assert the_run()[1].data.params[connection.STORED] == "yes"
    assert client.get_run(given_up).info.lifecycle_stage == "deleted"


def test_a_version_is_of_the_logged_model_that_all_machines_keep(machine, monkeypatch):
    """Two machines log the model at the same time; the one that was created first is the one that was complete last."""
    log, models = publishing._log_pyfunc, []

    def log_twice(*arguments):
        log(*arguments)
        client, run = the_run()
        (first,) = client.search_logged_models([run.info.experiment_id])
        monkeypatch.setattr(publishing, "copy_id", lambda: "another")
        log(*arguments)
        models.extend(each.model_id for each in client.search_logged_models([run.info.experiment_id]) if each.model_id != first.model_id)
        client.log_param(run.info.run_id, connection.LOGGED, models[0])

    monkeypatch.setattr(publishing, "_log_pyfunc", log_twice)
    publish(machine("first"))
    update_registry([Registration(SHA256, "finetuned", None, {}, None)], {"champion": SHA256})
    assert connect()[0].get_model_version(EXPERIMENT, "1").source == f"models:/{models[0]}"


def test_runs_that_machines_logged_live_stay_and_one_of_them_is_published(machine, monkeypatch):
    for name in ("first", "second"):
        machine(name)
        monkeypatch.setattr(runs, "key_here", lambda _, name=name: name)  # another processor each
        train_live()
    assert len(by_id()) == 2
    for name in ("first", "second"):
        root = machine(name)
        shutil.copy(machine("fresh") / "models/finetuned/model.json", root / "models/finetuned/model.json")
        publish(machine(name))
    published = [run for run in by_id().values() if "published_sha256" in run.data.tags]
    superseded = [run.data.tags["pipeline.superseded_by"] for run in by_id().values() if "published_sha256" not in run.data.tags]
    assert [run.info.run_id for run in published] == superseded


def test_a_logged_model_that_another_machine_finished_first_is_kept(machine, monkeypatch):
    """While this machine logs the model, another one that has waited long enough does it, too."""
    log, nested = publishing._log_pyfunc, []

    def log_after_another(*arguments):
        if not nested:
            nested.append(True)
            publish(machine("faster"))
            nested.append(the_run()[1].data.params[connection.LOGGED])
            machine("slower")
        return log(*arguments)

    monkeypatch.setattr(publishing, "_log_pyfunc", log_after_another)
    publish(machine("slower"))
    client, run = the_run()
    assert state() == WHOLE
    assert [logged.model_id for logged in client.search_logged_models([run.info.experiment_id])] == nested[1:]


def test_an_incomplete_logged_model_of_another_machine_stays(machine):
    publish(machine("first"))
    client, run = the_run()
    (logged,) = client.search_logged_models([run.info.experiment_id])
    tags = {**logged.tags, publishing.COPY: "another"}
    theirs = client.create_logged_model(run.info.experiment_id, "finetuned", run.info.run_id, tags)
    write_scores(machine("first"))
    publish(machine("second"))
    assert client.get_logged_model(theirs.model_id).status == "PENDING"


def test_a_copy_of_a_working_copy_with_its_cache_has_another_name(machine):
    first = machine("first")
    name = copy_id()
    assert copy_id() == name
    shutil.copytree(first, first.with_name("second"))
    machine("second")
    assert copy_id() != name


# Machines at the same time


def publish_from(folder, uri, barrier, results, dies):
    """Publish from a project of its own, as another machine would; `dies`: kill the process that is the first to write files."""
    os.chdir(folder)
    os.environ |= {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": uri}
    if dies:
        connection._PATIENCE_SECONDS = 1
        MlflowClient.log_artifacts = die_once(MlflowClient.log_artifacts, folder.parent / "died")
    barrier.wait(120)
    try:
        publish(folder)
        results.put(None)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")


def die_once(call, mark):
    def answer(*arguments, **keywords):
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return call(*arguments, **keywords)
        return os.kill(os.getpid(), signal.SIGKILL)

    return answer


def store_from(folder, uri, barrier, results, kept):
    """Register a stored model from a project of its own."""
    os.chdir(folder)
    os.environ |= {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": uri}
    barrier.wait(120)
    try:
        client, experiment_id = connect()
        with publishing.creation_lock():
            publishing.log_stored_model(client, experiment_id, kept.folder, kept.sha256)
        results.put(None)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")


def at_once(target, files, uri, count, last, killed=0):  # noqa: F811
    """What the processes report that were not killed, each from a clone of its own."""
    barrier, results = FORKING.Barrier(count), FORKING.Queue()
    folders = [files.parent / f"{files.name}-machines" / str(number) for number in range(count)]
    for folder in folders:
        clone(files, folder)
    processes = [FORKING.Process(target=target, args=(folder, uri, barrier, results, last)) for folder in folders]
    for process in processes:
        process.start()
    answers = [results.get(timeout=400) for _ in processes[killed:]]
    for process in processes:
        process.join()
    return folders, answers


def assert_that_nothing_is_left_to_do(folders, monkeypatch):
    for folder in folders:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_ROOT", str(folder))
        publish(folder)
        assert publish(folder) == []


COUNTS = pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])


@COUNTS
def test_machines_that_publish_at_once_at_a_database_make_one_run_and_one_model(files, count, monkeypatch):  # noqa: F811
    uri = tracking_uri()
    folders, answers = at_once(publish_from, files, uri, count, False)
    assert answers == [None] * count
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert state() == WHOLE
    assert_that_nothing_is_left_to_do(folders[:3], monkeypatch)
    assert state() == WHOLE


@COUNTS
def test_a_machine_that_is_killed_while_it_publishes_is_made_up_for_by_the_others(files, count, monkeypatch):  # noqa: F811
    uri = tracking_uri()
    folders, answers = at_once(publish_from, files, uri, count, True, killed=1)
    assert answers == [None] * (count - 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert whole() == WHOLE
    assert_that_nothing_is_left_to_do(folders, monkeypatch)
    assert state() == WHOLE


@COUNTS
def test_machines_that_log_a_stored_model_at_once_make_one_run_and_one_model(files, count):  # noqa: F811
    kept = keep(files)
    assert at_once(store_from, files, tracking_uri(), count, kept)[1] == [None] * count
    client, run = the_run()
    assert (run.info.status, run.data.params["seed"], run.data.metrics["test_top1_accuracy"]) == ("FINISHED", "0", 0.75)
    assert [logged.status for logged in client.search_logged_models([run.info.experiment_id])] == ["READY"]


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_machines_that_publish_at_once_at_a_server_make_one_run_and_one_model(files, tmp_path_factory, monkeypatch, dies):  # noqa: F811
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # of one worker for twenty clients
        folders, answers = at_once(publish_from, files, uri, 20, dies, killed=int(dies))
        assert answers == [None] * (20 - dies)
        assert whole() == WHOLE
        assert_that_nothing_is_left_to_do(folders, monkeypatch)
        assert state() == WHOLE
