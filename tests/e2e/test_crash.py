"""What ends a run before its time: kills, a second run beside it, a full disk. The next one ends as if nothing had been."""

import random
import re
import shutil
import subprocess
import time

import pytest
import yaml

from tests import crash
from tests.checkout import copy, user_environment
from tests.crash import Reference, differences, end_differences, prepare, run_undisturbed, storm
from tests.e2e.conftest import EPOCHS
from tests.repro import WAYS, Repro, files_of, left_behind, outs_of, read_lock

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def reference(digits, all_stages):
    """The clone in which the pipeline ran and nothing disturbed it. Kills may hit within the first seconds of a stage."""
    return Reference(digits[0], dict.fromkeys(all_stages, 4.0))


@pytest.fixture
def ran(copy_of_digits):
    """A copy of it."""
    return copy_of_digits()


@pytest.mark.slow
def test_a_pipeline_that_is_killed_twice_in_every_stage_ends_like_one_that_is_not(tmp_path):
    pristine = prepare(tmp_path / "pristine")
    disturbed, chance = copy(pristine, tmp_path / "clone"), random.Random(0)
    reference = run_undisturbed(pristine)
    outcomes = [outcome for stage in reference.seconds for outcome in storm(disturbed, reference, stage, 2, 2, chance)]
    assert sum(outcome.kills for outcome in outcomes) == 2 * len(reference.seconds)
    assert [line for outcome in outcomes for line in outcome.differences] == []
    assert end_differences(disturbed, reference) == []


@pytest.mark.slow
def test_after_a_hundred_kills_every_outcome_is_identical():
    assert crash.main(["100"]) == 0


@pytest.mark.parametrize("stage", ["split", pytest.param("evaluate_baseline@baseline", marks=pytest.mark.slow)])
def test_a_stage_that_is_killed_once_in_each_way_ends_like_one_that_is_not(reference, ran, stage):
    forget_stages(ran, stage)
    outcomes = list(storm(ran, reference, stage, len(WAYS), len(WAYS), random.Random(stage)))
    assert sum(outcome.kills for outcome in outcomes) == len(WAYS)
    assert [line for outcome in outcomes for line in outcome.differences] == []


def forget_stages(folder, *stages):
    """Let DVC know nothing of some stages."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    for stage in stages:
        del lock["stages"][stage]
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    shutil.rmtree(folder / ".dvc/cache/runs")


def test_training_that_is_killed_between_two_epochs_goes_on_where_it_was(reference, ran):
    forget_stages(ran, "train@finetuned")
    repro, written = Repro(ran), set()
    while len(written) < EPOCHS - 1 and not repro.is_over():
        written |= {path.stat().st_mtime_ns for path in ran.glob(".cache/checkpoints/finetuned/[!.]*")}
        time.sleep(0.01)
    repro.kill("SIGKILL to all")
    code, output = Repro(ran).end()
    assert (code, len(re.findall(rf"finetuned: .*epoch [1-{EPOCHS}] of {EPOCHS}\n", output))) == (0, 1)
    assert [line for stage in reference.seconds for line in differences(ran, reference, stage)] == []


def test_two_runs_at_once_damage_nothing(reference, ran):
    forget_stages(ran, "split", "evaluate_baseline@baseline")
    for code, output in [run.end() for run in (Repro(ran), Repro(ran))]:
        assert code == 0 or "is busy" in output or "Unable to acquire lock" in output
    assert Repro(ran).end()[0] == 0
    assert [line for stage in reference.seconds for line in differences(ran, reference, stage)] == []


def run_alone(folder, stage, before=":"):
    """Run a stage by hand in bash, after another command, its outs removed as DVC would."""
    for out in outs_of(folder, stage):
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    command = f"{before}; exec {read_lock(folder)[stage]['cmd']}"
    return subprocess.run(["bash", "-c", command], cwd=folder, env=user_environment(folder), capture_output=True, text=True, check=False)


def assert_that_it_ended_for_lack_of_room(folder, stage, result):
    """Exit code 1, one line, nothing half-written."""
    (reason,) = {"File too large", "No space left on device"} & {result.stderr.partition(": ")[2].partition(";")[0]}
    out = read_lock(folder)[stage]["cmd"].split()[-1].replace("{model}", stage.partition("@")[2])
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"{out}: {reason}; ")
    assert left_behind(folder) == []


@pytest.mark.parametrize(
    "stage", ["split", *(pytest.param(name, marks=pytest.mark.slow) for name in ("train_baseline", "train@finetuned"))]
)
def test_a_stage_that_may_not_write_its_largest_file_says_so_and_ends_well_when_it_may(reference, ran, stage):
    sizes = {file.relative_to(ran): file.stat().st_size for out in outs_of(ran, stage) for file in files_of(out)}
    largest = max(sizes, key=sizes.get)
    shutil.rmtree(ran / ".cache")
    result = run_alone(ran, stage, f"ulimit -f {(sizes[largest] - 1) // 1024}")  # in units of 1024 bytes
    assert_that_it_ended_for_lack_of_room(ran, stage, result)
    assert not (ran / largest).exists()
    assert run_alone(ran, stage).returncode == 0
    assert differences(ran, reference, stage) == []


def may_mount():
    """Whether this user may mount a file system where no other process sees it."""
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here")
def test_a_stage_on_a_full_file_system_says_so_and_ends_well_on_a_larger_one(reference, ran):
    mounted = "mount -t tmpfs -o size=16k tmpfs results; trap 'ls -A results' EXIT"
    command = ["unshare", "-rm", "bash", "-c", f"{mounted}; {read_lock(ran)['evaluate_baseline@baseline']['cmd']}"]
    result = subprocess.run(command, cwd=ran, env=user_environment(ran), capture_output=True, text=True, check=False)
    assert_that_it_ended_for_lack_of_room(ran, "evaluate_baseline@baseline", result)
    assert result.stdout == ""
    assert run_alone(ran, "evaluate_baseline@baseline").returncode == 0
    assert differences(ran, reference, "evaluate_baseline@baseline") == []
