"""`pipeline verify`: scored, stored and described models are one file, or one line says which is not."""

import pytest
from onnx import TensorProto, helper

from pipeline.commands.show import verify_all
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file, write_json
from pipeline.networks.artifact import write_facts


@pytest.fixture
def shas(tmp_path, monkeypatch):
    """A project of two models with their scores, and the sha256 of each."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for name in ("finetuned", "baseline"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch"]) for end in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], name, ends[:1], ends[1:])
        write_facts(folder, helper.make_model(graph), {"model": name}, [{"epoch": 0}])
        found[name] = sha256_of_file(folder / "model.onnx")
        write_json(tmp_path / "results" / name / "scores.json", {"model_sha256": found[name]})
    (tmp_path / "models" / "backbone").mkdir()
    return found


def refusal():
    with pytest.raises(PipelineError) as error:
        verify_all()
    return str(error.value)


def test_each_model_that_agrees_has_a_line(shas):
    assert verify_all() == [
        f"{shas['baseline']}  models/baseline/model.onnx: scored, stored and described alike",
        f"{shas['finetuned']}  models/finetuned/model.onnx: scored, stored and described alike",
    ]


@pytest.mark.usefixtures("shas")
def test_scores_of_another_model_are_refused(tmp_path):
    write_json(tmp_path / "results/baseline/scores.json", {"model_sha256": "0" * 64})
    assert refusal() == "results/baseline/scores.json: tells of another model than models/baseline/model.onnx; run `dvc repro`"


@pytest.mark.usefixtures("shas")
def test_missing_scores_are_refused(tmp_path):
    (tmp_path / "results/finetuned/scores.json").unlink()
    assert refusal() == "results/finetuned/scores.json: tells of another model than models/finetuned/model.onnx; run `dvc repro`"


@pytest.mark.usefixtures("shas")
def test_a_changed_model_file_is_refused(tmp_path):
    path = tmp_path / "models" / "finetuned" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert refusal() == (
        f"models/finetuned/model.onnx: its sha256 is {sha256_of_file(path)}, model.json states another; run `dvc checkout`"
    )


def test_a_project_without_models_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal() == "models: holds no model; run `dvc repro`"
