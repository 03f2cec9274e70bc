"""`pipeline serve` as a process: it follows the journal, runs a shadow and logs, and loses nothing when it is told to end."""

import io
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import requests
from PIL import Image

from bench.champions import make_project, promote, serving, write_variant
from pipeline.core.files import read_json, sha256_of
from pipeline.promotion.judging import shadow_path
from pipeline.serving.log import read_log
from tests.stored import write_model


def draw(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two champions of other bytes, and a model `shadowed` elsewhere: the folder and the sha256 of all three."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first, second = make_project(tmp_path / "project", write_model(tmp_path / "model", seed=1))
    third = write_variant(write_model(tmp_path / "other", seed=2), tmp_path / "shadowed")
    return tmp_path / "project", first, second, third


def ask(address, picture):
    answer = requests.post(f"{address}/predict", data=picture, headers={"Content-Type": "image/png"}, timeout=30)
    assert answer.status_code == 200
    return answer.headers["X-Model-SHA256"], answer.json()["predictions"][0]["probs"], answer.json()["request_id"]


def ask_all(address, pictures):
    """The answers, one after the other, each logged before the next is asked for: a slow machine may drop lines of the log."""
    answers = []
    for picture in pictures:
        logged = metadata(address)["log"]["written"]
        answers.append(ask(address, picture))
        wait_for(lambda logged=logged: metadata(address)["log"]["written"], logged + 1)
    return answers


def metadata(address):
    return requests.get(f"{address}/metadata", timeout=30).json()


def wait_for(read, expected, seconds=60):
    end = time.monotonic() + seconds
    while (found := read()) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.02)


def test_a_server_follows_the_journal_with_a_shadow_and_a_log_and_ends_with_all_of_it_written(project, monkeypatch):
    folder, first, second, third = project
    pictures = [draw(seed) for seed in range(8)]
    arguments = ("--shadow", str(folder.parent / "shadowed"), "--log", "log", "--log-share", "1", "--log-pictures")
    with serving(folder, *arguments) as (process, address):
        answers = ask_all(address, pictures[:4])
        promote(folder, second)
        wait_for(lambda: metadata(address)["model"]["sha256"], second)
        answers += ask_all(address, pictures[4:6])
        promote(folder, first, "ROLLBACK")
        wait_for(lambda: metadata(address)["following"]["swaps"], 2)
        answers += ask_all(address, pictures[6:])
        wait_for(lambda: shadowed(metadata(address)["shadow"]), 8)
        metrics = requests.get(f"{address}/metrics", timeout=30).text
    assert process.returncode == 0
    assert [answer[0] for answer in answers] == [first] * 4 + [second] * 2 + [first] * 2
    assert {line for line in metrics.splitlines() if line.startswith(("pipeline_champion_served", "pipeline_champion_swaps_total"))} == {
        "pipeline_champion_served 1.0",
        "pipeline_champion_swaps_total 2.0",
    }
    records = list(read_log(folder / "log"))
    assert [(record.model_sha256, record.request_id, record.sha256) for record in records] == [
        (sha256, request_id, sha256_of(picture)) for (sha256, _, request_id), picture in zip(answers, pictures, strict=True)
    ]
    for record, answer in zip(records, answers, strict=True):
        np.testing.assert_allclose(record.probs, list(answer[1].values()), atol=2e-6)
    assert [(folder / "log" / record.picture).read_bytes() for record in records] == pictures
    monkeypatch.setenv("DVC_ROOT", str(folder))
    assert [read_json(shadow_path(sha256, third))["pictures"] for sha256 in (first, second)] == [6, 2]


def shadowed(status):
    return sum(row["pictures"] for row in status["against"].values())


@pytest.mark.slow
def test_a_named_model_is_not_followed(project):
    folder, first, second, _ = project
    with serving(folder, "--model", str(folder / "champions" / first[:16])) as (_, address):
        promote(folder, second)
        time.sleep(2)
        facts = metadata(address)
    assert (facts["model"]["sha256"], "following" in facts) == (first, False)


@pytest.mark.slow
def test_the_model_that_answers_is_no_shadow_of_itself(project):
    folder, first, *_ = project
    shutil.copytree(folder / "champions" / first[:16], folder.parent / "same")
    command = [sys.executable, "-m", "pipeline", "serve", "--port", "0", "--shadow", str(folder.parent / "same")]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (ended.returncode, "is the model that answers" in ended.stderr) == (1, True)
    assert ended.stderr.count("\n") == 1
