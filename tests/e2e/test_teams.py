"""Two machines and twenty, on one MLflow server with PostgreSQL and one DVC remote on S3: nothing is lost, nothing is there twice."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from pipeline.core.files import sha256_of, sha256_of_file, write_json, write_table
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.promotion.journal import read_journal
from tests.checkout import ROOT, commit, copy, type_in, user_environment
from tests.teams import HAS_POSTGRES, shared_services

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.skipif(not HAS_POSTGRES, reason="PostgreSQL is not installed")]
MACHINES = 20
LOAD = """
import mlflow
from pipeline.core.files import sha256_of_file
from pathlib import Path
folder = mlflow.artifacts.download_artifacts("models:/transfer-pipeline@champion")
print(*{sha256_of_file(path) for path in Path(folder).rglob("model.onnx")})
mlflow.pyfunc.load_model("models:/transfer-pipeline@champion")
"""


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    pytest.importorskip("psycopg")
    pytest.importorskip("dvc_s3")
    with shared_services(tmp_path_factory.mktemp("services")) as shared:
        yield shared


def rows(services, query):
    """The answer of the database."""
    import psycopg

    with psycopg.connect(services.database.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


def write_project(root, graph):
    """Write the files of one evaluated model, with some bytes in place of its graph."""
    pictures = [
        Picture(f"ant/{i}.png", f"ant/{i}.png", str(i) * 64, "ant", split, str(i), 8, 8) for i, split in enumerate(["train", "test"])
    ]
    write_manifest(root / "data/manifest.csv", pictures)
    write_json(root / "data/source.json", {"source": "insects", "licence": "CC0"})
    model, results = root / "models/finetuned", root / "results/finetuned"
    for folder in (model, results):
        folder.mkdir(parents=True)
    (model / "model.onnx").write_bytes(graph)
    sums = {"data": sha256_of_file(root / "data/manifest.csv"), "params": sha256_of(graph), "code": "c" * 64}
    facts = {"model": "finetuned", "class_names": ["ant", "bee"], "params": {}, "inputs_sha256": sums, "hardware": {"threads": 1}}
    write_json(model / "model.json", {**facts, "model_sha256": sha256_of(graph)})
    write_table(model / "history.csv", ["epoch", "val_loss"], [{"epoch": step, "val_loss": 1 / (step + 1)} for step in range(3)])
    answer = {"image_id": "ant/1.png", "label": "ant", "predicted": "ant", "probability": "0.75"}
    write_table(results / "predictions.csv", list(answer), [answer])
    accuracy = {"top1_accuracy": {"value": 0.75, "low": 0.5, "high": 1.0}}
    scores = {"model": "finetuned", "model_sha256": sha256_of(graph), "test_pictures": 1, "test_sha256": "7" * 64, "confidence": 0.95}
    write_json(results / "scores.json", {**scores, "figures": accuracy})
    (root / "params.yaml").write_text(yaml.safe_dump({"models": {"finetuned": {}}}))
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {}}))
    return root


def publish_at_once(services, roots):
    """Publish in all folders at once, each as a machine of its own; what each printed."""
    environment = {**user_environment(ROOT), **services.variables}

    def publish(root):
        command = [sys.executable, "-m", "pipeline", "publish"]
        return subprocess.run(
            command, cwd=root, env={**environment, "DVC_ROOT": str(root)}, capture_output=True, text=True, check=False
        )  # fmt: skip

    with ThreadPoolExecutor(len(roots)) as threads:
        return list(threads.map(publish, roots))


def test_twenty_machines_publish_twenty_models_at_once(services, tmp_path):
    roots = [write_project(tmp_path / str(number), b"graph %d" % number) for number in range(MACHINES)]
    for result in publish_at_once(services, roots):
        assert (result.returncode, "published as run" in result.stdout) == (0, True), result.stdout + result.stderr
    query = "select status, lifecycle_stage, count(*) from runs where name = 'finetuned' group by 1, 2"
    assert rows(services, query) == [("FINISHED", "active", MACHINES)]
    assert rows(services, "select count(*) from experiments where name = 'transfer-pipeline'") == [(1,)]
    assert {result.stdout for result in publish_at_once(services, roots[:2])} == {"MLflow is up to date\n"}


def test_twenty_machines_publish_the_same_model_at_once(services, tmp_path):
    roots = [write_project(tmp_path / str(number), b"the same graph") for number in range(MACHINES)]
    for result in publish_at_once(services, roots):
        assert result.returncode == 0, result.stdout + result.stderr
    sha256 = sha256_of(b"the same graph")
    runs = f"runs join tags using (run_uuid) where key = 'model_sha256' and value = '{sha256}'"
    assert rows(services, f"select status from {runs} and lifecycle_stage = 'active'") == [("FINISHED",)]
    assert deleted_contents(services) == [(0,)]


def deleted_contents(services):
    """How many metrics deleted runs have: a machine deletes a run that it created for nothing, and no other."""
    return rows(services, "select count(*) from metrics join runs using (run_uuid) where lifecycle_stage = 'deleted'")


@pytest.fixture(scope="module")
def first(services, digits, tmp_path_factory):
    """A clone with a DVC remote on S3 and a git remote, whose retraining made the first champion and pushed everything."""
    folder = copy(digits[0].parent, tmp_path_factory.mktemp("team") / "first")
    origin = folder.parent / "origin.git"
    type_in(folder.parent, "git", "init", "-q", "--bare", "-b", "main", str(origin))
    clone = folder / "clone"
    type_in(clone, "dvc", "remote", "add", "--default", "storage", "s3://dvc/digits")
    commit(clone, "a remote")
    type_in(clone, "git", "branch", "-M", "main")
    type_in(clone, "git", "remote", "add", "origin", str(origin))
    type_in(clone, "git", "push", "-q", "-u", "origin", "main")
    line = json.loads(type_in(clone, "pipeline", "retrain", "--push", **services.variables))
    assert (line["outcome"], line["undone"]) == ("DONE", [])
    return clone


def join_team(first, services, name):
    """Another machine: a clone of git's remote, its outs pulled from the DVC remote."""
    clone = first.parent.parent / name / "clone"
    clone.parent.mkdir()
    type_in(clone.parent, "git", "clone", "-q", str(first.parent.parent / "origin.git"), str(clone))
    type_in(clone, "dvc", "pull", **services.variables)
    return clone


