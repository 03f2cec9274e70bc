"""Twelve weeks of a project on a schedule, played with a clock of their own: each week ends with the right champion and says why.

The test pictures have a folder of their own in the source, so that each week changes what is learned, and only some change what is judged.
"""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.__main__ import main
from pipeline.promotion import journal
from tests.checkout import clone, commit, set_params, type_in, user_environment
from tests.e2e.conftest import write_weights
from tests.projects import NOBODY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLASSES = range(6)
TESTED, FEW, MANY = 40, 3, 60  # pictures per class
DIGITS = load_digits()
NUMBERS = {label: np.flatnonzero(DIGITS.target == label) for label in range(10)}


def write(folder, split, label, numbers, name=None):
    """Write some digits of a class into the folder of a class, by default its own."""
    place = folder / split / (name or str(label))
    place.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray((DIGITS.images[number] * 255 / 16).round().astype(np.uint8)).save(place / f"{number:04d}.png")


def learn(folder, label, count, name=None):
    """Let a class have so many pictures to learn from."""
    write(folder, "train", label, NUMBERS[label][TESTED : TESTED + count], name)


class Story:
    """A clone, its pictures, its clock, and what each week brought."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.clone, self.pictures, self.patch = folder / "clone", folder / "pictures", patch
        self.time = datetime(2027, 1, 4, 3, tzinfo=UTC)

    def type_in(self, *arguments: str, code: int | None = 0) -> str:
        """Run a command of ours in this process, whose clock is the story's. Its exit code must be `code`; None: any."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                main(arguments)
                found = 0
            except SystemExit as error:
                found = int(error.code or 0)
        assert code in (None, found), printed.getvalue()
        return printed.getvalue()

    def week(self, code: int = 0, days: float = 7) -> dict:
        """Let a week pass, and retrain."""
        self.time += timedelta(days=days)
        return json.loads(self.type_in("retrain", code=code).splitlines()[-1])

    def entries(self):
        return journal.read_journal()

    def champion(self) -> str:
        return journal.champion(self.entries()).sha256

    def killed_at(self, step: int) -> None:
        """Retrain in a process that kills itself at a step of keeping."""
        script = (
            "import os, signal, sys\n"
            "from datetime import datetime\n"
            "from pipeline.promotion import journal, keep, retraining\n"
            f"time = datetime.fromisoformat({self.time.isoformat()!r})\n"
            "for module in (journal, keep, retraining): module.now = lambda: time\n"
            "steps = list(keep.STEPS)\n"
            f"steps[{step}] = (steps[{step}][0], lambda work: os.kill(os.getpid(), signal.SIGKILL))\n"
            "keep.STEPS = tuple(steps)\n"
            "from pipeline.__main__ import main\n"
            "main(['retrain'])\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=self.clone, env=user_environment(self.clone), capture_output=True, text=True, check=False
        )
        assert result.returncode == -9, result.stderr


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A clone with a DVC remote and a schedule of its own, in which nothing has run."""
    folder = tmp_path_factory.mktemp("story")
    for label in CLASSES:
        write(folder / "pictures", "test", label, NUMBERS[label][:TESTED])
        learn(folder / "pictures", label, FEW)
    clone(folder / "clone")
    backbone = {"name": "test_resnet", "weights": "../test_resnet.safetensors", "digest": write_weights(folder / "test_resnet.safetensors")}
    changes = {
        "threads": 1, "download.source": "../pictures", "backbone": backbone, "embed.image_size": 32, "split.similarity": None,
        "split.test": "test", "split.val": 0.3, "models.finetuned": {"regime": "finetuned", "epochs": 1}, "gate.challenger": "baseline",
        "gate.error_rate": 0.3, "gate.tolerance": 0.05, "gate.looks": 12, "gate.latency": None, "gate.log_loss": None, "gate.ece": None,
    }  # fmt: skip
    set_params(folder / "clone", changes)
    type_in(folder / "clone", "dvc", "remote", "add", "--default", "storage", "../storage")
    commit(folder / "clone", "a project")
    with pytest.MonkeyPatch.context() as patch:
        told = Story(folder, patch)
        for name, value in user_environment(folder / "clone").items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder / "clone")
        patch.setenv("DVC_ROOT", str(folder / "clone"))
        from pipeline.promotion import by_hand, keep, retraining

        for module in (journal, keep, retraining, by_hand):
            if hasattr(module, "now"):
                patch.setattr(module, "now", lambda: told.time)
        yield told


def test_week_1_the_first_model_is_promoted_by_the_stated_rule(story):
    facts = story.week()
    assert (facts["decision"], facts["outcome"], facts["published"], facts["undone"]) == ("PROMOTE", "DONE", True, [])
    assert story.champion() == story.entries()[-1].sha256
    assert type_in(story.clone, "dvc", "data", "status", "--not-in-remote").count("champions/") == 0
    assert type_in(story.clone, "git", "status", "--porcelain") == ""


def test_week_2_nothing_is_new_and_nothing_happens(story):
    before = story.entries()
    facts = story.week()
    assert (facts["outcome"], facts["ran"], facts["summary"], story.entries()) == ("DONE", [], "nothing changed", before)


def test_week_3_new_good_pictures_promote(story):
    first = story.champion()
    for label in CLASSES:
        learn(story.pictures, label, 20)
    facts = story.week()
    assert (facts["decision"], facts["outcome"]) == ("PROMOTE", "DONE")
    entry = story.entries()[-1]
    assert (entry.champion, story.champion() != first) == (first, True)


def test_week_4_mislabelled_pictures_are_kept_out(story):
    champion = story.champion()
    saved = shutil.copytree(story.pictures, story.pictures.with_name("saved"))
    for label in CLASSES:
        write(story.pictures, "train", label, NUMBERS[label][TESTED + 20 : TESTED + 90], str((label + 1) % len(CLASSES)))
    facts = story.week(code=11)
    assert (facts["decision"], story.champion()) == ("REJECT", champion)
    assert "worse" in facts["reasons"][0]
    shutil.rmtree(story.pictures)
    saved.rename(story.pictures)


def test_week_5_a_model_that_is_worse_in_one_class_is_kept_out_though_its_mean_is_up(story):
    champion = story.champion()
    saved = shutil.copytree(story.pictures, story.pictures.with_name("saved"))
    for label in CLASSES:
        learn(story.pictures, label, MANY)
    for path in sorted((story.pictures / "train/1").iterdir())[2:]:
        path.rename(story.pictures / "train/2" / path.name)
    facts = story.week(code=11)
    values = facts["figures"]["values"]
    assert (facts["decision"], story.champion()) == ("REJECT", champion)
    assert values["challenger"]["value"] > values["champion"]["value"]
    assert ": 1 (" in facts["reasons"][0]
    shutil.rmtree(story.pictures)
    saved.rename(story.pictures)


def test_week_6_a_new_class_promotes_and_the_journal_says_so(story):
    champion = story.champion()
    learn(story.pictures, 6, 20)
    write(story.pictures, "test", 6, NUMBERS[6][:TESTED])
    facts = story.week()
    assert (facts["decision"], facts["outcome"], story.champion() != champion) == ("PROMOTE", "DONE", True)
    assert "6" in " ".join([*facts["reasons"]])


def test_week_7_a_renamed_class_promotes_under_its_new_name(story):
    champion = story.champion()
    for split in ("train", "test"):
        (story.pictures / split / "6").rename(story.pictures / split / "six")
    facts = story.week()
    assert (facts["decision"], facts["outcome"], story.champion() != champion) == ("PROMOTE", "DONE", True)
    assert "six" in " ".join(facts["reasons"])


def test_week_8_with_the_tracking_server_away_all_else_is_done_and_mlflow_is_made_up_for(story):
    for label in range(7):
        learn(story.pictures, label, MANY, "six" if label == 6 else None)
    with story.patch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        facts = story.week(code=15)
    decision, champion = facts["decision"], story.champion()
    assert (facts["published"], bool(facts["undone"])) == (False, True)
    facts = story.week(days=1)
    assert (facts["published"], facts["undone"], story.champion()) == (True, [], champion)
    assert alias("champion") == champion
    assert decision in ("PROMOTE", "HOLD")


def alias(name: str) -> str:
    """The sha256 of the version that an alias of MLflow's registry names."""
    from pipeline.tracking.connection import connect
    from pipeline.tracking.registry import EXPERIMENT

    return connect()[0].get_model_version_by_alias(EXPERIMENT, name).tags["sha256"]


