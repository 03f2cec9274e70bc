"""`pipeline verify`: a model file that changed after it was described is refused, and so is a stray, which `mend --strays` removes."""

import shutil

import pytest

from pipeline.__main__ import main
from pipeline.commands.show import verify_all
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of_file, write_json
from pipeline.networks.artifact import best_model, find_model, find_strays
from tests.stored import write_model


def test_a_changed_model_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_model(tmp_path / "models/finetuned") / "model.onnx"
    write_json(tmp_path / "results/finetuned/scores.json", {"model_sha256": sha256_of_file(path)})
    assert len(verify_all()) == 1
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PipelineError, match=rf"^models/finetuned/model\.onnx: .*{sha256_of_file(path)}"):
        verify_all()


def test_strays_are_named_and_removed_on_request_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_text("models: {head: {regime: frozen}}\n")
    for name in ("head", "old"):
        folder = write_model(tmp_path / "models" / name)
        facts = {"model": name, "model_sha256": read_json(folder / "model.json")["model_sha256"]}
        write_json(tmp_path / "results" / name / "scores.json", facts)
        write_json(tmp_path / "metrics" / f"{name}.json", {name: {"log_loss": 0.5}})
    write_json(tmp_path / "metrics/comparison.json", {"models": {}})
    write_json(tmp_path / "metrics/mine.json", {"field_accuracy": 0.5})
    write_json(tmp_path / "models/theirs/model.json", {"framework": "another"})
    with pytest.raises(PipelineError, match=r"^metrics/old.json, models/old, results/old: .*`pipeline mend --strays`"):
        verify_all()
    main(["mend"])
    assert (capsys.readouterr().out, (tmp_path / "models/old").exists()) == ("", True)
    main(["mend", "--strays"])
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["metrics/old.json", "models/old", "results/old"]
    main(["mend", "--strays"])
    assert capsys.readouterr().out == ""
    left = {path.relative_to(tmp_path).as_posix() for room in ("models", "results", "metrics") for path in (tmp_path / room).iterdir()}
    assert left == {"models/head", "models/theirs", "results/head", "metrics/head.json", "metrics/comparison.json", "metrics/mine.json"}


@pytest.mark.parametrize("params", [None, "seed: 1\n"])
def test_where_nothing_says_which_models_there_are_none_is_a_stray(tmp_path, monkeypatch, params):
    monkeypatch.chdir(tmp_path)
    if params:
        (tmp_path / "params.yaml").write_text(params)
    write_model(tmp_path / "models/small")
    assert find_strays(tmp_path) == []


def test_a_copy_under_another_name_is_no_stray_but_not_chosen_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("models: {head: {}}\n")
    write_model(tmp_path / "models/head", val_losses=(0.5,))
    shutil.copytree(write_model(tmp_path / "models/older", val_losses=(0.1,)), tmp_path / "models/kept.v1")
    assert find_strays(tmp_path) == [tmp_path / "models/older"]
    assert best_model(tmp_path / "models").name == "head"
    assert find_model("kept.v1", tmp_path / "models", tmp_path).name == "kept.v1"