def test_a_second_machine_pulls_everything_and_agrees_with_the_first(first, services):
    second = join_team(first, services, "second")
    assert json.loads(type_in(first, "dvc", "data", "status", "--not-in-remote", "--json", **services.variables)) == {}
    pictures = sorted(str(path) for path in (first.parent / "pictures/3").glob("*.png"))[:20]
    for command in (("verify",), ("champion", "--json"), ("history", "--json"), ("predict", *pictures)):
        one, two = (type_in(clone, "pipeline", *command, **services.variables) for clone in (first, second))
        assert one == two
        assert one
    assert type_in(second, "pipeline", "publish", **services.variables) == "MLflow is up to date\n"


def decide(clone, services, *command):
    """Decide on one machine and share it: push, and if another machine was faster, take its entries first. Returns the seconds."""
    begun = time.monotonic()
    type_in(clone, "pipeline", *command, **services.variables)
    for _ in range(10 * MACHINES):
        pushed = subprocess.run(["git", "push", "-q"], cwd=clone, env=user_environment(clone), capture_output=True, text=True, check=False)
        if pushed.returncode == 0:
            return time.monotonic() - begun
        type_in(clone, "git", "pull", "-q", "--rebase")
    raise AssertionError(pushed.stderr)


def test_machines_that_decide_at_once_lose_no_entry_and_end_with_one_champion(first, services):
    clones = [join_team(first, services, f"machine {number}") for number in range(MACHINES)]
    commands = [("promote", "finetuned", "--force", "--reason", f"machine {number}") for number in range(MACHINES)]
    before = read_journal(first / "promotions.jsonl")
    with ThreadPoolExecutor(len(clones)) as threads:
        list(threads.map(lambda pair: decide(pair[0], services, *pair[1]), zip(clones, commands, strict=True)))
    decide(clones[0], services, "rollback", "--reason", "after all")
    for clone in (first, *clones):
        type_in(clone, "git", "pull", "-q", "--rebase")
        type_in(clone, "dvc", "pull", **services.variables)
    (journal,) = {(clone / "promotions.jsonl").read_bytes() for clone in (first, *clones)}
    reasons = [entry.reason for entry in read_journal(first / "promotions.jsonl")]
    assert sorted(reasons[len(before) :]) == sorted(["after all", *(f"machine {number}" for number in range(MACHINES))]), journal
    champion, *others = (type_in(clone, "pipeline", "champion", "--json", **services.variables) for clone in (first, *clones))
    assert set(others) == {champion}
    type_in(first, "pipeline", "verify", **services.variables)
    versions = """
        select count(*), count(distinct t.value) from model_versions v join model_version_tags t using (name, version)
        where t.key = 'sha256' and v.current_stage != 'Deleted_Internal'
    """
    assert rows(services, versions) == [(2, 2)]
    answered = type_in(first, sys.executable, "-c", LOAD, **services.variables).split()
    assert answered == [json.loads(champion)["sha256"]]
    assert deleted_contents(services) == [(0,)]
