"""The stored model in Python: it takes any picture, answers as `pipeline predict` does, and imports neither torch nor pandas early.

The model is that of `write_colours`: pure red has the features (1, 0, 0) and the logits (4, 0), so that ants have 1 / (1 + exp(-4)).
"""

import csv
import doctest
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline import load_model
from pipeline.__main__ import main
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file
from pipeline.promotion.journal import Entry, append, champion_dir
from tests.conftest import ROOT
from tests.stored import write_colours, write_model

RED, GREEN, BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SURE = 0.982014  # 1 / (1 + exp(-4))


def plain(colour, size=(10, 8)):
    """A picture of one colour, 10 pixels wide and 8 high."""
    return Image.new("RGB", size, colour)


def png(image, **options):
    with io.BytesIO() as file:
        image.save(file, "PNG", **options)
        return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with a champion, another model, and pictures, one of them broken."""
    root = tmp_path_factory.mktemp("project")
    (root / "dvc.yaml").touch()
    (root / "params.yaml").write_text("threads: 1\n")
    sha256 = sha256_of_file(write_colours(root / "models/colours") / "model.onnx")
    write_model(root / "models/linear", ("ants", "bees"), val_losses=(0.1,))
    write_colours(root / champion_dir(sha256))
    append(Entry("2026-11-27T03:00:00Z", "FORCE", "the first", "colours", sha256, None, "k"), root / "promotions.jsonl")
    (root / "pictures").mkdir()
    plain(RED).save(root / "pictures/ants.png")
    plain(GREEN).save(root / "pictures/bees.png")
    (root / "pictures/broken.png").write_text("hello")
    (root / "below").mkdir()
    return root


@pytest.fixture(autouse=True)
def in_project(root, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def model(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(root)
        return load_model()


# Which model


def test_the_champion_is_loaded_in_a_folder_of_the_project_and_the_folder_stays(root, monkeypatch):
    monkeypatch.chdir(root / "below")
    model = load_model()
    assert (model.name, model.class_names, Path.cwd()) == ("champion", ["ants", "bees"], root / "below")
    assert model.sha256 == sha256_of_file(root / "models/colours/model.onnx")


def test_without_a_champion_the_lowest_val_loss_is_loaded_and_dvc_root_names_the_project(root, tmp_path, monkeypatch):
    write_model(tmp_path / "project/models/first", val_losses=(0.3,))
    write_model(tmp_path / "project/models/second", val_losses=(0.2,))
    (tmp_path / "project/params.yaml").write_text("threads: 3\n")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    model = load_model()
    assert (model.name, model.predictor.threads) == ("second", 3)


def test_a_name_and_a_folder_are_loaded(root, tmp_path, monkeypatch):
    assert load_model("linear").name == "linear"
    monkeypatch.chdir(root / "below")
    assert load_model("../models/linear").path == root / "models/linear/model.onnx"
    monkeypatch.chdir(tmp_path)  # no project
    assert load_model(root / "models/linear", threads=2).predictor.threads == 2


def test_a_model_that_is_not_there_is_refused_in_the_words_of_python(root):
    with pytest.raises(PipelineError, match=r"^nobody: there is no such model, neither in models nor as a folder; available: colours"):
        load_model("nobody")


# Pictures


def test_answers_are_those_of_the_command_to_the_last_digit(root, model, tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    for number in range(70):  # more than two batches
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{number:02d}.jpg")
    (tmp_path / "33.jpg").write_text("no picture")
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path), "--output", str(tmp_path / "rows.csv")])
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = [{name: row[name] for name in ("path", "predicted", "prob_ants", "prob_bees")} for row in csv.DictReader(file)]
    answers = model.predict(tmp_path)
    assert list(answers.path[answers.fault.notna()]) == [f"{tmp_path}/33.jpg"]
    answered = answers[answers.fault.isna()]
    assert [
        {"path": row.path, "predicted": row.predicted, "prob_ants": f"{row.prob_ants:.6f}", "prob_bees": f"{row.prob_bees:.6f}"}
        for row in answered.itertuples()
    ] == rows


FORMS = {
    "text": lambda path: str(path),
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "image": lambda path: Image.open(path),
    "array": lambda path: np.asarray(Image.open(path)),
    "RGBA": lambda path: np.asarray(Image.open(path).convert("RGBA")),
    "stack": lambda path: np.asarray(Image.open(path))[None],
    "list": lambda path: [path],
    "nested": lambda path: [[path]],
    "generator": lambda path: (each for each in [path]),
    "column": lambda path: np.array([str(path)], dtype=object),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_has_the_same_answer(root, model, form):
    answers = model.predict(FORMS[form](root / "pictures/ants.png"))
    assert [*answers[["predicted", "probability", "prob_ants", "prob_bees"]].itertuples(index=False, name=None)] == [
        ("ants", SURE, SURE, round(1 - SURE, 6))
    ]
    in_memory = form in ("bytes", "bytearray", "image", "array", "RGBA", "stack")
    assert list(answers.path) == [None if in_memory else str(root / "pictures/ants.png")]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_an_image_of_any_mode_is_read_as_its_file_is(model, mode):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8)
    image = {
        "I;16": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "F": lambda: Image.fromarray(pixels[..., 0].astype(np.float32) / 255),
        "RGBA": lambda: Image.fromarray(pixels),
    }.get(mode, lambda: Image.fromarray(pixels[..., :3]).convert(mode))()
    with io.BytesIO() as file:
        image.save(file, "TIFF" if mode != "LA" else "PNG")
        stored = file.getvalue()
    np.testing.assert_array_equal(model.features([image]), model.features([stored]))


def test_an_image_is_turned_upright_as_its_file_is(model):
    image = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = png(image, exif=exif)
    turned, plainly = model.explain(Image.open(io.BytesIO(stored))), model.explain(image)
    np.testing.assert_array_equal(turned, model.explain(stored))
    assert (np.asarray(turned) != np.asarray(plainly)).any()


def test_an_array_of_two_dimensions_is_grey(model):
    np.testing.assert_allclose(model.features(np.full((8, 8), 51, np.uint8)), [[0.2, 0.2, 0.2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("pictures", "error", "words"),
    [
        (np.zeros((8, 8, 3)), TypeError, r"float64: expected uint8, from 0 to 255; if its white is 1, pass \(255 \* array\)"),
        (np.zeros((8, 8), np.uint16), TypeError, "uint16: expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"\(3, 8, 8\): expected .*; pass array.transpose\(1, 2, 0\) if .*, list\(array\) if"),
        (np.zeros(8, np.uint8), ValueError, r"shape \(8,\): expected \(height, width\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"shape \(0, 8, 3\)"),
        ([np.zeros((8, 8, 5), np.uint8)], ValueError, r"shape \(8, 8, 5\)"),
        (7, TypeError, "^int: is not a picture; expected a path"),
        (None, TypeError, "NoneType: is not a picture"),
        (["a.png", 3.5], TypeError, "float: is not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(model, pictures, error, words):
    for ask in (model.predict, model.features):
        with pytest.raises(error, match=words):
            ask(pictures)


def test_an_open_file_and_a_table_are_not_taken_for_lists(model, root):
    import pandas as pd

    with open(root / "pictures/ants.png", "rb") as file, pytest.raises(TypeError, match="BufferedReader: is not a picture"):
        model.predict(file)
    with pytest.raises(TypeError, match="DataFrame: is not a picture"):
        model.predict(pd.DataFrame({"path": ["a.png"]}))
    assert list(model.predict(pd.Series(["pictures/ants.png"])).predicted) == ["ants"]


# Answers


def test_a_broken_picture_is_a_row_with_a_fault(model, tmp_path):
    truncated = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:900]
    lazy = Image.open(io.BytesIO(truncated))
    answers = model.predict(["absent.png", plain(RED), b"hello", lazy, tmp_path])
    assert list(answers.predicted.isna()) == [True, False, True, True, True]
    faults = list(answers.fault)
    assert (faults[0], faults[2], faults[4]) == ("does not exist", "not a picture", "contains no pictures")
    assert "truncated" in faults[3]
    assert answers.fault.isna()[1]
    assert list(np.isnan(answers.prob_bees)) == [True, False, True, True, True]
    assert list(answers.unfamiliar.isna()) == [True, False, True, True, True]


def test_a_picture_whose_unfamiliarity_is_above_1_is_unfamiliar(model):
    assert list(model.predict([plain(BLUE), plain(RED), plain((0, 0, 127))]).unfamiliar) == [True, False, False]


def test_a_model_that_does_not_say_what_is_unfamiliar_has_no_such_column(root):
    answers = load_model("linear").predict("pictures/ants.png")
    assert list(answers.columns) == ["path", "predicted", "probability", "prob_ants", "prob_bees", "fault"]


def test_no_picture_gives_a_table_without_rows_and_features_of_the_right_width(model):
    assert (model.predict([]).shape, list(model.predict([]).columns)[-2:]) == ((0, 7), ["unfamiliar", "fault"])
    assert (model.features([]).shape, model.features([]).dtype) == ((0, 3), np.float32)


def test_features_have_a_row_per_picture_of_nan_if_it_is_broken(model):
    found = model.features([plain(RED), b"hello", plain((0, 51, 255))])
    np.testing.assert_allclose(found, [[1, 0, 0], [np.nan] * 3, [0, 0.2, 1]], rtol=1e-6)
    assert found.dtype == np.float32


def test_a_model_without_features_says_what_to_do(root):
    with pytest.raises(PipelineError, match=r"has no output `features`, .*; run `dvc repro`"):
        load_model("linear").features("pictures/ants.png")


def test_a_long_iterator_is_taken_two_batches_at_a_time_and_may_reuse_its_array(model):
    taken, array = [0], np.zeros((8, 8, 3), np.uint8)

    def frames():
        for number in range(200):
            taken[0] += 1
            array[:] = number
            yield array

    batches = model._run(frames(), "features")
    next(batches)
    assert taken == [64]
    rest = [outputs.features for _, outputs in batches]
    np.testing.assert_allclose(np.concatenate(rest)[:, 0] * 255, range(32, 200), rtol=1e-5)


@pytest.mark.parametrize(("is_terminal", "bars"), [(True, 1), (False, 0)])
def test_a_long_call_shows_a_progress_bar_on_a_terminal(model, monkeypatch, is_terminal, bars):
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr("pipeline.model._BAR_SECONDS", 0)
    model.features([plain(RED)] * 40)
    assert stderr.getvalue().count("100%") == bars


# Explanations


def test_an_explanation_is_bright_where_the_class_is(model):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4, 0] = 255
    pixels[:, 4:, 1] = 200
    ants = np.asarray(model.explain(pixels).convert("L"), float)
    bees = np.asarray(model.explain(pixels, "bees").convert("L"), float)
    assert ants.shape == (176, 176)
    assert ants[:, 20:60].mean() > ants[:, 116:156].mean() + 50  # the predicted class, by default
    assert bees[:, 116:156].mean() > bees[:, 20:60].mean() + 50


def test_what_cannot_be_explained_says_why(model, root):
    with pytest.raises(PipelineError, match=r"^wasps: is not a class of champion; its classes are ants, bees"):
        model.explain(plain(RED), "wasps")
    with pytest.raises(PipelineError, match=r"^pictures/broken.png: not a picture; explain another"):
        model.explain("pictures/broken.png")
    with pytest.raises(ValueError, match="one picture; these are 3"):
        model.explain("pictures")
    with pytest.raises(PipelineError, match="`pipeline explain` draws Grad-CAM"):
        load_model("linear").explain(plain(RED))


# The object


def test_a_notebook_shows_the_model_as_a_table_in_which_nothing_is_html(tmp_path):
    model = load_model(write_model(tmp_path / "m", ["<b>"] + [f"class_{number}" for number in range(20)]))
    table = model._repr_html_()
    assert "<b>" not in table
    assert f"&lt;b&gt;, {', '.join(f'class_{number}' for number in range(8))}, …" in table
    assert model.sha256 in table
    assert repr(model).startswith("Model(m, 21 classes: <b>, class_0,")


def test_the_example_of_the_docstring_is_true(root, model):
    from pipeline.model import Model

    (example,) = (test for test in doctest.DocTestFinder(recurse=False).find(Model, "Model", globs={}) if test.examples)
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)


def test_importing_and_loading_import_no_torch_and_no_pandas(root):
    code = """
import sys
import pipeline
assert [name for name in sys.modules if name.startswith("pipeline.")] == [], "import pipeline"
from pipeline import load_model
model = load_model()
heavy = {"torch", "pandas", "mlflow", "matplotlib", "onnx", "sklearn", "scipy"}
assert heavy & sys.modules.keys() == set(), heavy & sys.modules.keys()
answers = model.predict("pictures")
model.explain("pictures/ants.png")
assert {"torch", "mlflow"} & sys.modules.keys() == set()
print(len(answers))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("3\n", "")


def test_the_package_has_load_model_and_types_and_nothing_else():
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'load_modal'"):
        pipeline.load_modal  # noqa: B018
    assert (ROOT / "pipeline/py.typed").is_file()
