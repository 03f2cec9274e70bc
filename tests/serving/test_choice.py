"""Which stored model predicts: the named one, or the best on val."""

import onnx
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of_file, write_json
from pipeline.networks.artifact import best_model, find_model
from pipeline.serving.predictor import open_model
from tests.stored import write_model


@pytest.fixture
def models(tmp_path):
    """A project's models: the second has the lowest val loss, in an epoch that is not its last."""
    write_model(tmp_path / "models" / "baseline", val_losses=(0.4, 0.3))
    write_model(tmp_path / "models" / "finetuned", val_losses=(0.5, 0.1, 0.9))
    (tmp_path / "models" / "backbone").mkdir()
    return tmp_path / "models"


def refusal(call, *arguments):
    with pytest.raises(PipelineError) as error:
        call(*arguments)
    return str(error.value)


def test_the_model_with_the_lowest_val_loss_is_the_best(models):
    assert best_model(models) == models / "finetuned"


def test_of_equals_the_first_by_name_is_the_best(models):
    write_model(models / "another", val_losses=(0.1,))
    assert best_model(models) == models / "another"


def test_an_epoch_without_val_loss_does_not_count(models):
    (models / "finetuned" / "history.csv").write_text("epoch,val_loss\n0,\n1,0.35\n")
    assert best_model(models) == models / "baseline"


def test_a_model_without_history_is_not_chosen(models):
    (models / "finetuned" / "history.csv").unlink()
    assert best_model(models) == models / "baseline"


def test_without_a_name_the_best_model_is_found(models, tmp_path):
    assert find_model(None, models, tmp_path) == models / "finetuned"


def test_a_name_is_one_of_the_models(models, tmp_path):
    assert find_model("baseline", models, tmp_path) == models / "baseline"


def test_a_folder_is_found_relative_to_the_users_folder(models, tmp_path):
    mine = write_model(tmp_path / "below" / "mine")
    assert find_model("mine", models, tmp_path / "below") == mine
    assert find_model(str(mine), models, tmp_path) == mine


@pytest.mark.parametrize("named", [None, "baseline"])
def test_a_model_that_has_left_params_yaml_does_not_answer(models, tmp_path, named):
    (tmp_path / "params.yaml").write_text("models: {head: {regime: frozen}}\n")
    write_model(models / "head", val_losses=(0.9,))
    assert find_model(named, models, tmp_path) == models / "baseline"
    for name in ("finetuned", "models/finetuned", str(models / "finetuned"), "./models/../models/finetuned"):
        assert refusal(find_model, name, models, tmp_path) == (
            f"{models}/finetuned: is a stray, params.yaml has no such entry of `models`; add it, or run `pipeline mend --strays`"
        )


def test_a_model_that_has_left_params_yaml_is_not_among_those_available(models, tmp_path):
    (tmp_path / "params.yaml").write_text("models: {}\n")
    assert refusal(find_model, "nothing", models, tmp_path).endswith("; available: baseline")


@pytest.mark.parametrize("named", [None, "finetuned"])
def test_a_model_of_another_manifest_than_the_present_one_does_not_answer(models, tmp_path, named):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.csv").write_text("image_id\n")
    facts = {"inputs_sha256": {"data": sha256_of_file(tmp_path / "data/manifest.csv")}}
    for name in ("baseline", "finetuned"):
        path = models / name / "model.json"
        write_json(path, {**read_json(path), **facts})
    assert find_model(named, models, tmp_path) == models / "finetuned"
    (tmp_path / "data/manifest.csv").write_text("image_id\nnew.png\n")
    assert refusal(find_model, named, models, tmp_path).endswith(
        f": was trained on other pictures than those of {tmp_path}/data/manifest.csv; run `dvc repro`"
    )


def test_a_model_folder_elsewhere_answers_whatever_the_project_contains(models, tmp_path):
    (tmp_path / "params.yaml").write_text("models: {}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.csv").write_text("image_id\n")
    mine = write_model(tmp_path / "below/finetuned")
    assert find_model("below/finetuned", models, tmp_path) == mine


def test_a_project_without_models_is_refused(tmp_path):
    assert refusal(best_model, tmp_path / "models").startswith(f"{tmp_path}/models: ")


@pytest.mark.parametrize("name", ["nothing", "backbone", ""])
def test_a_model_that_is_not_there_is_refused(models, tmp_path, name):
    fault = refusal(find_model, name, models, tmp_path)
    assert fault.startswith(f"--model {name}: ")
    assert "baseline, finetuned" in fault


def test_a_model_named_where_there_is_none_is_refused(tmp_path):
    fault = refusal(find_model, "a", tmp_path / "models", tmp_path)
    assert fault.startswith("--model a: ")
    assert "run `dvc repro`" in fault


@pytest.mark.parametrize("content", [b"", b"no model", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_model_is_refused(models, content):
    (models / "baseline" / "model.onnx").write_bytes(content)
    assert refusal(open_model, models / "baseline", 1).startswith(f"{models}/baseline/model.onnx: ")


def test_a_graph_without_our_metadata_is_refused(models):
    model = onnx.load(models / "baseline" / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, models / "baseline" / "model.onnx")
    assert refusal(open_model, models / "baseline", 1).startswith(f"{models}/baseline/model.onnx: ")


def test_a_model_is_opened(models):
    assert open_model(models / "baseline", 1).class_names == ["ants", "bees", "Käfer"]
