"""A story: a folder of a hundred pictures gains one on each of five days, and what is said of the scores stays true."""

import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
import yaml

from pipeline.commands.upkeep import refresh
from pipeline.core.files import read_json, sha256_of_file
from pipeline.evaluation.comparison import other_test_set
from pipeline.pictures.manifest import read_manifest, sha256_of_pictures
from pipeline.stages import backbone, download, embed, evaluate, split, train_baseline
from tests.checkout import make_pictures, set_params
from tests.projects import PARAMS, TREES, enter, run

DAYS = range(6)
TRAINED = (0, 3)  # on day 3 from the model of day 0
SPLIT = {**PARAMS["split"], "val": 0.15, "test": 0.15, "similarity": None}
LIMITS = {**PARAMS["download"]["limits"], "files": 1000}


@dataclass
class Story:
    """By day: the pictures of each split and the digest of the test set; where a model was trained: its scores and what was printed."""

    splits: list[dict[str, set[str]]] = field(default_factory=list)
    test_sets: list[str] = field(default_factory=list)
    scores: dict[int, dict] = field(default_factory=dict)
    metrics: dict[int, dict] = field(default_factory=dict)
    printed: dict[int, str] = field(default_factory=dict)

    def test(self, day):
        return self.splits[day]["test"]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The stages, run on each day; seed 38 is one by which the test set gains and loses pictures, and also stays."""
    root, told = tmp_path_factory.mktemp("growth"), Story()
    make_pictures(root / "all", 53)
    (root / "params.yaml").write_text(
        yaml.safe_dump({**PARAMS, "seed": 38, "split": SPLIT, "download": {**PARAMS["download"], "limits": LIMITS}})
    )
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        for day in DAYS:
            for label, count in (("left", 50 + (day + 1) // 2), ("right", 50 + day // 2)):
                (root / "pictures" / label).mkdir(parents=True, exist_ok=True)
                for path in sorted((root / "all" / label).iterdir())[:count]:
                    shutil.copy(path, root / "pictures" / label)
            refresh()
            run(download, "download", "data/raw", "data/source.json")
            run(split, "split", "data/raw", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
            table = read_manifest(Path("data/manifest.csv"))
            told.splits.append({name: {picture.image_id for picture in table.split(name)} for name in ("train", "val", "test")})
            told.test_sets.append(sha256_of_pictures(table.split("test")))
            if day in TRAINED:
                train_on(root, told, day)
    return told


def train_on(root, told, day):
    """Train the baseline, on day 0 from nothing and later from the model before, and score it."""
    run(backbone, "backbone", "models/backbone")
    run(embed, "embed", *TREES, "models/backbone", "data/embeddings")
    made = ("data/embeddings", "data/manifest.csv", "models/backbone", "models/baseline", "models/out_of_fold.csv")
    run(train_baseline, "train_baseline", *made)
    with redirect_stdout(StringIO()) as printed:
        scored = ("data/splits/test", "data/manifest.csv", "results/baseline", "metrics/baseline.json")
        run(evaluate, "evaluate", "models/baseline", *scored)
    told.printed[day] = printed.getvalue()
    told.scores[day], told.metrics[day] = (read_json(root / name) for name in ("results/baseline/scores.json", "metrics/baseline.json"))
    shutil.copytree(root / "models/baseline", root / "before", dirs_exist_ok=True)
    set_params(root, {"backbone.weights": "before", "backbone.digest": sha256_of_file(root / "before/model.safetensors")})


def test_no_test_picture_was_or_will_be_a_training_picture(story):
    assert [len(set().union(*splits.values())) for splits in story.splits] == [100, 101, 102, 103, 104, 105]
    trained = [splits["train"] for splits in story.splits]
    assert [(one, other) for one in DAYS for other in DAYS if story.test(one) & trained[other]] == []


def test_the_test_set_moves_by_a_picture_a_day_at_most_and_its_digest_tells_when(story):
    moves = [story.test(day) ^ story.test(day - 1) for day in DAYS[1:]]
    assert {len(move) for move in moves} == {0, 1, 2}  # 2: a new picture takes the place of one, which becomes a val picture
    changed = [story.test_sets[day] != story.test_sets[day - 1] for day in DAYS[1:]]
    assert changed == [bool(move) for move in moves]


def test_scores_of_another_test_set_are_said_to_be_so(story):
    first, later = (story.scores[day]["test_sha256"] for day in TRAINED)
    assert [first, later] == [story.test_sets[day] for day in TRAINED]
    assert [story.metrics[day]["baseline"]["test_set"] for day in TRAINED] == [first[:8], later[:8]]
    assert (other_test_set(first, later), other_test_set(later, later)) == (["the scores before are of other test pictures"], [])


def test_a_test_picture_that_an_earlier_model_knew_as_val_is_counted_and_said_to_be_so(story):
    known = story.test(3) & story.splits[0]["val"]
    assert (len(known), len(story.test(3) & story.splits[0]["train"])) == (1, 0)
    assert [story.scores[day]["learned_test_pictures"] for day in TRAINED] == [0, 1]
    assert story.printed[0] == ""
    assert f"learned from 1 of the {len(story.test(3))} test pictures" in story.printed[3]
