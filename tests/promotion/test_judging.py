"""What the gate gets: both models' answers on the same pictures, by the bytes of a picture and the labels of today, and both measured."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table, write_json
from pipeline.pictures.images import Preprocessing
from pipeline.pictures.manifest import sha256_of_pictures, write_manifest
from pipeline.promotion import champions, gate, judging
from pipeline.promotion.champions import store
from pipeline.promotion.journal import Entry, champion_dir
from pipeline.promotion.judging import choose_challenger, judgement_key, measure_latency, prepare
from pipeline.serving.predictor import Predictor
from tests.projects import PARAMS
from tests.scored import MANIFEST, NAMES, make_scored, write_scored, write_test_pictures
from tests.stored import write_model

GATE = gate.Params.model_validate(PARAMS["gate"])


@pytest.fixture
def champion(tmp_path, monkeypatch):
    """The entry of the champion `own`, which was stored when there were 12 test pictures. DVC does not run, and rounds are short."""
    monkeypatch.setattr(judging, "_ROUND_SECONDS", 0.001)
    sha256 = make_scored(tmp_path, monkeypatch)
    monkeypatch.setattr(champions, "_fault_of_dvc", lambda *arguments: None)
    store("own")
    for folder in ("models", "results", "data"):
        shutil.rmtree(folder)
    return Entry("2026-11-27T03:00:00Z", "PROMOTE", "the first", "own", sha256, None, "key")


def test_at_an_equal_test_set_both_have_the_rows_that_were_stored(champion):
    pictures = write_test_pictures(range(12))
    sha256 = write_scored("next", seed=1)
    first, second, test = prepare("next", champion)
    assert (first.name, first.sha256, first.class_names, first.megabytes) == ("next", sha256, NAMES, 4.0)
    assert (second.name, second.sha256, second.class_names, second.megabytes) == ("own", champion.sha256, NAMES, 3.0)
    assert list(first.rows) == read_table(Path("results/next/predictions.csv"))
    assert list(second.rows) == read_table(champion_dir(champion.sha256) / "results/predictions.csv")
    assert test == gate.TestSet(sha256_of_pictures(pictures), frozenset(picture.image_id for picture in pictures))
    assert not Path(".cache/rescored").exists()
    assert min(first.milliseconds, second.milliseconds) > 0


def test_what_a_server_counted_in_the_shadow_is_a_sentence_of_the_challenger(champion):
    write_test_pictures(range(12))
    sha256 = write_scored("next", seed=1)
    facts = {
        "champion": champion.sha256, "challenger": sha256, "since": "2026-11-27T03:00:00Z", "until": "2026-11-28T03:00:00Z",
        "pictures": 1000, "agreed": 981, "mean_difference": 0.01234,
        "answers": [
            {"champion": "ants", "challenger": "ants", "pictures": 981},
            {"champion": "ants", "challenger": "bees", "pictures": 19},
        ],
    }  # fmt: skip
    path = judging.shadow_path(champion.sha256, sha256)
    write_json(path, facts)
    first, second, _ = prepare("next", champion)
    expected = "in shadow, it agreed with the champion on 981 of 1,000 pictures since 2026-11-27T03:00:00Z; "
    assert (first.shadow, second.shadow) == (f"{expected}their probabilities differ by 0.012 on average", "")
    for change in ({"agreed": 982}, {"champion": "0" * 64}, {"since": "then"}, {"mean_difference": "much"}, {"answers": None}):
        write_json(path, facts | change)
        assert judging.shadow_sentence(champion.sha256, sha256) == ""


def test_without_a_champion_there_is_one_candidate(champion):
    pictures = write_test_pictures(range(12))
    write_scored("next", seed=1)
    first, second, test = prepare("next", None)
    assert (len(first.rows), second, test) == (12, None, gate.TestSet(sha256_of_pictures(pictures), frozenset()))


def test_new_test_pictures_are_answered_by_the_champions_own_model_and_once(champion, monkeypatch):
    pictures = write_test_pictures(range(4, 20))
    write_scored("next", seed=1)
    first, second, test = prepare("next", champion)
    probs = Predictor.load(champion_dir(champion.sha256) / "model.onnx", 1).predict([Path("data/splits/test") / p.path for p in pictures])
    assert [row["image_id"] for row in second.rows] == [row["image_id"] for row in first.rows] == [p.image_id for p in pictures]
    assert [float(row["probability"]) for row in second.rows] == pytest.approx(probs.max(axis=1), abs=1e-5)
    assert [row["predicted"] for row in second.rows] == [NAMES[number] for number in probs.argmax(axis=1)]
    assert (test.old, test.left) == (frozenset(p.image_id for p in pictures if int(Path(p.path).stem) < 12), 4)
    monkeypatch.setattr("pipeline.evaluation.answers.write_probs", lambda *arguments: pytest.fail("answered twice"))
    assert prepare("next", champion)[1].rows == second.rows


def test_renamed_pictures_are_known_by_their_bytes(champion):
    write_test_pictures(range(12))
    pictures = write_test_pictures(range(12), dict.fromkeys((1, 4, 7), "ants"))
    write_scored("next", seed=1)
    _, second, test = prepare("next", champion)
    assert (len(test.old), test.left) == (12, 0)
    stored = {row["image_id"].split("/")[1]: row for row in read_table(champion_dir(champion.sha256) / "results/predictions.csv")}
    found = {row["image_id"].split("/")[1]: row for row in second.rows}
    assert [picture.label for picture in pictures] == [row["label"] for row in second.rows]
    assert {name: row["predicted"] for name, row in found.items()} == {name: row["predicted"] for name, row in stored.items()}


def test_a_corrected_label_has_its_own_probability(champion):
    write_test_pictures(range(12), {1: "wasps"})
    write_scored("next", seed=1)
    row = next(row for row in prepare("next", champion)[1].rows if row["image_id"] == "wasps/01.png")
    results = champion_dir(champion.sha256) / "results"
    number = [row["image_id"] for row in read_table(results / "test.csv")].index("bees/01.png")
    probability = np.load(results / "predictions.npy")[number, NAMES.index("wasps")]
    assert (row["label"], float(row["label_probability"])) == ("wasps", pytest.approx(probability, abs=1e-6))


def test_a_class_that_the_champion_does_not_know_has_the_probability_0(champion):
    write_test_pictures(range(15), {12: "hornets", 0: "hornets"})
    write_scored("next", seed=1, names=("ants", "bees", "hornets", "wasps"))
    first, second, _ = prepare("next", champion)
    rows = [row for row in second.rows if row["label"] == "hornets"]
    assert [(row["image_id"], row["label_probability"]) for row in rows] == [("hornets/00.png", "0.000000"), ("hornets/12.png", "0.000000")]
    assert all(row["predicted"] in NAMES for row in second.rows)
    assert (first.class_names, second.class_names) == (("ants", "bees", "hornets", "wasps"), NAMES)


def test_pictures_that_one_of_them_learned_from_are_judged_of_neither(champion):
    pictures = write_test_pictures(range(12))
    write_scored("next", seed=1, learned=pictures[:2])
    first, second, test = prepare("next", champion)
    ids = [picture.image_id for picture in pictures[2:]]
    assert [row["image_id"] for row in first.rows] == [row["image_id"] for row in second.rows] == ids
    assert (test.learned, test.old, test.sha256) == (2, frozenset(ids), sha256_of_pictures(pictures))


def test_a_test_set_of_learned_pictures_alone_is_refused(champion):
    write_scored("next", seed=1, learned=write_test_pictures(range(12)))
    with pytest.raises(PipelineError, match=r"^data/splits/test: the models learned from each of the 12 pictures; add test pictures"):
        prepare("next", champion)


def test_results_of_other_test_pictures_are_refused(champion):
    pictures = write_test_pictures(range(12))
    write_scored("next", seed=1)
    write_manifest(MANIFEST, pictures[1:])
    with pytest.raises(PipelineError, match=r"^results/next/scores\.json: is not about models/next/model\.onnx and the test pictures"):
        prepare("next", champion)


@pytest.mark.parametrize("numbers", [range(12), range(20)])
def test_a_test_split_without_its_pictures_is_one_line(champion, numbers):
    write_test_pictures(numbers)
    write_scored("next", seed=1)
    shutil.rmtree("data/splits")
    with pytest.raises(PipelineError, match=r"^data/splits/test: a picture cannot be read \(.*\); run `dvc repro split`$"):
        prepare("next", champion)


def test_the_pictures_of_a_large_set_are_read_from_their_shard(champion):
    pictures = write_test_pictures(range(15))
    write_scored("next", seed=1)
    whole = prepare("next", champion)[1].rows
    shutil.rmtree(".cache/rescored")
    contents = [(Path("data/splits/test") / picture.path).read_bytes() for picture in pictures]
    Path("data/raw").mkdir()
    Path("data/raw/0.tar").write_bytes(b"".join(contents))
    starts = np.cumsum([0, *map(len, contents)])
    write_manifest(
        MANIFEST,
        [
            replace(picture, shard="../../raw/0.tar", offset=int(start), size=len(content))
            for picture, start, content in zip(pictures, starts, contents, strict=False)
        ],
    )
    shutil.rmtree("data/splits")
    assert prepare("next", champion)[1].rows == whole


def slow(milliseconds):
    """A model that takes so long for each picture."""
    return SimpleNamespace(preprocessing=Preprocessing(8, 1.0, "bicubic"), predict_pixels=lambda pixels: time.sleep(milliseconds / 1000))


def test_the_latency_is_that_of_one_picture_of_each_model(champion, monkeypatch):
    monkeypatch.setattr(judging, "_ROUND_SECONDS", 0.05)
    picture = Path("data/splits/test") / write_test_pictures([0])[0].path
    fast, half = measure_latency([slow(2), slow(20)], picture)
    assert 2 <= fast < half
    assert 20 <= half < 40


def test_several_pictures_are_run_together(champion, monkeypatch):
    monkeypatch.setattr(judging, "_ROUND_SECONDS", 1e-4)
    shapes = set()
    model = SimpleNamespace(preprocessing=Preprocessing(8, 1.0, "bicubic"), predict_pixels=lambda pixels: shapes.add(pixels.shape))
    measure_latency([model], Path("data/splits/test") / write_test_pictures([0])[0].path, 5)
    assert shapes == {(5, 8, 8, 3)}


def test_auto_is_the_lowest_val_loss_and_a_name_is_itself(champion):
    write_test_pictures(range(12))
    Path("data/manifest.csv").rename("elsewhere.csv")  # these models were trained on no manifest
    write_model(Path("models/own"), val_losses=(0.5,))
    write_model(Path("models/next"), val_losses=(0.2,))
    assert choose_challenger(GATE) == "next"
    assert choose_challenger(GATE.model_copy(update={"challenger": "own"})) == "own"
    with pytest.raises(PipelineError, match=r"^params\.yaml: gate\.challenger: there is no model 'nxt'; did you mean 'next'\?$"):
        choose_challenger(GATE.model_copy(update={"challenger": "nxt"}))


def test_a_key_follows_whatever_decides_a_verdict_and_nothing_else():
    def key(first="a", second="b", test="c", is_stale=False, **changes):
        return judgement_key(first, second, test, GATE.model_copy(update=changes), is_stale)

    assert key() == key(hook="notify", challenger="own")
    others = [key(first="x"), key(second=None), key(test="x"), key(is_stale=True), key(margin=0.01), key(require_approval=True)]
    assert len({key(), *others}) == 1 + len(others)
