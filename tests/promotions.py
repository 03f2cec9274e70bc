"""A project with stored models and no stages, in which models are judged by a file, and MLflow's registry is another.

`python -m tests.promotions COMMAND [POINT]` runs `retrain`, `rollback` or `approve` in the working directory with these fakes, and kills
itself when it comes to a point.
"""

import json
import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace

import yaml

from pipeline.core.dvc import run_dvc
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of, sha256_of_file, sha256_of_json, write_json
from pipeline.promotion import by_hand, gate, journal, keep, retraining
from pipeline.promotion.journal import champion_dir, read_journal

TIME = "2026-03-02T03:00:00Z"
TESTED = "7" * 64


def write_candidate(name, content, folder=Path()):
    """Write a model of any bytes below a project, with its results. Returns its sha256."""
    sha256 = sha256_of(content)
    (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    (folder / "models" / name / "model.onnx").write_bytes(content)
    write_json(folder / "models" / name / "model.json", {"model": name, "model_sha256": sha256})
    figures = {"top1_accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}, "log_loss": {"value": 0.3, "low": None, "high": None}}
    write_json(folder / "results" / name / "scores.json", {"model_sha256": sha256, "test_sha256": TESTED, "figures": figures})
    return sha256


def write_gate(folder=Path(), **changes):
    """Write a params.yaml with a gate, whose challenger is `small`."""
    from tests.projects import PARAMS  # with torch, which a process that is killed does not need

    params = {"seed": 1, "threads": 1, "gate": {**PARAMS["gate"], "challenger": "small", **changes}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def store(model):
    folder = Path("models") / model
    kept = champion_dir(sha256_of_file(folder / "model.onnx"))
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    shutil.copytree(Path("results") / model, kept / "results", dirs_exist_ok=True)
    if Path(".dvc").is_dir():
        assert run_dvc("add", "-q", str(kept)).returncode == 0
    return kept


def restore(sha256):
    if not (champion_dir(sha256) / "model.onnx").is_file():
        raise PipelineError(f"{champion_dir(sha256)}: is not here; run `dvc pull`")
    return champion_dir(sha256)


def champion_model():
    entry = journal.champion(read_journal())
    return restore(entry.sha256) if entry else None


def prepare(name, champion):
    return SimpleNamespace(name=name), champion and SimpleNamespace(name=champion.model), gate.TestSet(TESTED, frozenset())


def judge(challenger, champion, test, spent, age_days, params):
    """The verdict that stands in the file `verdict`."""
    verdict = Path("verdict").read_text() if Path("verdict").is_file() else "PROMOTE"
    values = {"challenger": {"value": 0.9, "low": 0.8, "high": 0.95}, "champion": None}
    tested = {"sha256": test.sha256, "pictures": 100, "groups": 100}
    reason = f"as the file says, look {spent + 1}"
    return gate.Judgement(verdict, reason, values, (), (), ("a note",), tested, None, True, spent + 1, 26, 0.002)


def update_registry(models, aliases):
    """Keep versions and aliases in registry.json, unless the file `mlflow_away` is there."""
    if Path("mlflow_away").exists():
        raise PipelineError("MLflow: cannot be reached; start the server")
    path = Path("registry.json")
    before = read_json(path) if path.is_file() else {"versions": {}, "aliases": {}}
    after = {"versions": {**before["versions"], **{model.sha256: dict(model.tags) for model in models}}, "aliases": dict(aliases)}
    write_json(path, after)
    return [f"{part}: changed" for part in after if after[part] != before[part]]


def check_registry(aliases, deep=False):
    found = read_json(Path("registry.json"))["aliases"]
    return [f"{alias}: is {found.get(alias)}" for alias, sha256 in aliases.items() if found.get(alias) != sha256]


def fakes():
    """`name of a module: the fake that takes its place`."""
    contents = {
        "pipeline.promotion.champions": {"store": store, "restore": restore, "champion_model": champion_model},
        "pipeline.promotion.judging": {
            "choose_challenger": lambda params: params.challenger,
            "prepare": prepare,
            "shadow_sentence": lambda *_: Path("shadow").read_text() if Path("shadow").is_file() else "",
            "judgement_key": lambda *keys: sha256_of_json([*keys[:3], keys[4]]),
        },
        "pipeline.report.decisions": {"write_decisions": lambda folder, entries: write_json(folder / "decision.json", entries[-1])},
        "pipeline.tracking.registry": {
            "Registration": SimpleNamespace, "update_registry": update_registry, "check_registry": check_registry,
        },
    }  # fmt: skip
    modules = {}
    for name, content in contents.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
    return modules


def set_clock(set_attribute, time=TIME):
    """Let the rooms of promotion have this time."""
    for module in (journal, keep, retraining, by_hand):
        set_attribute(module, "now", lambda: datetime.fromisoformat(time).astimezone(UTC))


def install(monkeypatch):
    """Put the fakes into place for a test."""
    for name, module in fakes().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(gate, "judge", judge)
    monkeypatch.setattr("pipeline.networks.artifact.verify_model", lambda folder: sha256_of_file(folder / "model.onnx"))
    set_clock(monkeypatch.setattr)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def set_trap(point):
    """Let this process kill itself before a step, by its number, before the entry is appended, or between `git add` and `git commit`."""
    git = keep._git
    if point == "append":
        keep.append = die
    elif point == "git commit":
        keep._git = lambda *arguments: die() if arguments[0] == "commit" else git(*arguments)
    else:
        name = keep.STEPS[int(point)][0]
        keep.STEPS = (*keep.STEPS[: int(point)], (name, die))


def main(command, *points):
    sys.modules.update(fakes())
    gate.judge = judge
    set_clock(setattr)
    if not Path(".dvc").is_dir():
        retraining._dvc = lambda *_: "{}"
    for point in points:
        set_trap(point)
    options = keep.Options()
    if command == "retrain":
        facts, outcome = retraining.retrain(lambda: ("0", "0"), lambda: None, options)
        print(json.dumps(facts))
    else:
        decision, kept = by_hand.rollback(None, None, options) if command == "rollback" else by_hand.approve(None, options)
        outcome = retraining.outcome_of(decision, kept.undone)
    raise SystemExit(int(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
