"""`pipeline retrain`: for a schedule. Look at the source, run what changed, publish, and say so in one JSON line."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.commands.data import refresh
from pipeline.commands.dvc import run_dvc
from pipeline.commands.mend import mend
from pipeline.commands.publish import publish_all
from pipeline.errors import PipelineError
from pipeline.files import read_json

_HEADLINE = ("top1_accuracy", "top1_accuracy_low", "top1_accuracy_high", "log_loss")


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("retrain", help="refresh the digest, run what changed, publish; one JSON line tells")
    parser.set_defaults(run=lambda parsed: print(json.dumps(retrain())))


def retrain() -> dict[str, Any]:
    """Run the pipeline where its source, params or code changed, and return what changed and what the models scored.

    Raises PipelineError where another retraining runs, or where a stage fails.
    """
    lock = Path(".cache/locks/retrain.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            return _retrain()
    except Timeout:
        raise PipelineError(f"{lock}: another `pipeline retrain` is running; wait for it") from None


def _retrain() -> dict[str, Any]:
    for line in mend():
        print(line, file=sys.stderr)
    before, after = refresh()
    changed = {"download.digest": [before, after]} if before != after else {}
    scores_before = _scores()
    if not json.loads(_dvc("status", "--json")):
        return {"changed": changed, "ran": [], "models": scores_before, "published": _publish(), "summary": "nothing changed"}
    ran = re.findall(r"^Running stage '(.+)':", _dvc("repro"), re.MULTILINE)
    facts = {"changed": changed, "ran": ran, "models": _scores(), "before": scores_before}
    return {**facts, "published": _publish(), "summary": f"{len(ran)} stages ran"}


def _publish() -> bool:
    """Bring MLflow up to date; where it is away, say so and leave it to the next time."""
    try:
        publish_all()
    except PipelineError as error:
        print(error, file=sys.stderr)
        return False
    return True


def _scores() -> dict[str, dict[str, float]]:
    """The headline figures of each model, as the last comparison holds them."""
    path = Path("metrics/comparison.json")
    models = read_json(path)["models"] if path.is_file() else {}
    return {name: {key: facts[key] for key in _HEADLINE} for name, facts in models.items()}


def _dvc(*arguments: str) -> str:
    """Run DVC, show on stderr what it says, and return its stdout."""
    result = run_dvc(*arguments, stdout=subprocess.PIPE)
    if arguments == ("repro",):
        print(result.stdout, file=sys.stderr, end="")
    if result.returncode:
        raise PipelineError(f"dvc {arguments[0]}: failed, see above; mend it and run `pipeline retrain` again")
    return result.stdout
