"""`pipeline seeds 0 1 2`: run the pipeline once a seed, as DVC experiments, and print how far the seeds are apart.

Each runs in a copy of the project (`dvc exp run --temp`), so that the workspace stays as it is; its models become runs in MLflow.
An experiment is named by its seed and a sum over code, params, settings, packages and machine: what ran is not run again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.commands.columns import align
from pipeline.commands.dvc import run_dvc
from pipeline.commands.mend import mend
from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import BASELINE
from pipeline.evaluation.seeds import noise, summarise, verdict
from pipeline.files import sha256_of_json
from pipeline.params import parse_yaml, read_params
from pipeline.provenance import code_digest

_STDERR = 2  # stdout is for the table or the JSON
_SCORES = "metrics/comparison.json"
_COLUMNS = {"top1_accuracy": "top-1 accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss", "ece": "ECE"}


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("seeds", help="run once a seed; mean, spread, and the noise between seeds")
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="as `dvc exp run` takes it; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(run=_main)


def _main(parsed: argparse.Namespace) -> None:
    facts = run_seeds(parsed.seeds, parsed.set_param)
    print(json.dumps(facts, indent=2) if parsed.json else show(facts))


def run_seeds(seeds: Sequence[int], settings: Sequence[str]) -> dict[str, Any]:
    """Run what was not run yet, and return `summarise`'s facts with the name of each experiment.

    Raises PipelineError where the seeds are not two different ones or more, where another such command runs, or a run fails.
    """
    _check(seeds, settings)
    lock = Path(".cache/locks/seeds.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            for line in mend():
                print(line, file=sys.stderr)
            names = {seed: f"seed-{seed}-{_inputs(settings)}" for seed in seeds}
            runs = {seed: _scores_of(_experiment(seed, name, settings)) for seed, name in names.items()}
    except Timeout:
        raise PipelineError(f"{lock}: another `pipeline seeds` is running; wait for it") from None
    return {"experiments": list(names.values()), **summarise(runs, BASELINE)}


def _check(seeds: Sequence[int], settings: Sequence[str]) -> None:
    if len(seeds) < 2:
        raise PipelineError(f"seeds: {len(seeds)} seed shows no noise; name two or more")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1 or seed < 0]:
        raise PipelineError(f"seeds: {twice[0]} {'is below 0' if twice[0] < 0 else 'stands there twice'}; name different whole numbers")
    if seed := [setting for setting in settings if setting.partition("=")[0].rpartition(":")[2].lstrip("+~") == "seed"]:
        raise PipelineError(f"-S {seed[0]}: the seeds are set by their numbers; leave it out")


def _inputs(settings: Sequence[str]) -> str:
    """Seven digits that tell code, params and settings, packages and machine, but not the seed."""
    from pipeline.training.checkpoint import key_here

    stages = parse_yaml(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = {key: value for key, value in read_params().items() if key not in ("seed", "tune")}  # the latter no stage reads
    code = {name: code_digest(f"pipeline.stages.{name}") for name in stages if name != "evaluate_baseline"}  # which is `evaluate`
    return key_here(sha256_of_json([stages, code, params, sorted(settings)]))[:7]


def _experiment(seed: int, name: str, settings: Sequence[str]) -> str:
    """The commit of the experiment of that name, which is run where there is none."""
    if commit := _find(name):
        print(f"{name}: is there", file=sys.stderr)
        return commit
    print(f"{name}: runs", file=sys.stderr)
    values = [argument for setting in (f"seed={seed}", *settings) for argument in ("-S", setting)]
    code = run_dvc("exp", "run", "--temp", "--name", name, *values, stdout=_STDERR).returncode
    commit = _find(name)
    if code or commit is None:
        raise PipelineError(f"seed {seed}: `dvc exp run` failed, see above; mend it and type the command again, what ran is kept")
    return commit


def _find(name: str) -> str | None:
    """The commit of the experiment of that name, whatever it started from. Raises PipelineError outside of a git repository."""
    command = ["git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise PipelineError(f"git: {listed.stderr.strip()}; experiments are kept in git: run in a clone")
    return next((line.split()[0] for line in listed.stdout.splitlines() if line.endswith(f"/{name}")), None)


def _scores_of(commit: str) -> dict[str, Any]:
    """What each model scored in an experiment, and on how much."""
    comparison = json.loads(_read(_SCORES, commit))
    shared = {key: comparison[key] for key in ("test_pictures", "confidence")}
    return {name: {**figures, **shared} for name, figures in comparison["models"].items()}


def _read(path: str, commit: str) -> str:
    """A file of an experiment, be it in git or in DVC's cache. Raises PipelineError."""
    import dvc.api  # type: ignore[import-untyped]
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]

    try:
        return str(dvc.api.read(path, repo=".", rev=commit))
    except (DvcException, OSError) as error:
        line = str(error).partition("\n")[0]
        raise PipelineError(f"{path} of experiment {commit[:7]}: {line}; remove it (`dvc exp remove`) and run again") from None


def show(facts: dict[str, Any]) -> str:
    """The table of all models and figures, and what it says in sentences."""
    rows = [["model", "figure", "mean ± std", *(f"seed {seed}" for seed in facts["seeds"]), "one run"]]
    for name, figures in facts["models"].items():
        for figure, title in _COLUMNS.items():
            found = figures[figure]
            cells = [f"{found['mean']:.3f} ± {found['std']:.3f}", *(f"{value:.3f}" for value in found["values"])]
            rows.append([name, title, *cells, "" if found["one_run"] is None else f"± {found['one_run']:.3f}"])
    counts = sorted(set(facts["test_pictures"]))
    pictures = " to ".join(map(str, (counts[0], counts[-1])[: len(counts)]))
    lines = [
        *align(rows),
        "",
        f"{pictures} test pictures; std between seeds; one run: half the {100 * facts['confidence']:g} % interval that a run states.",
    ]
    lines += [noise(name, figures["top1_accuracy"], facts["confidence"]) for name, figures in facts["models"].items()]
    lines += [verdict(name, BASELINE, found, facts["confidence"]) for name, found in facts["differences"].items()]
    return "\n".join([*lines, f"Experiments: {', '.join(facts['experiments'])} (`dvc exp show`, `dvc exp apply NAME`)."])
