"""`pipeline seeds` with a DVC that only notes what it is told: what runs, what does not, and the table."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from pipeline.__main__ import main
from pipeline.commands import search
from pipeline.core.errors import PipelineError
from pipeline.search import seeds
from pipeline.search.seeds import run_seeds
from pipeline.training import checkpoint
from tests.evaluation.test_seeds import FIRST, SECOND, make_scores

ACCURACY = {"baseline": FIRST, "finetuned": SECOND}


def make_comparison(seed):
    """What git keeps of the run of that seed."""
    models = {name: make_scores(values[seed]) for name, values in ACCURACY.items()}
    return {"test_pictures": 268, "confidence": 0.95, "models": models, "differences": {}}


class FakeDVC:
    """Experiments by name, each its seed; the seed in `fails` ends with 1."""

    def __init__(self):
        self.experiments, self.told, self.fails = {}, [], None

    def __call__(self, *arguments, stdout):
        self.told.append(arguments)
        seed = int(arguments[arguments.index("-S") + 1].removeprefix("seed="))
        if seed != self.fails:
            self.experiments[arguments[arguments.index("--name") + 1]] = str(seed)
        return subprocess.CompletedProcess(arguments, int(seed == self.fails))

    def read(self, path, commit):
        assert path == "metrics/comparison.json"
        return json.dumps(make_comparison(int(commit)))


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    """A project with one stage and one model beside the baseline, and its DVC."""
    fake = FakeDVC()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(search, "run_dvc", fake)
    monkeypatch.setattr(seeds, "_find", fake.experiments.get)
    monkeypatch.setattr(seeds, "_read", fake.read)
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"split": {"cmd": "python"}}}))
    write_params()
    return fake


def write_params(**changed):
    Path("params.yaml").write_text(yaml.safe_dump({"seed": 0, "threads": 1, "models": {"finetuned": {}}, **changed}))


def seeds_told(dvc):
    return [arguments[arguments.index("-S") + 1] for arguments in dvc.told]


def test_each_seed_runs_once_in_a_copy_of_the_project(dvc):
    names = run_seeds([0, 2], [])["experiments"]
    assert dvc.told == [
        ("exp", "run", "--temp", "--name", name, "-S", seed) for name, seed in zip(names, ("seed=0", "seed=2"), strict=True)
    ]


def test_other_settings_are_passed_through(dvc):
    run_seeds([0, 1], ["split.test=0.2", "download.source=a"])
    assert dvc.told[1][-6:] == ("-S", "seed=1", "-S", "split.test=0.2", "-S", "download.source=a")


def test_a_seed_whose_experiment_is_there_is_not_run_again(dvc):
    run_seeds([0, 1], [])
    again = run_seeds([0, 1, 2], [])
    assert seeds_told(dvc) == ["seed=0", "seed=1", "seed=2"]
    assert again["models"]["baseline"]["top1_accuracy"]["values"] == FIRST


@pytest.mark.parametrize("changed", [{"seed": 5}, {"tune": {"trials": 3}}])
def test_what_decides_nothing_of_a_run_makes_no_experiment_old(dvc, changed):
    run_seeds([0, 1], [])
    write_params(**changed)
    run_seeds([0, 1], [])
    assert len(dvc.told) == 2


@pytest.mark.parametrize("what", ["params", "settings", "dvc.yaml", "code", "package"])
def test_what_changed_since_makes_an_experiment_old(dvc, what, monkeypatch):
    run_seeds([0, 1], [])
    if what == "params":
        write_params(threads=2)
    if what == "dvc.yaml":
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"split": {"cmd": "python3"}}}))
    if what == "code":
        monkeypatch.setattr(search, "code_digest", lambda module: "another")
    if what == "package":
        monkeypatch.setattr(checkpoint, "version", lambda package: "0.0")
    run_seeds([0, 1], ["split.test=0.2"] if what == "settings" else [])
    assert len(dvc.told) == 4


def test_a_seed_that_fails_ends_it_and_what_ran_is_kept(dvc):
    dvc.fails = 1
    with pytest.raises(PipelineError) as error:
        run_seeds([0, 1, 2], [])
    assert str(error.value) == "seed 1: `dvc exp run` failed, see above; mend it and type the command again, what ran is kept"
    dvc.fails = None
    run_seeds([0, 1, 2], [])
    assert seeds_told(dvc) == ["seed=0", "seed=1", "seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("seeds", "settings", "line"),
    [
        ([0], [], "seeds: 1 seed shows no noise; name two or more"),
        ([0, 1, 1], [], "seeds: 1 stands there twice; name different whole numbers"),
        ([0, -1], [], "seeds: -1 is below 0; name different whole numbers"),
        ([0, 1], ["seed=4"], "-S seed=4: the seeds are set by their numbers; leave it out"),
        ([0, 1], ["params.yaml:seed=4"], "-S params.yaml:seed=4: the seeds are set by their numbers; leave it out"),
    ],
)
def test_seeds_that_show_no_noise_are_refused_before_anything_runs(dvc, seeds, settings, line):
    with pytest.raises(PipelineError) as error:
        run_seeds(seeds, settings)
    assert (str(error.value), dvc.told) == (line, [])


def test_a_setting_whose_value_speaks_of_a_seed_is_none(dvc):
    run_seeds([0, 1], ["download.source=a:seed=4"])
    assert len(dvc.told) == 2


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, which an experiment's name leads to."""
    monkeypatch.chdir(tmp_path)
    for arguments in (["init", "-q"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run(["git", *arguments], check=True)
    subprocess.run(["git", "update-ref", "refs/exps/ab/cdef/seed-0-1234567", "HEAD"], check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_an_experiment_is_found_by_its_name_in_git(repository):
    assert seeds._find("seed-0-1234567") == repository


@pytest.mark.parametrize("name", ["0-1234567", "seed-0-123456", "seed-1-1234567"])
def test_an_experiment_of_another_name_is_not_found(repository, name):
    assert seeds._find(name) is None


def test_outside_of_git_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(PipelineError) as error:
        seeds._find("seed-0-1234567")
    assert str(error.value).endswith("; experiments are kept in git: run in a clone")


def test_two_at_once_are_refused(dvc):
    Path(".cache/locks").mkdir(parents=True)
    with FileLock(".cache/locks/seeds.lock"), pytest.raises(PipelineError) as error:
        run_seeds([0, 1], [])
    assert str(error.value) == ".cache/locks/seeds.lock: another `pipeline seeds` is running; wait for it"


def test_the_table_is_shown_whole(dvc, capsys):
    main(["seeds", "0", "1", "2"])
    names = ", ".join(dvc.experiments)
    assert capsys.readouterr().out == (
        "model      figure             mean ± std     seed 0  seed 1  seed 2  one run\n"
        "baseline   top-1 accuracy     0.910 ± 0.010  0.900   0.910   0.920   ± 0.030\n"
        "baseline   balanced accuracy  0.910 ± 0.010  0.900   0.910   0.920   ± 0.030\n"
        "baseline   log loss           0.910 ± 0.010  0.900   0.910   0.920   ± 0.030\n"
        "baseline   ECE                0.050 ± 0.000  0.050   0.050   0.050\n"
        "finetuned  top-1 accuracy     0.960 ± 0.030  0.930   0.960   0.990   ± 0.030\n"
        "finetuned  balanced accuracy  0.960 ± 0.030  0.930   0.960   0.990   ± 0.030\n"
        "finetuned  log loss           0.960 ± 0.030  0.930   0.960   0.990   ± 0.030\n"
        "finetuned  ECE                0.050 ± 0.000  0.050   0.050   0.050\n"
        "\n"
        "268 test pictures; std between seeds; one run: half the 95 % interval that a run states.\n"
        "baseline: a seed moves the accuracy by ± 2.0 points (95 %), within the ± 3.0 that one run states.\n"
        "finetuned: a seed moves the accuracy by ± 5.9 points (95 %), more than the ± 3.0 that one run states.\n"
        "finetuned - baseline, paired within a seed: +5.0 ± 2.0 points, 95 % t interval +0.0 to +10.0: "
        "beyond the noise between 3 seeds.\n"
        f"Experiments: {names} (`dvc exp show`, `dvc exp apply NAME`).\n"
    )


def test_json_on_demand_is_all_that_is_printed_on_stdout(dvc, capsys):
    main(["seeds", "0", "1", "-S", "split.test=0.2", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["experiments"] == list(dvc.experiments)
    assert facts["differences"]["finetuned"]["values"] == [0.03, 0.05]


def test_seeds_that_tested_on_more_or_fewer_pictures_are_told_of(dvc, monkeypatch, capsys):
    monkeypatch.setattr(
        seeds,
        "_read",
        lambda path, commit: json.dumps({**make_comparison(int(commit)), "test_pictures": 100 + int(commit)}),
    )
    main(["seeds", "0", "1"])
    assert "\n100 to 101 test pictures; " in capsys.readouterr().out
