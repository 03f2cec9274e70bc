"""Kill `dvc repro` at random moments of every stage, run it again, and compare with an undisturbed run.

    python -m tests.crash 100 --seed 0

After each kill the stage runs to its end, and all its outs are compared. Prints one line per kill, then the counts; exit
code 1 if an outcome differs. A kill takes about fifteen seconds.
"""

import argparse
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.checkout import clone, commit, copy, make_pictures, set_params, type_in
from tests.repro import WAYS, Repro, left_behind, read_lock, runs_of, sums_of


@dataclass(frozen=True)
class Reference:
    """A clone after an undisturbed run, and the seconds that each stage took, in their order."""

    folder: Path
    seconds: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """The kills of a stage, the differences after it finally ran to its end, and whether DVC's own files had to be repaired."""

    kills: int
    differences: list[str]
    mended: bool


def prepare(folder: Path) -> Path:
    """Make a clone with forty small pictures and a tiny network, in which nothing has run."""
    clone(folder)
    make_pictures(folder / "pictures", 20)
    changes = {"threads": 1, "download.source": "pictures", "backbone": {"name": "test_resnet", "weights": "none", "digest": None}}
    few_seconds = {"embed.image_size": 32, "models.finetuned": {"regime": "finetuned", "epochs": 6, "batch_size": 2, "patience": 6}}
    set_params(folder, changes | few_seconds)
    type_in(folder, "pipeline", "data", "refresh")
    commit(folder, "small")
    return folder


def run_undisturbed(folder: Path) -> Reference:
    """Run the pipeline in a clone and time its stages."""
    repro, begun = Repro(folder), {}
    while not repro.is_over():
        for stage in repro.begun():
            begun.setdefault(stage, time.monotonic())
        time.sleep(0.01)
    code, output = repro.end()
    assert code == 0, output
    ends = [*list(begun.values())[1:], time.monotonic()]
    return Reference(folder, {stage: end - start for (stage, start), end in zip(begun.items(), ends, strict=True)})


def disturb(folder: Path, stage: str, way: str, seconds: float) -> bool:
    """Run the pipeline up to a stage and kill it some seconds after that stage began; False if `dvc` had ended before."""
    repro = Repro(folder, stage)
    while stage not in repro.begun() and not repro.is_over():
        time.sleep(0.01)
    time.sleep(seconds)
    hit = not repro.is_over()
    repro.kill(way)
    return hit


def storm(folder: Path, reference: Reference, stage: str, kills: int, in_a_row: int, chance: random.Random) -> Iterator[Outcome]:
    """Kill a stage `kills` times; after every `in_a_row` kills run it to its end and compare."""
    before = (folder / "dvc.lock").read_text()
    ways = itertools.cycle(chance.sample(WAYS, len(WAYS)))
    while kills > 0:
        hits = 0
        for way in itertools.islice(ways, min(kills, in_a_row)):
            moment = chance.uniform(0, reference.seconds[stage])
            if not disturb(folder, stage, way, moment):
                break
            hits += 1
            print(f"{stage}: {way} after {moment:.2f} s", flush=True)
        yield finish(folder, reference, stage, hits)
        kills -= hits
        if kills > 0:
            forget(folder, before)


def finish(folder: Path, reference: Reference, stage: str, kills: int) -> Outcome:
    """Run a stage to its end and compare.

    DVC writes dvc.lock and .dvc/tmp/rwlock in place, so that a kill may damage them: `pipeline mend` repairs both.
    """
    code, output = Repro(folder, stage).end()
    mended = code != 0
    if mended:
        print(f"{stage}: dvc could not go on: {output}", flush=True)
        print(type_in(folder, "pipeline", "mend"), flush=True)
        code, output = Repro(folder, stage).end()
    found = differences(folder, reference, stage) if code == 0 else [output]
    print(*(f"{stage}: {line}" for line in found), sep="\n", end="\n" * bool(found), flush=True)
    return Outcome(kills, found, mended)


def forget(folder: Path, lock: str) -> None:
    """Remove a run from DVC, the caches and MLflow: restore dvc.lock and delete the rest."""
    (folder / "dvc.lock").write_text(lock)
    for path in (*folder.glob("mlflow.db*"), *(folder / name for name in ("mlruns", ".cache", ".dvc/cache/runs"))):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def differences(folder: Path, reference: Reference, stage: str) -> list[str]:
    """How the outs of a stage differ from those of the undisturbed run, and what was left behind."""
    found = [f"{path} differs" for path in sorted({path for path, _ in sums_of(folder, stage) ^ sums_of(reference.folder, stage)})]
    if read_lock(folder)[stage] != read_lock(reference.folder)[stage]:
        found.append("its entry in dvc.lock differs")
    found += [f"{path} was left behind" for path in left_behind(folder)]
    return found + [f"MLflow has {run}" for run in runs_of(folder) if run[1:] != ("FINISHED", 1)]


def end_differences(folder: Path, reference: Reference) -> list[str]:
    """The differences after the whole pipeline ran: in every stage, dvc.lock, git status and MLflow's runs."""
    found = [line for stage in reference.seconds for line in differences(folder, reference, stage)]
    if (folder / "dvc.lock").read_text() != (reference.folder / "dvc.lock").read_text():
        found.append("dvc.lock differs")
    if type_in(folder, "git", "status", "--porcelain") != type_in(reference.folder, "git", "status", "--porcelain"):
        found.append("git sees other changes")
    if (runs := runs_of(folder)) != (wanted := runs_of(reference.folder)):
        found.append(f"MLflow has the runs {runs}, undisturbed {wanted}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Spread the kills over the stages, and print how many outcomes were identical."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    chance, outcomes = random.Random(parsed.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        pristine = prepare(Path(temporary) / "pristine")
        disturbed = copy(pristine, Path(temporary) / "disturbed")
        reference = run_undisturbed(pristine)
        for number, stage in enumerate(reference.seconds):
            kills = (parsed.kills + number) // len(reference.seconds)
            outcomes += [outcome for outcome in storm(disturbed, reference, stage, kills, 1, chance) if outcome.kills]
        at_the_end = end_differences(disturbed, reference)
    alike = sum(not outcome.differences for outcome in outcomes)
    mended = sum(outcome.mended for outcome in outcomes)
    print(*at_the_end, f"{len(outcomes)} kills, {alike} identical outcomes; {mended} times DVC's own files had to be repaired", sep="\n")
    return 0 if alike == len(outcomes) and not at_the_end else 1


if __name__ == "__main__":
    raise SystemExit(main())
