"""The description is plain, bounded, and says what changed."""

from types import SimpleNamespace

from pipeline.tracking.contents import describe_run

FACTS = {"model": "finetuned", "class_names": ["ant", "bee"], "inputs_sha256": {"data": "d" * 64, "code": "c" * 64, "params": "p" * 64}}
SCORES = {"test_pictures": 153, "confidence": 0.95}
FIGURES = {"log_loss": 0.5, "log_loss_low": 0.25, "log_loss_high": 0.75, "ece": 0.0625}


def run(params, metrics=(), /, **sums):
    tags = {f"{name}_sha256": value for name, value in {**FACTS["inputs_sha256"], **sums}.items()}
    return SimpleNamespace(info=SimpleNamespace(run_id="r1"), data=SimpleNamespace(params=params, tags=tags, metrics=dict(metrics)))


def test_the_first_run_of_a_name_has_its_figures_with_their_intervals():
    assert describe_run(FACTS, {}, SCORES, FIGURES, None) == (
        "`finetuned`, 2 classes, scored on 153 test pictures; intervals of 95 %.\n\n"
        "| figure | value | interval |\n| --- | --- | --- |\n| `log_loss` | 0.500 | 0.250 to 0.750 |\n\n"
        "The first published run of this name."
    )


def test_a_figure_is_shown_beside_that_of_the_run_before():
    text = describe_run(FACTS, {}, SCORES, FIGURES, run({}, {"test_log_loss": 0.75}))
    assert "| `log_loss` | 0.500 | 0.250 to 0.750 | 0.750 | -0.250 |" in text


def test_params_and_inputs_that_differ_are_named_and_the_sum_of_the_params_is_not():
    text = describe_run(FACTS, {"epochs": "4"}, SCORES, FIGURES, run({"epochs": "2"}, data="e" * 64, params="q" * 64))
    changes = text.partition("Changed since run `r1`:\n\n")[2]
    assert changes == "- `epochs`: `2` → `4`\n- `data`: `eeeeeeeeeeee` → `dddddddddddd`"


def test_where_nothing_differs_that_is_said():
    text = describe_run(FACTS, {"epochs": "4"}, SCORES, FIGURES, run({"epochs": "4"}))
    assert text.endswith("\n\nNo param and no input differs from run `r1`.")


def test_no_value_is_markup():
    text = describe_run(FACTS, {"source": "a`<b>`|\n# c"}, SCORES, FIGURES, run({}))
    assert text.endswith("- `source`: `absent` → `a'<b>'¦ # c`")


def test_the_text_is_no_longer_than_mlflow_takes():
    figures = {f"{'f' * 200}{i}{end}": 0.5 for i in range(50) for end in ("", "_low", "_high")}
    params = {f"{'p' * 200}{i}": "v" * 5000 for i in range(100)}
    text = describe_run(FACTS, params, SCORES, figures, run({}))
    assert len(text) < 8000
    assert text.endswith("\n- and 80 more")
