"""A server answers with the champion, whoever becomes it, and goes on with the model before if the new one is not what was stored."""

import asyncio
import gc
import os
import shutil
import signal
import time
import weakref

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of_file, write_json
from pipeline.networks.artifact import write_facts, write_golden
from pipeline.promotion.champions import find_kept
from pipeline.promotion.journal import Entry, append, champion_dir
from pipeline.server import following
from pipeline.server.engine import Engine, Limits
from pipeline.server.following import Champion, Follower, find_champion, golden_note, load_checked, wake_on_hangup
from tests.servers import serving
from tests.stored import SIZE, linear_graph, write_model

LIMITS = Limits(batch=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two stored models with golden answers: `sha256: folder`. They are shared."""
    folders = [write_model(tmp_path_factory.mktemp("models") / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    for folder in folders:
        write_golden(folder, 1)
    return {sha256_of_file(folder / "model.onnx"): folder for folder in folders}


@pytest.fixture
def champions(models, tmp_path, monkeypatch):
    """A project that keeps both as champions, but whose journal is empty: their sha256."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for sha256, folder in models.items():
        shutil.copytree(folder, champion_dir(sha256))
    return list(models)


def promote(sha256, second=0, verdict="PROMOTE"):
    append(Entry(f"2026-11-27T03:00:{second:02}Z", verdict, "a reason", "finetuned", sha256, None, f"key {second}"))


def load(sha256, version=None):
    return load_checked("champion", find_kept(sha256), 1, LIMITS, sha256, version)


@pytest.fixture
def engine(champions):
    """An engine that answers with the first of the two, which is the journal's champion."""
    promote(champions[0])
    running = Engine(load(champions[0]), LIMITS)
    yield running
    running.close()


def figures(follower):
    """`name: value` of what a follower shows in /metrics."""
    registry = CollectorRegistry()
    registry.register(follower)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {line.split()[0].removeprefix("pipeline_champion_"): float(line.split()[1]) for line in lines}


@pytest.fixture
def alias(monkeypatch):
    """Let MLflow's server say that the alias `champion` names a sha256, or answer so."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as listening:

        def set_alias(sha256=None, status=200, body=None):
            version = f'{{"model_version": {{"version": "7", "tags": [{{"key": "model_sha256", "value": "{sha256}"}}]}}}}'
            path = "/api/2.0/mlflow/registered-models/alias?name=transfer-pipeline&alias=champion"
            listening.answers[path] = [(status, {"Content-Type": "application/json"}, (body or version).encode())]
            monkeypatch.setenv("MLFLOW_TRACKING_URI", listening.url)
            return listening

        yield set_alias


def test_without_mlflow_the_journal_says_who_is_the_champion(champions):
    assert find_champion() == Champion(None)
    promote(champions[0], 0)
    promote(champions[1], 1)
    promote(champions[0], 2, "ROLLBACK")
    promote(champions[1], 3, "HOLD")
    assert find_champion() == Champion(champions[0])


def test_an_alias_that_names_the_champion_adds_its_version(champions, alias):
    promote(champions[0])
    alias(champions[0])
    assert find_champion() == Champion(champions[0], "7")


def test_where_alias_and_journal_differ_the_journal_decides_and_the_note_says_so(champions, alias):
    promote(champions[0])
    alias(champions[1])
    found = find_champion()
    assert (found.sha256, found.version) == (champions[0], None)
    assert f"names {champions[0][:16]} and MLflow's alias {champions[1][:16]}: the journal decides" in found.note


def test_without_a_journal_the_alias_decides(champions, alias):
    alias(champions[1])
    assert find_champion() == Champion(champions[1], "7")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}'),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias champion not found."}'),
        (200, '{"model_version": {"version": "7"}}'),
        (200, '{"model_version": {"version": "7", "tags": [{"key": "somebody", "value": "else"}]}}'),
    ],
)
def test_an_alias_that_is_not_there_or_not_of_this_project_says_nothing(champions, alias, status, body):
    alias(status=status, body=body)
    assert find_champion() == Champion(None)


@pytest.mark.parametrize(("status", "body"), [(500, "{}"), (200, "<html>"), (200, "[]"), (200, "{}"), (401, '{"error_code": "X"}')])
def test_a_server_that_is_away_leaves_the_journal_alone(champions, alias, status, body):
    alias(status=status, body=body)
    with pytest.raises(PipelineError, match=r"MLflow at http://127.0.0.1"):
        find_champion()
    promote(champions[0])
    found = find_champion()
    assert (found.sha256, "promotions.jsonl alone says who is the champion" in found.note) == (champions[0], True)


def test_name_and_password_go_to_the_server_and_into_no_sentence(champions, alias, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    listening = alias(status=500, body="hunter2")
    with pytest.raises(PipelineError) as raised:
        find_champion()
    assert listening.headers[0]["Authorization"] == "Basic c29tZW9uZTpodW50ZXIy"
    assert "hunter2" not in str(raised.value)


def test_a_model_that_is_not_the_stated_file_is_not_loaded(champions):
    folder = champion_dir(champions[0])
    with pytest.raises(PipelineError, match=r"its model.onnx is"):
        load_checked("champion", folder, 1, LIMITS, "0" * 64)
    (folder / "model.onnx").write_bytes(b"something else")
    with pytest.raises(PipelineError, match=r"is not the file that model.json states"):
        load_checked("champion", folder, 1, LIMITS)


def test_a_model_that_answers_otherwise_than_when_it_was_stored_is_not_loaded(champions):
    path = champion_dir(champions[0]) / "golden.json"
    golden = read_json(path)
    golden["probs"][0][0] += 0.01
    write_json(path, golden)
    with pytest.raises(PipelineError, match=r"its golden answers differ by 0\.01"):
        load(champions[0])
    for damaged in ({}, {"probs": [[1.0]] * 5}, {"probs": "text"}, []):
        write_json(path, damaged)
        with pytest.raises(PipelineError, match=r"is damaged, or is of another model|differ by"):
            load(champions[0])


def test_a_model_without_golden_answers_is_loaded_with_a_sentence(champions):
    folder = champion_dir(champions[0])
    assert golden_note(folder) == ""
    (folder / "golden.json").unlink()
    assert load(champions[0]).sha256 == champions[0]
    assert "has no golden.json" in golden_note(folder)


def test_a_new_champion_and_a_rollback_answer_after_a_look(champions, engine):
    follower = Follower(engine, load)
    follower.look()
    assert (engine.model.sha256, follower.status["swaps"], figures(follower)["served"]) == (champions[0], 0, 1.0)
    for second, expected in enumerate((champions[1], champions[0]), 1):
        promote(expected, second, "ROLLBACK")
        follower.look()
        assert (engine.model.sha256, follower.status["serving"], follower.status["champion"]) == (expected, expected, expected)
        expected_probs = load(expected).predictor.predict_pixels(PIXELS[None])[0]
        np.testing.assert_array_equal(asyncio.run(engine.answer(PIXELS)).probs, expected_probs)
    assert (figures(follower)["swaps_total"], figures(follower)["failures_total"]) == (2.0, 0.0)


def test_the_version_is_named_as_soon_as_mlflow_says_it(champions, engine, alias):
    assert engine.model.version is None
    alias(champions[0])
    follower = Follower(engine, load)
    follower.look()
    assert (engine.model.version, follower.status["swaps"]) == ("7", 0)


def test_a_champion_that_cannot_be_loaded_leaves_the_one_before_and_says_so_once(champions, engine, caplog):
    (champion_dir(champions[1]) / "golden.json").write_text('{"probs": [[0, 0, 0]]}')
    promote(champions[1], 1)
    follower = Follower(engine, load, seconds=0)
    for _ in range(3):
        follower.look()
    assert engine.model.sha256 == champions[0]
    assert "its golden answers differ by" in follower.status["fault"]
    assert (figures(follower)["served"], figures(follower)["failures_total"]) == (0.0, 3.0)
    assert len(caplog.records) == 1
    assert f"the model {champions[0][:16]} goes on answering" in caplog.text
    (champion_dir(champions[1]) / "golden.json").unlink()
    follower.look()
    assert (engine.model.sha256, follower.status["fault"], figures(follower)["served"]) == (champions[1], "", 1.0)


def test_a_model_that_failed_is_tried_again_after_a_pause_that_doubles_and_at_once_when_woken(champions, engine, monkeypatch):
    promote(champions[1], 1)
    now, tried = [0.0], []
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])

    def fail(sha256, version):
        tried.append(now[0])
        raise MemoryError("no room")

    follower = Follower(engine, fail, seconds=10.0)
    for now[0] in map(float, range(0, 160, 10)):
        follower.look()
    assert tried == [0.0, 10.0, 30.0, 70.0, 150.0]
    assert follower.status["fault"] == "MemoryError: no room"
    follower.wake()
    follower.look()
    assert tried[-2:] == [150.0, 150.0]


def test_a_damaged_journal_leaves_the_model_and_is_said(champions, engine):
    follower = Follower(engine, load)
    with open("promotions.jsonl", "a") as file:
        file.write("<<<<<<< HEAD\n")
    follower.look()
    assert "mark of a merge conflict" in follower.status["fault"]
    assert engine.model.sha256 == champions[0]


def test_a_hangup_makes_the_server_look_at_once(champions, engine):
    before = signal.getsignal(signal.SIGHUP)
    follower = Follower(engine, load, seconds=1000)
    wake_on_hangup(follower)
    try:
        follower.start()
        wait_until(lambda: follower.status["looked"])
        promote(champions[1], 1)
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: engine.model.sha256 == champions[1])
    finally:
        signal.signal(signal.SIGHUP, before)
        follower.stop()
    assert not follower._thread.is_alive()


def wait_until(is_so, seconds=20):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_pictures_that_come_in_during_swaps_are_all_answered_each_by_one_of_the_models(champions, engine):
    expected = {sha256: load(sha256).predictor.predict_pixels(PIXELS[None])[0] for sha256 in champions}
    follower = Follower(engine, load)

    async def ask(ended):
        answers = []
        while not ended.is_set():
            model = engine.model
            answer = await engine.answer(PIXELS, model)
            assert answer.model is model
            answers.append(answer)
        return answers

    async def ask_and_swap():
        ended = asyncio.Event()
        tasks = [asyncio.create_task(ask(ended)) for _ in range(4)]
        for second in range(1, 7):
            promote(champions[second % 2], second)
            await asyncio.to_thread(follower.look)
            await engine.answer(PIXELS)
        ended.set()
        return [answer for task in tasks for answer in await task]

    answers = asyncio.run(ask_and_swap())
    assert ({answer.model.sha256 for answer in answers}, follower.status["swaps"]) == (set(champions), 6)
    for answer in answers:
        np.testing.assert_allclose(answer.probs, expected[answer.model.sha256], atol=1e-6)


def test_twenty_swaps_leave_one_model_in_memory(champions, engine):
    follower = Follower(engine, load)
    predictors = [weakref.ref(engine.model.predictor)]
    for second in range(1, 21):
        promote(champions[second % 2], second)
        follower.look()
        predictors.append(weakref.ref(engine.model.predictor))
        asyncio.run(engine.answer(PIXELS))
    gc.collect()
    assert follower.status["swaps"] == 20
    assert [reference() is not None for reference in predictors] == [False] * 20 + [True]


def test_a_model_in_the_place_of_another_one_is_refused(champions, engine):
    promote(champions[1], 1)
    follower = Follower(engine, lambda sha256, version: load(champions[0]))
    follower.look()
    assert (engine.model.sha256, f"not {champions[1][:16]}" in follower.status["fault"]) == (champions[0], True)


@pytest.mark.slow
def test_the_memory_of_the_process_does_not_grow_over_twenty_swaps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"class {number}" for number in range(100)]
    sums = []
    for seed in range(2):
        folder = tmp_path / f"seed {seed}"
        folder.mkdir()
        facts = {"class_names": names, "preprocessing": {"image_size": 128, "crop": 1.0, "interpolation": "bicubic"}}
        write_facts(folder, linear_graph(128, len(names), seed), facts, [{"epoch": 0}])  # 20 MB
        sums.append(sha256_of_file(folder / "model.onnx"))
        champion_dir(sums[-1]).parent.mkdir(exist_ok=True)
        folder.rename(champion_dir(sums[-1]))
    engine, present = Engine(load(sums[0]), LIMITS), [sums[0]]
    follower = Follower(engine, load, find=lambda: Champion(present[0]))
    pixels, used = np.zeros((128, 128, 3), np.uint8), []

    async def answer_some():
        await asyncio.gather(*(engine.answer(pixels) for _ in range(10)))

    for number in range(1, 21):
        present[0] = sums[number % 2]
        follower.look()
        asyncio.run(answer_some())
        follower.look()
        used.append(megabytes())
    engine.close()
    assert follower.status["swaps"] == 20
    assert max(used[10:]) < max(used[:5]) + 10  # half a model; 20 models that are kept are 400 MB


def megabytes():
    """The memory of this process."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS:")).split()[1]) / 1024
