"""`pipeline drift` from a folder or a log to its exit code, its page and its table."""

import io
import json
import os
import shutil
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.commands.drift import drift_facts
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_table, sha256_of, sha256_of_file
from pipeline.drift.findings import groups_needed
from pipeline.drift.incoming import read_incoming
from pipeline.drift.reference import REFERENCE, read_reference, write_reference
from pipeline.pictures.images import decode
from pipeline.pictures.inspection import brightness_and_sharpness
from pipeline.serving.log import Record, log_line
from pipeline.serving.predictor import open_model
from tests.drift.conftest import NAMES, label_by_model, listed, write_pictures


def drift(*arguments):
    """Run the command. Returns its exit code, what it printed, and its errors."""
    printed, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(errors):
        try:
            main(["drift", *arguments])
            code = 0
        except SystemExit as end:
            code = end.code
    return code, printed.getvalue(), errors.getvalue()


def test_the_reference_has_the_same_bytes_each_time_and_no_time(project):
    paths = sorted((project / "tested").glob("*.png"))[:40]
    predictor = open_model(project / "models/own", 1)
    outputs = predictor.run(np.stack([predictor.read(path) for path in paths]), "features")
    for name in ("one", "two"):
        (project / name).mkdir()
        write_reference(project / name, ("a" * 64, NAMES), listed(paths), outputs, np.arange(40) % 3, np.arange(40))
    assert sha256_of_file(project / "one" / REFERENCE) == sha256_of_file(project / "two" / REFERENCE)
    with zipfile.ZipFile(project / "one" / REFERENCE) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    found = read_reference(project / "one" / REFERENCE, "a" * 64)
    pixels = predictor.read(paths[7])
    assert found.sample.features[7] == pytest.approx(pixels.reshape(-1))
    assert found.sample.brightness[7] == pytest.approx(brightness_and_sharpness(decode(paths[7]))[0])
    assert found.class_names == list(NAMES)


def test_a_reference_of_another_model_or_none_is_refused_with_the_cure(project):
    path = project / "results/own" / REFERENCE
    with pytest.raises(PipelineError, match=r"is of the model .*, not of bbbb"):
        read_reference(path, "b" * 64)
    with pytest.raises(PipelineError, match="run `dvc repro`"):
        read_reference(path.with_name("none.npz"), "b" * 64)
    damaged = project / "damaged.npz"
    damaged.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PipelineError, match="is damaged"):
        read_reference(damaged, "b" * 64)


def test_pictures_of_the_same_kind_are_no_drift(project):
    code, printed, errors = drift("same", "--output", "out")
    assert code == 0
    assert printed.startswith("No drift is shown (p ")
    assert "not in MLflow" in errors
    facts = read_json(project / "out/drift.json")
    assert facts["verdict"] == "ok"
    assert facts["pictures"] == {"reference": 200, "reference_groups": 200, "new": 150, "new_groups": 150, "tested": 150}


