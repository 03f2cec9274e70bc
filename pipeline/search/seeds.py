"""Run the pipeline once per seed as DVC experiments, and summarise mean, spread and noise."""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.core.dvc import mend, run_dvc
from pipeline.core.stage import code_digest
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_json
from pipeline.core.params import parse_yaml, read_params
from pipeline.evaluation.comparison import BASELINE

FIGURES = ("top1_accuracy", "balanced_accuracy", "log_loss", "ece")
Scores = Mapping[str, Mapping[str, Any]]  # a model: its figures, with `x_low` and `x_high` where they have an interval


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) of two values or more."""
    return {"mean": round(statistics.mean(values), 6), "std": round(statistics.stdev(values), 6)}


def paired_spread(first: Sequence[float], second: Sequence[float], confidence: float) -> dict[str, Any]:
    """`second - first`, paired within a seed: mean, std, Student's t interval of the mean, whether that leaves zero out, each value.

    Seeds share pictures, so that their runs are not independent: the interval is rather too narrow (Nadeau and Bengio, 2003).
    """
    from scipy import stats

    values = [round(after - before, 6) for before, after in zip(first, second, strict=True)]
    mean, count = statistics.mean(values), len(values)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {
        **spread(values), "low": round(mean - half, 6), "high": round(mean + half, 6),
        "shown": mean - half > 0 or mean + half < 0, "values": values,
    }  # fmt: skip


def summarise(runs: Mapping[int, Scores], baseline: str) -> dict[str, Any]:
    """What the runs of several seeds (a seed: its scores) have in common, as JSON: each model's figures and its lead on the baseline.

    `one_run` is half the width of the interval that a single run states for itself, the mean over the seeds.
    """
    first = next(iter(runs.values()))
    confidence = first[baseline]["confidence"]
    accuracy = {name: [scores[name]["top1_accuracy"] for scores in runs.values()] for name in first}
    return {
        "seeds": list(runs),
        "test_pictures": [scores[baseline]["test_pictures"] for scores in runs.values()],
        "confidence": confidence,
        "models": {name: {figure: _figure([scores[name] for scores in runs.values()], figure) for figure in FIGURES} for name in first},
        "differences": {name: paired_spread(accuracy[baseline], accuracy[name], confidence) for name in first if name != baseline},
    }


def _figure(scores: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    values = [facts[figure] for facts in scores]
    widths = [facts[f"{figure}_high"] - facts[f"{figure}_low"] for facts in scores if f"{figure}_low" in facts]
    return {**spread(values), "one_run": round(statistics.mean(widths) / 2, 6) if widths else None, "values": values}


def seeds_verdict(name: str, baseline: str, difference: Mapping[str, Any], confidence: float) -> str:
    """A model's lead on the baseline in a sentence, in percentage points."""
    mean, std, low, high = (100 * difference[key] for key in ("mean", "std", "low", "high"))
    shown = "beyond" if difference["shown"] else "not shown beyond"
    return (
        f"{name} - {baseline}, paired within a seed: {mean:+.1f} ± {std:.1f} points, {100 * confidence:g} % t interval "
        f"{low:+.1f} to {high:+.1f}: {shown} the noise between {len(difference['values'])} seeds."
    )


def noise(name: str, accuracy: Mapping[str, Any], confidence: float) -> str:
    """How far a model's accuracy moves with the seed, against what one run says of itself, in a sentence.

    Both as half the width of an interval: of a normal distribution with the std of the seeds, and the mean of those of the runs.
    """
    from scipy import stats

    moved, half = 100 * float(stats.norm.ppf((1 + confidence) / 2)) * accuracy["std"], 100 * accuracy["one_run"]
    more = "more than" if moved > half else "within"
    return (
        f"{name}: a seed moves the accuracy by ± {moved:.1f} points ({100 * confidence:g} %), {more} the ± {half:.1f} that one run states."
    )


_STDERR = 2  # stdout is for the table or the JSON
_SCORES = "metrics/comparison.json"


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
    from pipeline.core.hardware import key_here

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