def test_week_9_with_the_remote_away_nothing_is_promoted_until_it_is_back(story):
    champion, before = story.champion(), story.entries()
    storage = story.clone.parent / "storage"
    story.patch.setattr("sys.stderr", io.StringIO())
    set_params(story.clone, {"train_baseline.l2_grid": [0.00031]})
    storage.rename(storage.with_name("away"))
    storage.write_text("no folder")
    facts = story.week(code=15)
    assert (story.entries(), story.champion()) == (before, champion)
    assert any("remote" in line for line in facts["undone"])
    storage.unlink()
    storage.with_name("away").rename(storage)
    facts = story.week(code=10, days=1)
    assert (facts["undone"], len(story.entries())) == ([], len(before) + 1)


def test_week_10_an_approval(story):
    champion = story.champion()
    set_params(story.clone, {"gate.require_approval": True, "gate.max_age_days": 20.0, "gate.tolerance": 0.2})
    facts = story.week(code=12, days=60)
    assert (facts["decision"], story.champion()) == ("PENDING", champion)
    story.type_in("approve", "--reason", "looked at it")
    assert story.champion() == story.entries()[-1].sha256 != champion
    assert story.entries()[-1].verdict == "APPROVE"


def test_week_11_a_rollback_lasts(story):
    replaced = story.champion()
    story.type_in("rollback", "--reason", "a complaint")
    assert (story.entries()[-1].verdict, story.champion() != replaced) == ("ROLLBACK", True)
    champion = story.champion()
    assert alias("champion") == champion
    story.week()
    assert story.champion() == champion


