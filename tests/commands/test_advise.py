"""`pipeline advise` on a small project: what it measures, prints and writes."""

import json
import shutil

import pytest

from pipeline.__main__ import main
from pipeline.commands.search import show_advice, to_set
from pipeline.core.hardware import choose_hardware
from pipeline.core.params import parse_yaml
from pipeline.search import advice
from tests.checkout import ROOT

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


@pytest.fixture
def here(in_small_project, monkeypatch):
    """A copy of the small project, in which only the backbone of params.yaml is available."""
    monkeypatch.setattr(advice, "PACKAGED", {})
    monkeypatch.setattr(advice, "_START", "pass")  # which takes seconds
    return in_small_project


def ask(capsys, *arguments):
    main(["advise", "--json", *arguments])
    return json.loads(capsys.readouterr().out)


def test_what_is_printed_is_the_golden_file():
    assert show_advice(FACTS, to_set(FACTS, {"finetuned": "finetuned"})) + "\n" == (ROOT / "tests/golden/advise.txt").read_text()


def test_what_is_to_be_set_is_printed_as_params_yaml_spells_it(here, capsys, monkeypatch):
    monkeypatch.setattr(advice, "find_evidence", lambda: FACTS)
    main(["advise", "--write"])
    written, printed = parse_yaml((here / "params.yaml").read_text()), parse_yaml(capsys.readouterr().out.partition("--write:\n")[2])
    assert {section: {key: written[section][key] for key in keys} for section, keys in printed.items()} == printed
    main(["advise", "--json"])
    assert json.loads(capsys.readouterr().out)["params"] == {"backbone": printed["backbone"]}


def test_an_entry_that_is_there_is_not_set_again():
    facts = {**FACTS, "network": "resnet18"}
    assert to_set(facts, {"head": "frozen"}) == {}
    assert show_advice(facts, {}).endswith("\nparams.yaml has it already.")


def test_an_entry_of_another_regime_is_left_alone():
    facts = {**FACTS, "network": "resnet18"}
    assert to_set(facts, {"frozen": "finetuned"}) == {"models.advised_frozen": {"regime": "frozen"}}


def test_a_faulty_entry_is_reported_before_anything_is_measured(here, capsys, monkeypatch):
    monkeypatch.setattr(advice, "find_evidence", lambda: pytest.fail("measured"))
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
    monkeypatch.setattr(advice, "find_evidence", lambda: FACTS)
    main(["advise", "--write"])
    after = parse_yaml((here / "params.yaml").read_text())
    assert after["models"].pop("frozen") == {"regime": "frozen"}
    assert after.pop("backbone") == {"name": "lite0", "weights": "packaged", "digest": None}
    wanted = parse_yaml(before)
    assert after == {**{key: value for key, value in wanted.items() if key != "backbone"}}
    assert "git diff params.yaml" in capsys.readouterr().err


def test_what_is_missing_is_named(here, capsys):
    shutil.rmtree(here / "data/splits/train")
    with pytest.raises(SystemExit):
        main(["advise"])
    assert capsys.readouterr().err.startswith("data/splits/train: does not exist")


def test_a_backbone_that_params_no_longer_name_is_no_ground_for_advice(here, capsys):
    params = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(params.replace("test_resnet", "resnet18"))
    with pytest.raises(SystemExit):
        main(["advise"])
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ("models/backbone", "test_resnet", "resnet18", "dvc repro backbone"))


def test_a_regime_is_tried_alike_whatever_was_tried_before(here):
    recipe, sample = advice.read_section("recipe", advice.AnyRegime), advice.read_sample(here / "data/manifest.csv", 0)
    hardware = choose_hardware(recipe.seed, recipe.threads, recipe.precision)
    network = advice.probe_network(here / "models/backbone", sample, recipe, hardware)
    alone = advice.try_regime("finetuned", network, sample, recipe)
    advice.try_regime("frozen", network, sample, recipe)
    assert advice.try_regime("finetuned", network, sample, recipe).losses.tolist() == alone.losses.tolist()
