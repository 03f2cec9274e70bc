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
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_json
from pipeline.core.hardware import key_here
from pipeline.core.params import BASELINE, LARGEST_SEED, parse_yaml, read_params, spell
from pipeline.core.stage import code_digest

FIGURES = ("top1_accuracy", "balanced_accuracy", "log_loss", "ece")
Scores = Mapping[str, Mapping[str, Any]]  # by model: its figures, with `x_low` and `x_high` if they have an interval

_SET_HERE = {"seed": "the seeds are arguments of this command", "split.seed": "it follows the seeds, or --keep-split"}
_SCORES = "metrics/comparison.json"
_STDERR = 2  # stdout is for the table or the JSON


def run_seeds(seeds: Sequence[int], settings: Sequence[str], keep_split: bool = False) -> dict[str, Any]:
    """Run the seeds that have no experiment yet, and return the facts of `summarise`, the name of each experiment, and `split_seed`.

    `settings`: KEY=VALUE, as `dvc exp run -S` takes them. The split and the training both vary with the seed, and `split_seed` is None.
    With `keep_split` only the training varies: every run splits by `split_seed`, that of params.yaml. Raises PipelineError if there are
    fewer than two different seeds, another such command is running, or a run fails.
    """
    _check(seeds, settings)
    lock = Path(".cache/locks/seeds.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            for line in mend():
                print(line, file=sys.stderr)
            params = read_params()
            split = _split_section(params)
            fixed = split.get("seed")  # null or missing: the split follows the top-level seed
            kept = (params.get("seed") if fixed is None else fixed) if keep_split else None
            key = _experiments_key(params, settings, kept)
            if kept != fixed:
                settings = [*settings, f"{'' if 'seed' in split else '+'}split.seed={spell(kept)}"]
            names = {seed: f"seed-{seed}-split-{kept}-{key}" if keep_split else f"seed-{seed}-{key}" for seed in seeds}
            runs = {seed: _scores_of(_experiment(seed, name, settings)) for seed, name in names.items()}
    except Timeout:
        raise PipelineError(f"{lock}: another `pipeline seeds` is running; wait for it") from None
    return {"experiments": list(names.values()), "split_seed": kept, **summarise(runs, BASELINE)}


def _check(seeds: Sequence[int], settings: Sequence[str]) -> None:
    if len(seeds) < 2:
        raise PipelineError(f"seeds: {len(seeds)} seed shows no noise; name two or more")
    if negative := [seed for seed in seeds if seed < 0]:
        raise PipelineError(f"seeds: {negative[0]} is below 0; name different whole numbers")
    if large := [seed for seed in seeds if seed > LARGEST_SEED]:
        raise PipelineError(f"seeds: {large[0]} is above {LARGEST_SEED}; name smaller ones")
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise PipelineError(f"seeds: {repeated[0]} is repeated; name different whole numbers")
    for setting in settings:
        key = setting.partition("=")[0].rpartition(":")[2].lstrip("+~")
        if key in _SET_HERE:
            raise PipelineError(f"-S {setting}: {_SET_HERE[key]}; leave it out")


def _experiments_key(params: Mapping[str, Any], settings: Sequence[str], split_seed: int | None) -> str:
    """Seven digits over everything that decides the scores, except the seed: code, params, settings, split, packages and machine."""
    stages = parse_yaml(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    split = {key: value for key, value in _split_section(params).items() if key != "seed"}
    read_by_stages = {key: value for key, value in params.items() if key not in ("seed", "tune")} | {"split": split}
    code = {name: code_digest(f"pipeline.stages.{name}") for name in stages if name != "evaluate_baseline"}  # its code is `evaluate`'s
    return key_here(sha256_of_json([stages, code, read_by_stages, sorted(settings), split_seed]))[:7]


def _split_section(params: Mapping[str, Any]) -> Mapping[str, Any]:
    section = params.get("split")
    return section if isinstance(section, Mapping) else {}


def _experiment(seed: int, name: str, settings: Sequence[str]) -> str:
    """The commit of the experiment of that name, which runs if there is none."""
    if commit := _find(name):
        print(f"{name}: has run already", file=sys.stderr)
        return commit
    print(f"{name}: runs", file=sys.stderr)
    values = [argument for setting in (f"seed={seed}", *settings) for argument in ("-S", setting)]
    code = run_dvc("exp", "run", "--temp", "--name", name, *values, stdout=_STDERR).returncode
    commit = _find(name)
    if code or commit is None:
        raise PipelineError(f"seed {seed}: `dvc exp run` failed, see above; repair it and repeat the command: finished seeds are kept")
    return commit


def _find(name: str) -> str | None:
    """The commit of the experiment of that name, whatever commit it started from. Raises PipelineError outside of a git repository."""
    listed = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    if listed.returncode:
        raise PipelineError(f"git: {listed.stderr.strip()}; git stores the experiments: run in a clone")
    return next((line.split()[0] for line in listed.stdout.splitlines() if line.endswith(f"/{name}")), None)


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run git. Raises PipelineError if it is not installed."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    except FileNotFoundError:
        raise PipelineError("git: is not installed; it stores the experiments: install it") from None


def _scores_of(commit: str) -> dict[str, Any]:
    """The figures of each model in an experiment, each with the number of test pictures and the confidence."""
    comparison = json.loads(_read(_SCORES, commit))
    shared = {key: comparison[key] for key in ("test_pictures", "confidence")}
    return {name: {**figures, **shared} for name, figures in comparison["models"].items()}


def _read(path: str, commit: str) -> str:
    """A file of an experiment, from git or from DVC's cache. Raises PipelineError."""
    # DVC looks for the project at the root of the repository; git takes `./`, also if the project is a folder of a larger one.
    shown = _git("show", f"{commit}:./{path}")
    if shown.returncode == 0:
        return shown.stdout
    import dvc.api  # type: ignore[import-untyped]
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]

    try:
        return str(dvc.api.read(path, repo=".", rev=commit))
    except (DvcException, OSError) as error:
        line = str(error).partition("\n")[0]
        raise PipelineError(f"{path} of experiment {commit[:7]}: {line}; remove it (`dvc exp remove`) and run again") from None


def summarise(runs: Mapping[int, Scores], baseline: str) -> dict[str, Any]:
    """Mean and spread over the runs, by seed, as JSON: the figures of each model, and its difference from the baseline.

    `one_run` is half the width of the interval that a single run reports, averaged over the seeds.
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


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) of two values or more."""
    return {"mean": round(statistics.mean(values), 6), "std": round(statistics.stdev(values), 6)}


def paired_spread(first: Sequence[float], second: Sequence[float], confidence: float) -> dict[str, Any]:
    """`second - first`, paired within a seed: mean, std, Student's t interval of the mean, whether it excludes zero, each value.

    Seeds share pictures, so their runs are not independent: the interval is rather too narrow (Nadeau and Bengio, 2003).
    """
    from scipy import stats

    values = [round(after - before, 6) for before, after in zip(first, second, strict=True)]
    mean, count = statistics.mean(values), len(values)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {
        **spread(values), "low": round(mean - half, 6), "high": round(mean + half, 6),
        "shown": mean - half > 0 or mean + half < 0, "values": values,
    }  # fmt: skip


def seeds_verdict(name: str, baseline: str, difference: Mapping[str, Any], confidence: float) -> str:
    """A sentence on a model's difference from the baseline, in percentage points."""
    mean, std, low, high = (100 * difference[key] for key in ("mean", "std", "low", "high"))
    shown = "beyond" if difference["shown"] else "not shown beyond"
    return (
        f"{name} - {baseline}, paired within a seed: {mean:+.1f} ± {std:.1f} points, {100 * confidence:g} % t interval "
        f"{low:+.1f} to {high:+.1f}: {shown} the noise between {len(difference['values'])} seeds."
    )


def noise(name: str, accuracy: Mapping[str, Any], confidence: float) -> str:
    """A sentence that compares how far the accuracy moves with the seed and the interval that one run reports.

    Both as half the width of an interval: of a normal distribution with the std of the seeds, and the mean of those of the runs.
    """
    from scipy import stats

    moved, half = 100 * float(stats.norm.ppf((1 + confidence) / 2)) * accuracy["std"], 100 * accuracy["one_run"]
    more = "more than" if moved > half else "within"
    return (
        f"{name}: the seed moves the accuracy by ± {moved:.1f} points ({100 * confidence:g} %), "
        f"{more} the ± {half:.1f} that one run reports."
    )
