"""`pipeline results`: the whole table, as it is printed."""

import pytest

from pipeline.commands.show import show_results
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, write_json

DIFFERENCE = {"top1_accuracy_difference": 0.25, "top1_accuracy_difference_low": 0.15, "top1_accuracy_difference_high": 0.35}


def make_scores(accuracy):
    figures = {"top1_accuracy": accuracy, "balanced_accuracy": accuracy, "log_loss": 0.25, "ece": 0.15}
    ends = (("", 0), ("_low", -0.1), ("_high", 0.1))
    return {f"{name}{end}": value + shift for name, value in figures.items() for end, shift in ends}


@pytest.fixture
def write(tmp_path):
    """Write a comparison of two models, and return its path."""

    def write(mcnemar_p=0.000066, best_epoch=3, confidence=0.95):
        models = {"baseline": make_scores(0.5), "finetuned": make_scores(0.75)}
        differences = {"finetuned": {**DIFFERENCE, "mcnemar_p": mcnemar_p, "is_shown": mcnemar_p < 0.05, "best_epoch": best_epoch}}
        facts = {"test_pictures": 268, "confidence": confidence, "models": models, "differences": differences}
        write_json(tmp_path / "comparison.json", facts)
        return tmp_path / "comparison.json"

    return write


def test_the_table_is_shown_whole(write):
    assert show_results(write()) == (
        "model      top-1 accuracy        balanced accuracy     log loss              ECE\n"
        "baseline   0.500 [0.400, 0.600]  0.500 [0.400, 0.600]  0.250 [0.150, 0.350]  0.150 [0.050, 0.250]\n"
        "finetuned  0.750 [0.650, 0.850]  0.750 [0.650, 0.850]  0.250 [0.150, 0.350]  0.150 [0.050, 0.250]\n"
        "\n"
        "268 test pictures; in brackets 95 % intervals.\n"
        "finetuned is better than baseline by 25.0 points (interval +15.0 to +35.0): significant on 268 test pictures."
        " McNemar p = 6.6e-05.\n"
        "\n"
        "Next: open report/index.html; `pipeline ui` for MLflow; change params.yaml and `dvc repro`."
    )


def test_a_confidence_is_shown_without_rounding(write):
    assert "in brackets 99.5 % intervals." in show_results(write(confidence=0.995))


def test_a_figure_without_an_interval_stands_alone(write):
    path = write()
    facts = read_json(path)
    facts["models"]["baseline"] |= {"ece": 0.0, "ece_low": None, "ece_high": None}
    write_json(path, facts)
    assert "0.250 [0.150, 0.350]  0.000\n" in show_results(path)


def test_a_model_that_kept_its_start_is_told_of(write):
    told = show_results(write(mcnemar_p=1.0, best_epoch=0))
    assert "\nNo epoch of finetuned was better on val than its start, whose weights it kept.\n" in told


def test_a_project_that_never_ran_is_told_so(tmp_path):
    with pytest.raises(PipelineError) as error:
        show_results(tmp_path / "metrics/comparison.json")
    assert str(error.value) == f"{tmp_path}/metrics/comparison.json: is not there; run `dvc repro`"
