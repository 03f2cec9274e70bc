"""What a run contains keeps within what MLflow takes, and follows from the files alone."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from pipeline.core.files import write_json, write_table
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.tracking.contents import RunContents, dataset_inputs, describe_run, metric_name
from pipeline.tracking.internals import image_names, write_images, write_predictions_table
from pipeline.tracking.runs import params_of

FACTS = {"model": "finetuned", "class_names": ["ant", "bee"], "inputs_sha256": {"data": "d" * 64, "code": "c" * 64, "params": "p" * 64}}
FIGURES = {"log_loss": {"value": 0.5, "low": 0.25, "high": 0.75}, "ece": {"value": 0.0625, "low": None, "high": None}}


def contents(params=None, figures=FIGURES, folder=Path()):
    """The contents of a run of the model in a folder."""
    scores = {"test_pictures": 153, "test_sha256": "7" * 64, "confidence": 0.95, "figures": figures}
    return RunContents(folder, folder, FACTS, scores, params or {}, [])


def run(params, metrics=(), /, **digests):
    """A published run as MLflow returns it."""
    tags = {f"{name}_sha256": value for name, value in {**FACTS["inputs_sha256"], **digests}.items()}
    return SimpleNamespace(info=SimpleNamespace(run_id="r1"), data=SimpleNamespace(params=params, tags=tags, metrics=dict(metrics)))


# The description


def test_the_first_run_of_a_name_has_its_figures_with_their_intervals():
    text = describe_run(contents(), None)
    assert [line for line in text.splitlines() if line.startswith("| `")] == ["| `log_loss` | 0.500 | 0.250 to 0.750 |"]
    assert "153 test pictures" in text


def test_a_figure_is_beside_that_of_the_previous_run():
    assert "| `log_loss` | 0.500 | 0.250 to 0.750 | 0.750 | -0.250 |" in describe_run(contents(), run({}, {"test_log_loss": 0.75}))


@pytest.mark.parametrize(("before", "count"), [("8" * 64, 1), ("7" * 64, 0), (None, 0)], ids=["other", "same", "unknown"])
def test_figures_of_other_test_pictures_before_are_said_to_be_so(before, count):
    previous = run({}, {"test_log_loss": 0.75}, **({"test": before} if before else {}))
    text = describe_run(contents(), previous)
    assert "0.750 | -0.250" in text
    assert text.splitlines().count("Note: the scores before are of other test pictures.") == count


def test_params_and_inputs_that_differ_are_named_but_not_the_digest_of_the_params():
    text = describe_run(contents({"epochs": "4"}), run({"epochs": "2"}, data="e" * 64, params="q" * 64))
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- `epochs`: `2` → `4`",
        "- `data`: `eeeeeeeeeeee` → `dddddddddddd`",
    ]


def test_a_run_that_equals_the_previous_one_has_no_list_of_changes():
    text = describe_run(contents({"epochs": "4"}), run({"epochs": "4"}))
    assert "`r1`" in text
    assert "\n- " not in text


def test_no_value_is_markup():
    assert describe_run(contents({"source": "a`<b>`|\n# c"}), run({})).endswith("- `source`: `absent` → `a'<b>'¦ # c`")


def test_the_description_is_shorter_than_mlflow_takes():
    figures = {f"{'f' * 200}{i}": {"value": 0.5, "low": 0.5, "high": 0.5} for i in range(50)}
    text = describe_run(contents({f"{'p' * 200}{i}": "v" * 5000 for i in range(100)}, figures), run({}))
    assert len(text) < 8000
    assert text.endswith("\n- and 80 more")


# Params and metrics


def test_a_figure_is_a_metric_of_the_test_pictures_after_the_curves_and_what_is_not_defined_is_none(tmp_path):
    write_table(tmp_path / "history.csv", ["epoch", "val_loss"], [{"epoch": 0, "val_loss": 0.5}, {"epoch": 1}])
    assert [(metric.key, metric.value, metric.step, metric.timestamp) for metric in contents(folder=tmp_path).metrics(1000)] == [
        ("val_loss", 0.5, 0, 1000),
        ("test_log_loss", 0.5, 0, 3000),
        ("test_log_loss_low", 0.25, 0, 3000),
        ("test_log_loss_high", 0.75, 0, 3000),
        ("test_ece", 0.0625, 0, 3000),
    ]


def test_a_name_that_mlflow_does_not_take_is_made_one():
    assert metric_name("test_recall <é>/x") == "test_recall ____x"
    assert metric_name("a" * 300) == "a" * 250


def test_a_long_param_is_cut_and_an_address_has_no_password():
    assert params_of({"long": "x" * 7000, "url": "https://user:word@host/a"}) == {"long": "x" * 6000, "url": "https://host/a"}


# Datasets

SPLITS = ["train", "train", "val", "test"]
PICTURES = [Picture(f"ant/{i}.png", f"ant/{i}.png", str(i) * 64, "ant", split, str(i), 8, 8) for i, split in enumerate(SPLITS)]


@pytest.fixture
def inputs(tmp_path):
    """The dataset of each split that has pictures."""

    def read(pictures=PICTURES, source="insects"):
        write_manifest(tmp_path / "manifest.csv", pictures)
        write_json(tmp_path / "source.json", {"source": source, "licence": "CC0"})
        found = dataset_inputs(tmp_path / "manifest.csv", tmp_path / "source.json")
        return {entry.tags[0].value: entry.dataset for entry in found}

    return read


def test_each_split_is_a_dataset_of_the_source_with_its_counts_by_class(inputs):
    assert {split: (dataset.name, json.loads(dataset.profile)) for split, dataset in inputs().items()} == {
        "train": ("insects", {"pictures": 2, "classes": {"ant": 2}}),
        "val": ("insects", {"pictures": 1, "classes": {"ant": 1}}),
        "test": ("insects", {"pictures": 1, "classes": {"ant": 1}}),
    }


def test_a_split_without_pictures_is_no_dataset(inputs):
    assert list(inputs(PICTURES[:3])) == ["train", "val"]


def test_an_address_is_logged_without_its_password(inputs):
    dataset = inputs(source="https://user:word@host/a.zip")["train"]
    assert (dataset.name, json.loads(dataset.source)) == ("https://host/a.zip", {"uri": "https://host/a.zip", "licence": "CC0"})


@pytest.mark.parametrize("change", [{"sha256": "f" * 64}, {"label": "bee"}, {"image_id": "ant/9.png"}])
def test_a_changed_picture_changes_the_digest_of_its_split_alone(inputs, change):
    before, after = inputs(), inputs([replace(PICTURES[0], **change), *PICTURES[1:]])
    assert [split for split in before if before[split].digest != after[split].digest] == ["train"]
    assert len(before["val"].digest) == 16


# Figures and the table of predictions


def draw(folder, name, size=(1600, 800)):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, "red").save(folder / name)


def test_an_image_is_named_as_mlflows_page_reads_it_and_the_same_every_time(tmp_path):
    draw(tmp_path, "mistakes.png")
    (tmp_path / "predictions.csv").touch()
    (name,) = image_names(tmp_path, 17).values()
    assert re.fullmatch(r"mistakes\+step\+0\+timestamp\+17\+[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)
    assert list(image_names(tmp_path, 17).values()) == [name]


def test_characters_that_mlflow_does_not_take_are_replaced_and_names_stay_apart(tmp_path):
    draw(tmp_path, "a+b.png")
    draw(tmp_path, "a_b.png")
    names = list(image_names(tmp_path, 17).values())
    assert [name.split("+")[0] for name in names] == ["a_b", "a_b"]
    assert names[0] != names[1]


def test_the_small_image_keeps_the_shape_and_the_large_one_its_bytes(tmp_path):
    draw(tmp_path / "results", "mistakes.png")
    write_images(tmp_path / "images", tmp_path / "results", 17)
    (small,), (large,) = (tmp_path / "images").glob("*+compressed.webp"), (tmp_path / "images").glob("*.png")
    with Image.open(small) as image:
        assert image.size == (768, 384)
    assert large.read_bytes() == (tmp_path / "results/mistakes.png").read_bytes()


def test_the_table_of_predictions_is_what_pandas_reads_in_the_form_split(tmp_path):
    rows = [
        {"image_id": "a/1.png", "label": "ant", "predicted": "ant", "probability": "0.750000"},
        {"image_id": "a/2.png", "label": "ant", "predicted": "bee", "probability": "0.875000"},
    ]
    write_table(tmp_path / "predictions.csv", list(rows[0]), rows)
    write_predictions_table(tmp_path / "table.json", tmp_path / "predictions.csv")
    table = pd.read_json(tmp_path / "table.json", orient="split")
    assert list(table) == ["image_id", "predicted", "label", "probability", "right"]
    assert table.to_numpy().tolist() == [["a/1.png", "ant", "ant", 0.75, True], ["a/2.png", "bee", "ant", 0.875, False]]
