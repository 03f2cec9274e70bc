"""Params and metrics keep within what MLflow takes."""

from pipeline.core.files import write_table
from pipeline.tracking.contents import figures_of, wanted_metrics
from pipeline.tracking.runs import params_of


def test_a_figure_comes_with_the_ends_of_its_interval_and_what_is_not_defined_is_left_out():
    figures = {"top1_accuracy": {"value": 0.75, "low": 0.5, "high": 1.0}, "roc_auc": {"value": 1.0, "low": None, "high": None}}
    assert figures_of({"figures": figures}) == {"top1_accuracy": 0.75, "top1_accuracy_low": 0.5, "top1_accuracy_high": 1.0, "roc_auc": 1.0}


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
