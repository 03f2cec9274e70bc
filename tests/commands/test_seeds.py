"""`pipeline seeds` with a DVC that only records its calls: which experiments run, with which settings, and the table."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from pipeline.__main__ import main
from pipeline.core import hardware
from pipeline.core.errors import PipelineError
from pipeline.search import seeds
from pipeline.search.seeds import run_seeds
from tests.checkout import ROOT
from tests.search.test_seeds import FIRST, SECOND, make_scores

ACCURACY = {"baseline": FIRST, "finetuned": SECOND}


def make_comparison(seed):
    """metrics/comparison.json of the run of that seed."""
    models = {name: make_scores(values[seed]) for name, values in ACCURACY.items()}
    return {"test_pictures": 268, "confidence": 0.95, "models": models, "differences": {}}


class FakeDVC:
    """Experiments by name, each its seed; the seed in `fails` ends with 1."""

    def __init__(self):
        self.experiments, self.calls, self.fails = {}, [], None

    def __call__(self, *arguments, stdout):
        self.calls.append(arguments)
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
    monkeypatch.setattr(seeds, "run_dvc", fake)
    monkeypatch.setattr(seeds, "_find", fake.experiments.get)
    monkeypatch.setattr(seeds, "_read", fake.read)
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"split": {"cmd": "python"}}}))
    write_params()
    return fake


def write_params(**changed):
    Path("params.yaml").write_text(yaml.safe_dump({"seed": 0, "threads": 1, "models": {"finetuned": {}}, **changed}))


def seeds_of(dvc):
    return [arguments[arguments.index("-S") + 1] for arguments in dvc.calls]


def test_each_seed_runs_once_in_a_copy_of_the_project(dvc):
    names = run_seeds([0, 2], [])["experiments"]
    assert dvc.calls == [
        ("exp", "run", "--temp", "--name", name, "-S", seed) for name, seed in zip(names, ("seed=0", "seed=2"), strict=True)
    ]


def test_other_settings_are_passed_through(dvc):
    run_seeds([0, 1], ["split.test=0.2", "download.source=a"])
    assert dvc.calls[1][-6:] == ("-S", "seed=1", "-S", "split.test=0.2", "-S", "download.source=a")


def test_a_seed_whose_experiment_is_there_is_not_run_again(dvc):
    run_seeds([0, 1], [])
    again = run_seeds([0, 1, 2], [])
    assert seeds_of(dvc) == ["seed=0", "seed=1", "seed=2"]
    assert again["models"]["baseline"]["top1_accuracy"]["values"] == FIRST


@pytest.mark.parametrize("changed", [{"seed": 5}, {"tune": {"trials": 3}}])
def test_what_decides_nothing_of_a_run_makes_no_experiment_old(dvc, changed):
    run_seeds([0, 1], [])
    write_params(**changed)
    run_seeds([0, 1], [])
    assert len(dvc.calls) == 2


@pytest.mark.parametrize("what", ["params", "settings", "dvc.yaml", "code", "package"])
def test_what_changed_since_makes_an_experiment_old(dvc, what, monkeypatch):
    run_seeds([0, 1], [])
    if what == "params":
        write_params(threads=2)
    if what == "dvc.yaml":
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"split": {"cmd": "python3"}}}))
    if what == "code":
        monkeypatch.setattr(seeds, "code_digest", lambda module: "another")
    if what == "package":
        monkeypatch.setattr(hardware, "version", lambda package: "0.0")
    run_seeds([0, 1], ["split.test=0.2"] if what == "settings" else [])
    assert len(dvc.calls) == 4


def test_a_seed_that_fails_ends_it_and_what_ran_is_kept(dvc):
    dvc.fails = 1
    with pytest.raises(PipelineError, match=r"^seed 1: `dvc exp run` failed"):
        run_seeds([0, 1, 2], [])
    dvc.fails = None
    run_seeds([0, 1, 2], [])
    assert seeds_of(dvc) == ["seed=0", "seed=1", "seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("seeds", "settings", "fault"),
    [
        ([0], [], "seeds: 1 seed "),
        ([0, 1, 1], [], "seeds: 1 is repeated"),
        ([0, -1], [], "seeds: -1 is below 0"),
        ([0, 1], ["seed=4"], "-S seed=4: "),
        ([0, 1], ["params.yaml:seed=4"], "-S params.yaml:seed=4: "),
        ([0, 1], ["split.seed=4"], "-S split.seed=4: "),
        ([0, 1], ["+split.seed=4"], "-S +split.seed=4: "),
    ],
)
def test_seeds_and_settings_that_show_no_noise_are_refused_before_anything_runs(dvc, seeds, settings, fault):
    with pytest.raises(PipelineError, match=f"^{re.escape(fault)}"):
        run_seeds(seeds, settings)
    assert dvc.calls == []


def settings_of(call):
    return [value for flag, value in itertools.pairwise(call) if flag == "-S"]


@pytest.mark.parametrize(
    ("split", "settings", "split_seed"),
    [
        ({"val": 0.2}, ["+split.seed=5"], 5),  # a key that is missing is added
        ({"val": 0.2, "seed": None}, ["split.seed=5"], 5),
        ({"val": 0.2, "seed": 7}, [], 7),  # params.yaml keeps it
    ],
)
def test_a_kept_split_is_that_of_params_yaml_in_every_run(dvc, split, settings, split_seed):
    write_params(seed=5, split=split)
    facts = run_seeds([0, 1], ["evaluate.confidence=0.9"], keep_split=True)
    assert [settings_of(call) for call in dvc.calls] == [[f"seed={seed}", "evaluate.confidence=0.9", *settings] for seed in (0, 1)]
    assert facts["split_seed"] == split_seed


def test_the_split_varies_by_default_even_if_params_yaml_fixes_it(dvc):
    write_params(split={"val": 0.2, "seed": 7})
    assert run_seeds([0, 1], [])["split_seed"] is None
    assert [settings_of(call) for call in dvc.calls] == [["seed=0", "split.seed=null"], ["seed=1", "split.seed=null"]]


def test_runs_of_a_kept_split_and_of_another_split_are_other_experiments(dvc):
    names = [run_seeds([0, 1], [])["experiments"], run_seeds([0, 1], [], keep_split=True)["experiments"]]
    write_params(seed=5)
    names += [run_seeds([0, 1], [])["experiments"], run_seeds([0, 1], [], keep_split=True)["experiments"]]
    assert names[0] == names[2]  # the top-level seed is that of the run
    assert len({*names[0], *names[1], *names[3]}) == 6


def test_a_setting_whose_value_speaks_of_a_seed_is_none(dvc):
    run_seeds([0, 1], ["download.source=a:seed=4"])
    assert len(dvc.calls) == 2


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
    assert str(error.value).endswith(": run in a clone")


def test_two_at_once_are_refused(dvc):
    Path(".cache/locks").mkdir(parents=True)
    with FileLock(".cache/locks/seeds.lock"), pytest.raises(PipelineError) as error:
        run_seeds([0, 1], [])
    assert str(error.value).startswith(".cache/locks/seeds.lock: another `pipeline seeds` is running")


@pytest.mark.parametrize("keep", ["", "--keep-split"])
def test_what_is_printed_is_the_golden_file(dvc, capsys, keep):
    main(["seeds", "0", "1", "2", *keep.split()])
    output, errors = capsys.readouterr()
    printed = re.sub(r"-[0-9a-f]{7}\b", "-1234567", output + errors)
    assert printed == (ROOT / f"tests/golden/seeds{keep}.txt").read_text()


def test_json_on_demand_is_all_that_is_printed_on_stdout(dvc, capsys):
    main(["seeds", "0", "1", "-S", "split.test=0.2", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["experiments"] == list(dvc.experiments)
    assert facts["differences"]["finetuned"]["values"] == [0.03, 0.05]


def test_different_numbers_of_test_pictures_are_reported(dvc, monkeypatch, capsys):
    monkeypatch.setattr(
        seeds,
        "_read",
        lambda path, commit: json.dumps({**make_comparison(int(commit)), "test_pictures": 100 + int(commit)}),
    )
    main(["seeds", "0", "1"])
    assert "\n100 to 101 test pictures; " in capsys.readouterr().out
