"""`pipeline results`: the whole table, as it is printed."""

import pytest

from pipeline.commands.results import show
from pipeline.errors import PipelineError
from pipeline.files import write_json

DIFFERENCE = {"top1_accuracy_difference": 0.25, "top1_accuracy_difference_low": 0.15, "top1_accuracy_difference_high": 0.35}


def make_scores(accuracy):
    figures = {"top1_accuracy": accuracy, "log_loss": 0.25, "ece": 0.15}
    intervals = {
        f"{name}{end}": value + shift for name, value in figures.items() for end, shift in (("", 0), ("_low", -0.1), ("_high", 0.1))
    }
    return {**intervals, "test_pictures": 268, "confidence": 0.95}


@pytest.fixture
def metrics(tmp_path):
    write_json(tmp_path / "baseline.json", make_scores(0.5))
    write_json(tmp_path / "finetuned.json", make_scores(0.75))
    write_json(tmp_path / "comparison.json", {"finetuned": {**DIFFERENCE, "mcnemar_p": 0.000066, "best_epoch": 3}})
    return tmp_path


def test_the_table_is_shown_whole(metrics):
    assert show(metrics) == (
        "model      top-1 accuracy        log loss              ECE\n"
        "baseline   0.500 [0.400, 0.600]  0.250 [0.150, 0.350]  0.150 [0.050, 0.250]\n"
        "finetuned  0.750 [0.650, 0.850]  0.250 [0.150, 0.350]  0.150 [0.050, 0.250]\n"
        "\n"
        "268 test pictures; in brackets 95 % intervals.\n"
        "finetuned is better by 25.0 points, interval +15.0 to +35.0: shown by these 268 pictures. McNemar p = 6.6e-05.\n"
        "\n"
        "Next: open report/index.html; `pipeline ui` for MLflow; change params.yaml and `dvc repro`."
    )


def test_a_confidence_is_shown_without_rounding(metrics):
    write_json(metrics / "baseline.json", {**make_scores(0.5), "confidence": 0.995})
    assert "in brackets 99.5 % intervals." in show(metrics)


def test_a_model_that_kept_its_start_is_told_of(metrics):
    write_json(metrics / "comparison.json", {"finetuned": {**DIFFERENCE, "mcnemar_p": 1.0, "best_epoch": 0}})
    assert "\nNo epoch of finetuned had a lower val loss than its start, whose weights it kept.\n" in show(metrics)


def test_a_project_that_never_ran_is_told_so(tmp_path):
    with pytest.raises(PipelineError) as error:
        show(tmp_path / "metrics")
    assert str(error.value) == f"{tmp_path}/metrics/comparison.json: is not there; run `dvc repro`"
