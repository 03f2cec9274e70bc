"""Params and metrics keep within what MLflow takes."""

from pipeline.files import write_table
from pipeline.tracking.numbers import figures_of, wanted_metrics
from pipeline.tracking.runs import params_of


def test_the_figures_of_a_metrics_file_are_its_numbers_but_for_what_they_stand_on():
    scores = {"model": "own", "test_pictures": 4, "confidence": 0.95, "top1_accuracy": 1, "classes": {"ant": {"recall": 0.5}}}
    assert figures_of(scores) == {"top1_accuracy": 1.0}


def test_a_figure_is_a_metric_of_the_test_pictures_after_the_curves(tmp_path):
    write_table(tmp_path / "history.csv", ["epoch", "val_loss"], [{"epoch": 0, "val_loss": 0.5}, {"epoch": 1}])
    metrics = wanted_metrics(tmp_path / "history.csv", {"top1_accuracy": 0.75}, 1000)
    assert [(metric.key, metric.value, metric.step, metric.timestamp) for metric in metrics] == [
        ("val_loss", 0.5, 0, 1000),
        ("test_top1_accuracy", 0.75, 0, 3000),
    ]


def test_a_name_that_mlflow_does_not_take_is_made_one(tmp_path):
    write_table(tmp_path / "history.csv", ["epoch"], [])
    keys = [metric.key for metric in wanted_metrics(tmp_path / "history.csv", {"recall <é>/x": 1.0, "a" * 300: 1.0}, 0)]
    assert keys == ["test_recall ____x", "test_" + "a" * 245]


def test_a_long_param_is_cut_and_an_address_has_no_password():
    assert params_of({"long": "x" * 7000, "url": "https://user:word@host/a"}) == {"long": "x" * 6000, "url": "https://host/a"}
