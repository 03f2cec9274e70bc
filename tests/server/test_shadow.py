"""A challenger answers in the shadow: what it agrees on is counted and kept for the gate, and no answer waits for it."""

import io
import logging
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.core.files import read_json
from pipeline.promotion.judging import read_shadow, shadow_path, shadow_sentence
from pipeline.server import shadow as module
from pipeline.server.engine import Answer, load_served
from pipeline.server.shadow import Shadow, mean_difference
from tests.stored import write_model

NAMES = ("ants", "bees", "wasps")


def draw(seed):
    """The bytes of a PNG file of random pixels, of a size of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (10 + seed % 5, 12, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The served model and a challenger, whose classes are in another order."""
    folder = tmp_path_factory.mktemp("models")
    first = load_served("first", write_model(folder / "first", NAMES, seed=1), 1)
    second = load_served("second", write_model(folder / "second", ("bees", "wasps", "ants"), seed=2), 1)
    return first, second


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The project's root is a folder of this test."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def answer(model, content):
    return Answer(model.predictor.predict([content])[0], None, None, model)


def show(shadow, model, contents):
    """Let a shadow see answers, and wait until it has answered, too."""
    done = shadow.status["against"].get(model.sha256, {"pictures": 0})["pictures"]
    for content in contents:
        assert shadow.offer(content, answer(model, content))
    end = time.monotonic() + 20
    while shadow.status["against"].get(model.sha256, {"pictures": 0})["pictures"] < done + len(contents):
        assert time.monotonic() < end
        time.sleep(0.005)


def compare(models, contents):
    """By hand: how often both predict the same class, and the mean difference of their probabilities."""
    first, second = (dict_of(model, contents) for model in models)
    agreed = sum(max(one, key=one.get) == max(two, key=two.get) for one, two in zip(first, second, strict=True))
    differences = [np.mean([abs(one[name] - two[name]) for name in NAMES]) for one, two in zip(first, second, strict=True)]
    return agreed, float(np.mean(differences))


def dict_of(model, contents):
    probs = model.predictor.predict(contents)
    return [dict(zip(model.predictor.class_names, row.tolist(), strict=True)) for row in probs]


def test_agreement_is_counted_by_class_and_kept_for_the_gate(models):
    contents = [draw(seed) for seed in range(30)]
    shadow = Shadow(models[1])
    show(shadow, models[0], contents)
    shadow.close()
    agreed, difference = compare(models, contents)
    assert 0 < agreed < 30
    facts = read_json(shadow_path(models[0].sha256, models[1].sha256))
    assert (facts["champion"], facts["challenger"]) == (models[0].sha256, models[1].sha256)
    assert (facts["pictures"], facts["agreed"], facts["mean_difference"]) == (30, agreed, pytest.approx(difference, abs=1e-6))
    assert sum(row["pictures"] for row in facts["answers"] if row["champion"] == row["challenger"]) == agreed
    assert sum(row["pictures"] for row in facts["answers"]) == 30
    sentence = f"in shadow, it agreed with the champion on {agreed} of 30 pictures since {facts['since']}; their probabilities differ by"
    assert shadow_sentence(models[0].sha256, models[1].sha256).startswith(sentence)
    assert shadow_sentence(models[1].sha256, models[0].sha256) == ""


def test_a_server_that_starts_again_and_another_one_add_to_the_same_file(models):
    contents = [draw(seed) for seed in range(12)]
    shadows = [Shadow(models[1], flush_seconds=0.01) for _ in range(2)]
    for shadow, part in zip(shadows, (contents[:4], contents[4:8]), strict=True):
        show(shadow, models[0], part)
    for shadow in shadows:
        shadow.close()
    shadow = Shadow(models[1])
    show(shadow, models[0], contents[8:])
    shadow.close()
    agreed, difference = compare(models, contents)
    facts = read_shadow(models[0].sha256, models[1].sha256)
    assert (facts["pictures"], facts["agreed"], facts["mean_difference"]) == (12, agreed, pytest.approx(difference, abs=1e-6))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pictures": 3, "agreed": 3, "answers": []}', "null"])
def test_a_damaged_file_is_no_evidence_and_is_written_anew(models, content):
    path = shadow_path(models[0].sha256, models[1].sha256)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert read_shadow(models[0].sha256, models[1].sha256) is None
    shadow = Shadow(models[1])
    show(shadow, models[0], [draw(0)])
    shadow.close()
    assert read_shadow(models[0].sha256, models[1].sha256)["pictures"] == 1