def test_week_12_a_stale_champion_is_replaced_by_one_that_is_not_inferior(story):
    champion = story.champion()
    set_params(story.clone, {"gate.require_approval": False, "train_baseline.l2_grid": [0.00029]})
    facts = story.week(days=200)
    assert (facts["decision"], facts["outcome"], story.champion() != champion) == ("PROMOTE", "DONE", True)
    assert "days" in facts["reasons"][0]


def test_a_kill_in_the_middle_of_each_step_ends_as_without_one(story):
    from pipeline.promotion.keep import STEPS

    set_params(story.clone, {"gate.max_age_days": None})  # or the weeks below make the champion stale
    for step in range(len(STEPS)):
        set_params(story.clone, {"train_baseline.l2_grid": [0.00032 + 0.00001 * step]})
        before = story.entries()
        story.time += timedelta(days=7)
        story.killed_at(step)
        facts = json.loads(story.type_in("retrain", code=None).splitlines()[-1])
        assert (facts["decision"], facts["undone"]) == ("HOLD", [])
        assert len(story.entries()) == len(before) + 1
        assert type_in(story.clone, "git", "status", "--porcelain") == ""
        assert alias("challenger") == story.entries()[-1].sha256


def test_at_the_end_the_journal_says_why_and_all_places_name_the_same_champion(story):
    champion = story.champion()
    assert all(entry.reason for entry in story.entries())
    assert champion in story.type_in("champion")
    assert champion in story.type_in("verify")
    assert story.type_in("history").count("\n") == len(story.entries()) + 1
    assert alias("champion") == champion


def test_a_fresh_clone_on_another_machine_agrees(story, tmp_path):
    second = tmp_path / "second"
    type_in(story.clone.parent, "git", "clone", "-q", "clone", str(second))
    type_in(second, "dvc", "remote", "modify", "--local", "storage", "url", str(story.clone.parent / "storage"))
    type_in(second, "dvc", "pull")
    picture = str(next((story.pictures / "test/0").iterdir()))
    assert type_in(second, "pipeline", "champion") == type_in(story.clone, "pipeline", "champion")
    assert type_in(second, "pipeline", "predict", picture) == type_in(story.clone, "pipeline", "predict", picture)
    assert story.champion() in type_in(second, "pipeline", "verify")