def test_darker_pictures_are_drift_and_the_sentence_says_so(project):
    code, printed, _ = drift("darker", "--output", "out", "--json", "facts.json", "--label-next", "7")
    assert code == 10
    assert "The pictures are darker" in printed
    facts = read_json(project / "facts.json")
    assert facts | {"notes": []} == read_json(project / "out/drift.json")  # that MLflow is away is known later
    brightness = next(row for row in facts["traits"] if row["name"] == "brightness")
    assert brightness["difference"] < -2
    assert brightness["p"] <= 0.01
    assert facts["domain"]["low"] > 0.9
    rows = read_table(project / "out/label_next.csv")
    assert len({row["path"] for row in rows}) == 7
    assert {(row["label"], row["split"]) for row in rows} == {("", "train")}
    assert all((project / "darker" / row["path"]).is_file() for row in rows)
    page = (project / "out/index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 24
    assert "http" not in page.replace("http-equiv", "")


def test_a_trait_that_does_not_vary_is_compared_in_words_and_three_causes_are_listed(project):
    for path in write_pictures(project / "larger", range(4000, 4150), light=70):
        with Image.open(path) as image:
            image.resize((2 * image.width, 2 * image.height)).save(path)
    code, printed, _ = drift("larger", "--output", "out")
    assert code == 10
    assert "The pictures are darker, blurrier and larger. Most" in printed
    assert "\npixels: all larger, p 0.002 (of four)\n" in printed
    assert "<td>all larger</td><td>1.000</td>" in (project / "out/index.html").read_text()


def test_the_same_look_twice_gives_the_same_bytes_and_counts_once(project):
    files = ("out/drift.json", "out/label_next.csv", "out/index.html")
    drift("darker", "--output", "out")
    first = [(project / name).read_bytes() for name in files]
    drift("darker", "--output", "out")
    second = [(project / name).read_bytes() for name in files]
    assert first[1] == second[1]
    assert json.loads(second[0]) == json.loads(first[0]) | {"is_known": True}
    assert sum(map(len, read_json(project / ".cache/drift/looks.json").values())) == 1


def test_too_few_pictures_get_a_number_and_broken_ones_a_line(project):
    (project / "few/broken.png").write_bytes(b"nothing")
    code, printed, errors = drift("few", "--output", "out")
    assert code == 11
    assert "15 new pictures are too few (p " in printed
    assert f"needs {groups_needed(200, 0.05 / 30, 7)}." in printed
    assert errors.startswith("few/broken.png: not a picture\n")


def test_the_number_that_would_do_grows_as_the_reference_shrinks():
    # (0.5 / (z(1 - 0.05 / 2) + z(0.8)))**2 is 0.03185; less 1 / 100, and its inverse, rounded up.
    assert groups_needed(100, 0.05, 1) == 46
    assert groups_needed(40, 0.05, 1) == 146
    assert groups_needed(31, 0.05, 1) is None


def test_one_look_may_have_the_whole_rate(project):
    drift("same", "--output", "out", "--looks", "1", "--alpha", "0.1")
    assert read_json(project / "out/drift.json")["level"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("folder", "message"), [("nowhere", "nowhere: is not a folder; name a folder of"), ("models", "models: contains no pictures")]
)
def test_a_folder_without_pictures_is_a_fault(project, folder, message):
    code, _, errors = drift(folder)
    assert code == 1
    assert errors.startswith(message)


def test_groups_are_read_from_the_path(project):
    reference = read_reference(project / "results/own" / REFERENCE, sha256_of_file(project / "models/own/model.onnx"))
    predictor = open_model(project / "models/own", 1)
    write_pictures(project / "videos", range(12))
    found = read_incoming("videos", project, r"00(\d)", reference, predictor, 1)
    assert len(found.paths) == 12
    assert len(np.unique(found.sample.groups)) == 2
    alone = read_incoming("videos", project, "none", reference, predictor, 1)
    assert len(np.unique(alone.sample.groups)) == 12


def write_log(folder, paths, predictor, model_sha256, kept):
    folder.mkdir()
    lines = []
    for number, path in enumerate(paths):
        outputs = predictor.run(predictor.read(path)[None], "features")
        image = decode(path)
        picture = f"pictures/{number}.png" if number in kept else None
        if picture:
            (folder / picture).parent.mkdir(exist_ok=True)
            (folder / picture).write_bytes(path.read_bytes())
        facts = (
            outputs.probs[0],
            None,
            outputs.features[0].astype(np.float16),
            image.width,
            image.height,
            *brightness_and_sharpness(image),
        )
        sha256 = sha256_of(path.read_bytes())
        lines.append(log_line(Record("2026-11-27T03:00:00.000Z", f"request {number // 2}", sha256, model_sha256, *facts, picture)))
    (folder / "predictions.jsonl").write_text("".join(lines))


def test_a_log_says_the_same_as_its_folder_and_only_kept_pictures_can_be_labelled(project):
    predictor, sha256 = open_model(project / "models/own", 1), sha256_of_file(project / "models/own/model.onnx")
    paths = sorted((project / "darker").glob("*.png"))
    write_log(project / "log", paths, predictor, sha256, kept={3, 5})
    other = (project / "log/predictions.jsonl").read_text().splitlines()[0].replace(sha256, "f" * 64)
    with (project / "log/predictions.jsonl").open("a") as file:
        file.write(f"{other}\n")
    code, _, errors = drift("log", "--output", "from_log", "--group", "none")
    assert code == 10
    assert "1 of 151 predictions are of other models, and are left out" in errors
    drift("darker", "--output", "from_folder", "--group", "none")
    logged, direct = (read_json(project / name / "drift.json") for name in ("from_log", "from_folder"))
    for key in ("p", "domain", "within", "labels"):
        assert logged[key] == direct[key]
    assert {row["path"] for row in read_table(project / "from_log/label_next.csv")} == {"pictures/3.png", "pictures/5.png"}
    drift("log", "--output", "from_log")
    assert read_json(project / "from_log/drift.json")["pictures"]["new_groups"] == 75  # a request is a group


def test_a_log_of_other_models_is_refused(project):
    predictor = open_model(project / "models/own", 1)
    write_log(project / "foreign", sorted((project / "few").glob("3*.png")), predictor, "f" * 64, kept=())
    code, _, errors = drift("foreign")
    assert code == 1
    assert "has no prediction of the model" in errors


def test_equal_pictures_count_once(project):
    for number in range(150):
        (project / "copies").mkdir(exist_ok=True)
        shutil.copy(project / "same/1000.png", project / f"copies/{number}.png")
    code, printed, errors = drift("copies", "--output", "out")
    assert code == 11
    assert printed.startswith("1 new picture is too few (nothing was tested)")
    assert "149 of 150 pictures are copies of others, and are left out" in errors


def test_a_low_level_gets_permutations_enough_and_a_lower_one_is_refused(project):
    assert drift("darker", "--output", "out", "--alpha", "0.01")[0] == 10  # by 1,999 permutations no p-value is below 0.01 / 30
    assert read_json(project / "out/drift.json")["p"] <= 0.01 / 30
    code, _, errors = drift("darker", "--output", "out", "--alpha", "0.01", "--looks", "365")
    assert code == 1
    assert errors == "--looks 365: leave each a level of 2.7e-05, below 0.0001; take at most 100\n"


def test_labels_that_were_filled_in_stay(project):
    drift("darker", "--output", "filled", "--label-next", "2")
    path = project / "filled/label_next.csv"
    path.write_text(path.read_text().replace(",,train", ",bees,train", 1))
    filled = path.read_text()
    _, _, errors = drift("same", "--output", "filled")
    assert "label_next.csv has labels that somebody filled in, and stays as it is" in errors
    assert path.read_text() == filled


def test_names_that_are_not_utf_8_keep_their_bytes_and_markup_is_escaped(project):
    folder = project / "odd"
    folder.mkdir()
    for number, name in enumerate((b"\xff.png", b"<img src=x>&.png")):
        shutil.copy(project / f"same/{1000 + number}.png", os.fsencode(folder) + b"/" + name)
    assert drift("odd", "--output", "out")[0] == 11
    assert b"\xff.png" in (project / "out/label_next.csv").read_bytes()
    page = (project / "out/index.html").read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;&amp;.png" in page


@pytest.mark.parametrize(
    "change",
    [{"probs": [1.0]}, {"features": "AAA="}, {"width": 0}, {"width": "8"}, {"unfamiliarity": "x"}, {"picture": "../x.png"}, {"picture": 5}],
)
def test_a_prediction_that_cannot_be_of_the_model_is_named(project, tmp_path, change):
    predictor, sha256 = open_model(project / "models/own", 1), sha256_of_file(project / "models/own/model.onnx")
    write_log(tmp_path / "log", sorted((project / "few").glob("3*.png")), predictor, sha256, kept=())
    path = tmp_path / "log/predictions.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps(json.loads(first) | change) + "\n" + rest)
    code, _, errors = drift(str(tmp_path / "log"), "--output", "out")
    assert code == 1
    assert "the prediction of 2026-11-27T03:00:00.000Z for" in errors
    assert "is damaged; remove its line" in errors


def test_answers_that_are_not_numbers_are_a_fault(project, tmp_path):
    predictor, sha256 = open_model(project / "models/own", 1), sha256_of_file(project / "models/own/model.onnx")
    write_log(tmp_path / "log", sorted((project / "few").glob("3*.png")), predictor, sha256, kept=())
    path = tmp_path / "log/predictions.jsonl"
    facts = json.loads(path.read_text().split("\n")[0])
    facts |= {"sha256": "e" * 64, "probs": [float("nan")] * len(NAMES)}
    path.write_text(path.read_text() + json.dumps(facts) + "\n")
    code, _, errors = drift(str(tmp_path / "log"), "--output", "out")
    assert (code, "the model's answers to 1 pictures are not numbers" in errors) == (1, True)


def test_a_group_of_the_params_that_matches_nothing_is_no_fault_and_a_typed_one_is(project, tmp_path):
    params = project / "params.yaml"
    before = params.read_text()
    params.write_text(before + "split: {group: 'patient(x)'}\n")
    try:
        _, _, errors = drift("few", "--output", "out")
        assert "split.group gives these pictures no groups" in errors
        predictor, sha256 = open_model(project / "models/own", 1), sha256_of_file(project / "models/own/model.onnx")
        write_log(tmp_path / "log", sorted((project / "few").glob("3*.png")), predictor, sha256, kept=())
        assert drift(str(tmp_path / "log"), "--output", "out")[0] == 11
    finally:
        params.write_text(before)
    code, _, errors = drift("few", "--group", "(")
    assert code == 1
    assert errors.startswith("--group: '(' is not a regular expression")


def test_retraining_asks_and_gets_the_verdict_or_the_fault(project):
    found = drift_facts("darker", Path.cwd())
    assert found["verdict"] == "drift"
    assert found["sentence"].startswith("Drift (p ")
    assert drift_facts("nowhere", Path.cwd())["verdict"] == "failure"


def test_the_labels_of_the_fixture_differ_from_the_predictions_in_one_picture_of_ten(project):
    reference = read_reference(project / "results/own" / REFERENCE, sha256_of_file(project / "models/own/model.onnx"))
    assert (reference.sample.predicted == reference.labels).mean() == pytest.approx(0.9)
    assert np.array_equal(label_by_model(project / "models/own", sorted((project / "tested").glob("*.png"))), reference.labels)
