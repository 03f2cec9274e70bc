"""`pipeline advise` on a small project: what it finds, prints and writes."""

import json
import shutil

import pytest

from pipeline.__main__ import main
from pipeline.commands import search as advise
from pipeline.core.hardware import choose_hardware
from pipeline.core.params import parse_yaml
from pipeline.search import advice as evidence
from tests.commands.test_tune import enter, project  # noqa: F401 - a fixture

FACTS = {
    "training_pictures": 1437,
    "a_class": 140.5,
    "is_much": False,
    "distance": {"network": "resnet18", "errors": 0.05, "untrained_errors": 0.1, "remaining": 0.5, "is_far": True},
    "sketch": "the head and the last stages (partial)",
    "networks": [
        {"name": "resnet18", "loss": 0.25, "rival": None, "difference": 0.0, "interval": [0.0, 0.0], "is_better": False},
        {"name": "lite0", "loss": 0.125, "rival": "resnet18", "difference": -0.125, "interval": [-0.25, -0.0625], "is_better": True},
    ],
    "regimes": [
        {"name": "frozen", "loss": 0.5, "rival": None, "difference": 0.0, "interval": [0.0, 0.0], "is_better": False},
        {"name": "partial", "loss": 0.5, "rival": "frozen", "difference": 0.0, "interval": None, "is_better": False},
        {"name": "finetuned", "loss": 0.5, "rival": "frozen", "difference": 0.03, "interval": [-0.02, 0.06], "is_better": False},
    ],
    "seconds": {"frozen": 12.3, "partial": 34.5, "finetuned": 61.0},
    "network": "lite0",
    "regime": "frozen",
}
SAID = """\
1,437 training pictures, 140.5 of a class (the median): little data; 1,000 are much.
A head errs on 5.0% of them by the features of resnet18, on 10.0% by those of
the same network with random weights: 50% of the errors remain, far from what it was trained on.
For that the sketch of the courses says: the head and the last stages (partial). What was tried:

network   log loss of a head  difference, 95 % interval
resnet18  0.250               -
lite0     0.125               -0.125 [-0.250, -0.062]: better than resnet18

regime     val log loss  seconds  difference, 95 % interval
frozen     0.500         12       -
partial    0.500         34       the same as frozen
finetuned  0.500         61       +0.030 [-0.020, +0.060]: not shown to be better than frozen

Take lite0, frozen: about 12 s a training on this machine.

To set in params.yaml, by hand or by --write:
models:
  frozen: {regime: frozen}
backbone:
  name: lite0
  weights: packaged
  digest: null"""


@pytest.fixture
def here(project, tmp_path, monkeypatch):  # noqa: F811
    """A copy of the project, in which only the backbone of params.yaml is at hand."""
    monkeypatch.setattr(evidence, "PACKAGED", {})
    monkeypatch.setattr(evidence, "_START", "pass")  # it takes its time
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    enter(folder, monkeypatch)
    return folder


def ask(capsys, *arguments):
    main(["advise", "--json", *arguments])
    return json.loads(capsys.readouterr().out)


def test_what_is_found_is_told():
    assert advise.show_advice(FACTS, advise.to_set(FACTS, {"finetuned": "finetuned"})) == SAID


def test_what_is_to_be_set_is_told_as_params_yaml_holds_it(here, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "find_evidence", lambda: FACTS)
    main(["advise", "--write"])
    written, told = parse_yaml((here / "params.yaml").read_text()), parse_yaml(capsys.readouterr().out.partition("--write:\n")[2])
    assert {section: {key: written[section][key] for key in keys} for section, keys in told.items()} == told
    main(["advise", "--json"])
    assert json.loads(capsys.readouterr().out)["params"] == {section: told[section] for section in ("backbone",)}


def test_an_entry_that_is_there_is_not_set_again():
    facts = {**FACTS, "network": "resnet18"}
    assert advise.to_set(facts, {"head": "frozen"}) == {}
    assert advise.show_advice(facts, {}).endswith("resnet18, frozen: about 12 s a training on this machine.\nparams.yaml has it already.")


def test_an_entry_of_another_regime_is_left_alone():
    facts = {**FACTS, "network": "resnet18"}
    assert advise.to_set(facts, {"frozen": "finetuned"}) == {"models.advised_frozen": {"regime": "frozen"}}


def test_a_faulty_entry_is_told_of_before_anything_is_measured(here, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "find_evidence", lambda: pytest.fail("measured"))
    params = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(params.replace("regime: finetuned", "regime: frosted"))
    with pytest.raises(SystemExit):
        main(["advise"])
    assert "models.finetuned.regime: 'frosted' is" in capsys.readouterr().err


def test_all_regimes_are_tried_on_a_sample_and_the_same_is_found_again(here, capsys):
    shutil.rmtree(here / "data/embeddings")  # it is not read
    first, second = ask(capsys), ask(capsys)
    assert [row["name"] for row in first["regimes"]] == ["frozen", "partial", "finetuned"] == list(first["seconds"])
    assert all(seconds > 0 for seconds in first["seconds"].values())
    assert [row["name"] for row in first["networks"]] == ["test_resnet"] == [first["network"]]
    assert (first["training_pictures"], first["a_class"], first["is_much"]) == (12, 6.0, False)
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_the_favourite_is_written_and_nothing_else_changes(here, capsys, monkeypatch):
    before = (here / "params.yaml").read_text()
    monkeypatch.setattr(evidence, "find_evidence", lambda: FACTS)
    main(["advise", "--write"])
    after = parse_yaml((here / "params.yaml").read_text())
    assert after["models"].pop("frozen") == {"regime": "frozen"}
    assert after.pop("backbone") == {"name": "lite0", "weights": "packaged", "digest": None}
    wanted = parse_yaml(before)
    assert after == {**{key: value for key, value in wanted.items() if key != "backbone"}}
    assert capsys.readouterr().err == "Written: see `git diff params.yaml`.\n"


def test_what_is_missing_is_named(here, capsys):
    shutil.rmtree(here / "data/splits/train")
    with pytest.raises(SystemExit):
        main(["advise"])
    assert "data/splits/train: is not there; run `dvc repro`" in capsys.readouterr().err


def test_a_backbone_that_params_no_longer_name_is_no_ground_for_advice(here, capsys):
    params = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(params.replace("test_resnet", "resnet18"))
    with pytest.raises(SystemExit):
        main(["advise"])
    assert capsys.readouterr().err == "models/backbone: holds test_resnet, params.yaml names resnet18; run `dvc repro backbone`\n"


def test_a_regime_is_tried_alike_whatever_was_tried_before(here):
    recipe, pictures = evidence.read_section("recipe", evidence.AnyRegime), evidence.read_sample(here / "data/manifest.csv", 0)
    look = evidence.probe_network(here / "models/backbone", pictures, recipe, choose_hardware(recipe))
    alone = evidence.try_regime("finetuned", look, pictures, recipe)
    evidence.try_regime("frozen", look, pictures, recipe)
    assert evidence.try_regime("finetuned", look, pictures, recipe).losses.tolist() == alone.losses.tolist()