def test_the_figures_are_about_the_model_that_answered_last(models, tmp_path):
    other = replace(models[0], sha256="c" * 64)
    shadow = Shadow(models[1])
    show(shadow, models[0], [draw(0), draw(1)])
    show(shadow, other, [draw(2)])
    registry = CollectorRegistry()
    registry.register(shadow)
    text = generate_latest(registry).decode()
    shadow.close()
    lines = [line for line in text.splitlines() if line.startswith("pipeline_shadow_pictures_total")]
    assert [line.rpartition(" ")[2] for line in lines] == ["1.0"]
    assert f'challenger="{models[1].sha256[:16]}",champion="{"c" * 16}"' in lines[0]
    assert "pipeline_shadow_dropped_total 0.0" in text


def test_a_shadow_that_is_slow_drops_pictures_and_nobody_waits(models, monkeypatch):
    going = threading.Event()
    slow = replace(models[1], predictor=SlowPredictor(models[1].predictor, going))
    monkeypatch.setattr(module, "_WAITING", 3)
    shadow = Shadow(slow)
    given = answer(models[0], draw(0))
    start = time.monotonic()
    taken = [shadow.offer(draw(0), given) for _ in range(20)]
    assert time.monotonic() - start < 1
    assert 3 <= sum(taken) <= 4  # one may be with the challenger already
    assert shadow.status["dropped"] == 20 - sum(taken)
    going.set()
    shadow.close()
    assert not shadow.offer(draw(0), given)


class SlowPredictor:
    """A predictor that waits."""

    def __init__(self, predictor, going):
        self.class_names, self._predictor, self._going = predictor.class_names, predictor, going

    def predict(self, contents):
        self._going.wait(10)
        return self._predictor.predict(contents)


def test_a_shadow_that_fails_is_counted_and_said_once(models, caplog):
    shadow = Shadow(models[1])
    given = answer(models[0], draw(0))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            shadow.offer(b"no picture", given)
        show(shadow, models[0], [draw(1)])
        shadow.close()
    assert (shadow.status["failed"], len(caplog.records)) == (3, 1)
    assert "the shadow second cannot answer a picture" in shadow.status["fault"]


def test_what_the_challenger_itself_answered_is_not_compared(models):
    shadow = Shadow(models[1])
    assert not shadow.offer(draw(0), answer(models[1], draw(0)))
    shadow.close()
    assert (shadow.status["dropped"], shadow.status["against"]) == (0, {})


def test_a_cache_that_cannot_be_written_leaves_the_figures(models, project, caplog):
    (project / ".cache").write_text("a file")
    shadow = Shadow(models[1])
    show(shadow, models[0], [draw(0)])
    shadow.close()
    assert shadow.status["against"][models[0].sha256]["pictures"] == 1
    assert "cannot be written" in caplog.text


def test_a_class_that_one_model_does_not_know_has_the_probability_zero():
    first, second = np.array([0.75, 0.25], np.float32), np.array([0.5, 0.5], np.float32)
    assert mean_difference(first, second, ["ants", "bees"], ["ants", "bees"]) == 0.25
    assert mean_difference(first, second, ["ants", "bees"], ["bees", "ants"]) == 0.25
    assert mean_difference(first, second, ["ants", "bees"], ["bees", "wasps"]) == pytest.approx((0.75 + 0.25 + 0.5) / 3)


def test_the_shadow_has_a_preprocessing_of_its_own(models, tmp_path):
    from pipeline.networks.artifact import write_facts
    from tests.stored import linear_graph

    folder = tmp_path / "larger"
    folder.mkdir()
    facts = {"class_names": list(NAMES), "preprocessing": {"image_size": 11, "crop": 0.5, "interpolation": "bilinear"}}
    write_facts(folder, linear_graph(11, 3, seed=5), facts, [{"epoch": 0}])
    larger = load_served("larger", folder, 1)
    shadow = Shadow(larger)
    contents = [draw(seed) for seed in range(6)]
    show(shadow, models[0], contents)
    shadow.close()
    agreed, difference = compare((models[0], larger), contents)
    facts = read_shadow(models[0].sha256, larger.sha256)
    assert (facts["agreed"], facts["mean_difference"]) == (agreed, pytest.approx(difference, abs=1e-6))
    shutil.rmtree(folder)
