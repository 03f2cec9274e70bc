"""The spread of several seeds, worked by hand and with SciPy's t test as the oracle."""

import subprocess

import pytest
from scipy import stats

from pipeline.core.errors import PipelineError
from pipeline.search import seeds
from pipeline.search.seeds import noise, paired_spread, seeds_verdict, spread, summarise

FIRST, SECOND = [0.90, 0.91, 0.92], [0.93, 0.96, 0.99]


def make_scores(accuracy):
    """Scores of a model whose accuracy has an interval of ± 0.03 and whose ECE has none."""
    figures = dict.fromkeys(("top1_accuracy", "balanced_accuracy", "log_loss"), accuracy)
    ends = {f"{name}{end}": value + shift for name, value in figures.items() for end, shift in (("_low", -0.03), ("_high", 0.03))}
    return {**figures, **ends, "ece": 0.05, "test_pictures": 268, "confidence": 0.95}


@pytest.fixture
def facts():
    runs = {
        seed: {"baseline": make_scores(first), "finetuned": make_scores(second)}
        for seed, first, second in zip((0, 1, 7), FIRST, SECOND, strict=True)
    }
    return summarise(runs, "baseline")


def test_a_spread_is_the_mean_and_the_sample_standard_deviation():
    assert spread([0.90, 0.92, 0.94]) == {"mean": 0.92, "std": 0.02}


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test():
    found = paired_spread(FIRST, SECOND, 0.95)
    expected = stats.ttest_rel(SECOND, FIRST).confidence_interval(0.95)
    assert (found["low"], found["high"]) == (pytest.approx(expected.low, abs=1e-6), pytest.approx(expected.high, abs=1e-6))


def test_a_difference_is_paired_within_a_seed():
    found = paired_spread(FIRST, SECOND, 0.95)
    assert (found["mean"], found["std"], found["values"]) == (0.05, 0.02, [0.03, 0.05, 0.07])


@pytest.mark.parametrize(
    ("second", "shown"),
    [(SECOND, True), ([0.90, 0.96, 0.92], False), ([0.87, 0.86, 0.85], True), (FIRST, False)],
    ids=["better", "noise", "worse", "equal"],
)
def test_a_difference_is_shown_where_its_interval_leaves_zero_out(second, shown):
    assert paired_spread(FIRST, second, 0.95)["shown"] is shown


def test_a_figure_says_how_wide_the_interval_of_one_run_is(facts):
    assert facts["models"]["baseline"]["top1_accuracy"] == {"mean": 0.91, "std": 0.01, "one_run": 0.03, "values": FIRST}


def test_a_figure_without_an_interval_says_nothing_of_it(facts):
    assert facts["models"]["finetuned"]["ece"] == {"mean": 0.05, "std": 0.0, "one_run": None, "values": [0.05, 0.05, 0.05]}


def test_every_model_but_the_baseline_has_a_difference(facts):
    assert {name: found["mean"] for name, found in facts["differences"].items()} == {"finetuned": 0.05}


def test_the_seeds_and_their_test_pictures_are_named(facts):
    assert (facts["seeds"], facts["test_pictures"], facts["confidence"]) == ([0, 1, 7], [268, 268, 268], 0.95)


def test_a_difference_within_the_noise_is_in_points_and_not_shown():
    sentence = seeds_verdict("finetuned", "baseline", paired_spread(FIRST, [0.90, 0.96, 0.92], 0.9), 0.9)
    for fact in ("+1.7 ± 2.9 points", "90 %", "-3.2 to +6.5", "not shown beyond", "3 seeds"):
        assert fact in sentence


@pytest.mark.parametrize(("half", "words"), [(0.03, "within the ± 3.0"), (0.0195, "more than the ± 1.9"), (0.005, "more than the ± 0.5")])
def test_the_noise_between_seeds_is_compared_with_the_interval_of_one_run(half, words):
    sentence = noise("baseline", {"std": 0.01, "one_run": half}, 0.95)
    assert "± 2.0 points (95 %)" in sentence
    assert words in sentence


# Experiments


@pytest.mark.parametrize("place", ["root", "folder of a larger repository", "worktree"])
def test_the_scores_of_an_experiment_are_read_wherever_the_project_lies(tmp_path, monkeypatch, place):
    root = tmp_path / "mono"
    project = root if place == "root" else root / "ml"
    (project / "metrics").mkdir(parents=True)
    (project / "metrics/comparison.json").write_text("{}")
    run_git("init", "-q", str(root))
    for arguments in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "a"]):
        run_git("-C", str(root), *arguments)
    run_git("-C", str(root), "update-ref", "refs/exps/00/0/seed-1-a", "HEAD")
    if place == "worktree":
        run_git("-C", str(root), "worktree", "add", "-q", str(tmp_path / "other"))
        project = tmp_path / "other/ml"
    monkeypatch.chdir(project)
    assert seeds._read("metrics/comparison.json", seeds._find("seed-1-a")) == "{}"


def run_git(*arguments):
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def test_git_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PipelineError, match=r"^git: is not installed; .*install it$"):
        seeds._find("seed-1-a")


@pytest.mark.parametrize("seed", [2**32, 2**70])
def test_a_seed_that_numpy_does_not_take_is_refused_before_anything_runs(seed):
    with pytest.raises(PipelineError, match=rf"^seeds: {seed} is above 4294967295; name smaller ones$"):
        seeds.run_seeds([1, seed], [])
