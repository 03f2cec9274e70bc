"""`pipeline export`: a form is scored beside its model before it is written. `pipeline export-folders`: trees that torchvision reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from torchvision.datasets import ImageFolder

from pipeline.__main__ import main, make_parser
from pipeline.core.files import read_json, sha256_of_file, write_json
from pipeline.networks import forms
from pipeline.pictures.manifest import Picture, read_manifest, write_manifest
from pipeline.promotion import judging
from pipeline.promotion.exporting import calibration_pixels
from pipeline.serving.predictor import Predictor
from pipeline.stages import split
from tests import projects, scored
from tests.stored import SIZE, conv_graph, linear_graph

OUTS = ("data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")


@pytest.mark.parametrize("folders_up_to", [0, 1000])
def test_every_picture_is_in_its_split_and_class(in_small_project, folders_up_to):
    params = {**projects.PARAMS, "split": {**projects.PARAMS["split"], "folders_up_to": folders_up_to}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    projects.run(split, "split", "data/raw", *OUTS)
    main(["export-folders", "exported"])
    manifest = read_manifest(Path("data/manifest.csv"))
    for name in ("train", "val", "test"):
        pictures, found = manifest.split(name), ImageFolder(f"exported/{name}")
        assert {path: Path(path).read_bytes() for path, _ in found.samples} == {
            f"exported/{name}/{each.path}": Path("pictures", each.image_id).read_bytes() for each in pictures
        }
        assert found.classes == manifest.class_names


def test_a_copy_that_is_changed_leaves_the_projects_own_picture_as_it_is(in_small_project):
    main(["export-folders", "exported", "--split", "val"])
    path = next(Path("exported/val").rglob("*.png"))
    path.write_bytes(b"changed")
    assert Path("data/splits", path.relative_to("exported")).read_bytes() != b"changed"


def test_nothing_is_left_where_a_picture_is_missing(in_small_project):
    shutil.rmtree("data/splits/test")
    with pytest.raises(SystemExit):
        main(["export-folders", "exported"])
    assert not Path("exported").exists()


@pytest.fixture(scope="module")
def stored_project(tmp_path_factory):
    """A project with 12 test pictures in four groups, 6 train pictures, and the model small/own, which is right on each test picture."""
    folder, graph = tmp_path_factory.mktemp("stored") / "project", conv_graph(SIZE, 3)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        scored.make_scored(folder, patch)
        shutil.rmtree("models/own")
        shutil.rmtree("results/own")
        pictures = scored.write_test_pictures(range(12))
        scored.write_scored("first", graph=graph)
        answers = np.load("results/first/predictions.npy").argmax(axis=1)
        shutil.rmtree("data/splits/test")
        labels = {int(Path(picture.path).stem): scored.NAMES[answer] for picture, answer in zip(pictures, answers, strict=True)}
        test = scored.write_test_pictures(range(12), labels)
        scored.write_scored("own", graph=graph)
        shutil.move("models/own", "small/own")  # a model of the project would have to be trained on this manifest
        train = []
        for number in range(6):
            path = Path(f"data/splits/train/ants/{number:02d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy("data/splits/test/" + test[number].path, path)
            train.append(Picture(f"train{number}", f"ants/{path.name}", f"{number:064}", "ants", "train", f"train{number}", 8, 8))
        write_manifest(scored.MANIFEST, [*test, *train])
    return folder


@pytest.fixture
def scored_project(stored_project, tmp_path, monkeypatch):
    """A copy of that project, which is the current one; latency is measured in no time."""
    monkeypatch.setattr(judging, "_ROUND_SECONDS", 1e-3)
    shutil.copytree(stored_project, tmp_path / "project")
    projects.enter(tmp_path / "project", monkeypatch)


def export(*arguments, kind="fp16", code=None):
    """Run the command on small/own; `code` is the exit code that it must have."""
    typed = ["export", "--to", kind, "--model", "small/own", *arguments]
    if code is None:
        return main(typed)
    with pytest.raises(SystemExit) as end:
        main(typed)
    assert end.value.code == code
    return None


@pytest.fixture
def other_weights(monkeypatch):
    """Let the converter to fp16 return a network with other weights, which is wrong on some pictures."""
    monkeypatch.setattr(forms, "to_fp16", lambda _: conv_graph(SIZE, 3, seed=5))


def test_the_form_and_the_figures_of_both_are_written(scored_project, capsys):
    export()
    folder, report = Path("exports/own-fp16"), read_json(Path("exports/own-fp16/form.json"))
    assert report["sha256"] == sha256_of_file(folder / "model.onnx")
    assert report["exported_from"] == {"model": "own", "sha256": sha256_of_file(Path("small/own/model.onnx"))}
    sources = [picture.source(Path("data/splits/test")) for picture in read_manifest(scored.MANIFEST).split("test")]
    original, form = (Predictor.load(path / "model.onnx", 1) for path in (Path("small/own"), folder))
    largest = np.abs(original.predict(sources) - form.predict(sources)).max()
    assert report["largest_probability_difference"] == pytest.approx(largest, abs=1e-6)
    # No answer differs. Wilson's upper bound on how often any might, for 0 of 12 at the groups' effective size, is the interval.
    low, high = (report["top1_accuracy"][end] for end in ("low", "high"))
    assert {**report["top1_accuracy"], "low": 0, "high": 0} == {
        "original": 1.0, "form": 1.0, "difference": 0.0, "low": 0, "high": 0, "confidence": 0.95
    }  # fmt: skip
    assert -low == high > 0.24  # 3.84 / (12 + 3.84), if each picture were a group
    assert (report["test_pictures"], report["test_groups"], report["changed_answers"]) == (12, 4, 0)
    assert (report["accepted"], report["forced"], report["max_loss"]) == (True, False, 0.01)
    unfamiliar = float((original.run(np.stack([original.read(source) for source in sources]), "unfamiliarity").unfamiliarity > 1).mean())
    assert report["unfamiliar"] == {"original": pytest.approx(unfamiliar, abs=1e-6), "form": pytest.approx(unfamiliar, abs=1e-6)}
    assert "own as fp16, on 12 test pictures (4 groups)" in capsys.readouterr().out


def test_a_form_that_loses_more_than_the_bound_is_refused_and_nothing_is_written(scored_project, other_weights, capsys):
    export(code=1)
    printed = capsys.readouterr()
    assert printed.err.startswith("own as fp16: loses ")
    assert "points of accuracy, more than 1; choose another form" in printed.err
    assert "accuracy: -" in printed.out  # the table says why
    assert not any(Path("exports").iterdir())


@pytest.mark.parametrize(("option", "accepted"), [(["--force"], False), (["--max-loss", "1"], True)])
def test_it_is_written_by_force_or_under_a_larger_bound_and_its_file_says_which(option, accepted, scored_project, other_weights):
    export(*option)
    report = read_json(Path("exports/own-fp16/form.json"))
    assert report["top1_accuracy"]["difference"] < -0.01
    assert (report["accepted"], report["forced"]) == (accepted, not accepted)


def test_answers_that_are_no_numbers_are_refused_even_by_force(scored_project, monkeypatch, capsys):
    graph = conv_graph(SIZE, 3)
    next(tensor for tensor in graph.graph.initializer if tensor.name == "bias").raw_data = np.full(3, np.nan, np.float32).tobytes()
    monkeypatch.setattr(forms, "to_fp16", lambda _: graph)
    export("--force", code=1)
    assert capsys.readouterr().err.endswith("small/own: some answers of the form are not numbers; choose another form\n")
    assert not any(Path("exports").iterdir())


def test_the_original_is_not_run_again_where_its_answers_are_stored(scored_project):
    stored = np.load("results/own/predictions.npy")
    np.save("results/own/predictions.npy", np.roll(stored, 1, axis=1))
    export("--force")
    assert read_json(Path("exports/own-fp16/form.json"))["changed_answers"] == 12
    for key in ("model_sha256", "test_sha256"):  # answers of another model, or about other pictures
        scores = read_json(Path("results/own/scores.json"))
        write_json(Path("results/own/scores.json"), {**scores, key: "0" * 64})
        export()
        assert read_json(Path("exports/own-fp16/form.json"))["changed_answers"] == 0
        write_json(Path("results/own/scores.json"), scores)


def test_test_pictures_that_the_model_learned_from_are_left_out(scored_project):
    test = read_manifest(scored.MANIFEST).split("test")
    scored.write_scored("learned", graph=conv_graph(SIZE, 3), learned=test[:3])
    shutil.move("models/learned", "small/learned")
    main(["export", "--to", "fp16", "--model", "small/learned"])
    assert read_json(Path("exports/learned-fp16/form.json"))["test_pictures"] == 9


def test_outputs_that_the_form_lacks_are_named(scored_project, monkeypatch, capsys):
    monkeypatch.setattr(forms, "to_fp16", lambda _: linear_graph(SIZE, 3))
    export("--force")
    report = read_json(Path("exports/own-fp16/form.json"))
    assert (report["outputs"], report["missing_outputs"]) == (["probs"], ["unfamiliarity", "features", "feature_map"])
    assert "unfamiliar" not in report
    assert "outputs of the model that the form lacks: unfamiliarity, features, feature_map\n" in capsys.readouterr().out


def test_int8_is_calibrated_on_train_pictures_alone(scored_project):
    shutil.rmtree("data/splits/test")
    assert calibration_pixels(Predictor.load(Path("small/own/model.onnx"), 1)).shape == (6, SIZE, SIZE, 3)


def test_predict_runs_an_exported_onnx_file_and_explain_says_what_it_lacks(scored_project, capsys):
    export("--max-loss", "1", "--output", "phone", kind="int8")
    capsys.readouterr()
    picture = str(next(Path("data/splits/test").rglob("*.png")))
    main(["predict", "--model", "phone", picture, "--format", "jsonl"])
    probs = Predictor.load(Path("phone/model.onnx"), 1).predict([Path(picture)])[0]
    assert list(json.loads(capsys.readouterr().out)["probs"].values()) == pytest.approx(probs, abs=1e-6)
    for command in (["export", "--to", "fp16"], ["explain", picture]):
        with pytest.raises(SystemExit):
            main([*command, "--model", "phone"])
    refused, explained = capsys.readouterr().err.splitlines()
    assert refused == "phone: is the form int8 of a model; name the model"
    assert explained.endswith("phone: has no weights for Grad-CAM, as an exported form has none; name the model that it comes from")


def test_a_folder_of_something_else_is_kept_and_an_earlier_export_is_replaced(scored_project):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    export("--output", "mine", code=1)
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
    export("--output", "form")
    Path("form/model.onnx").write_bytes(b"")
    export("--output", "form")
    assert Path("form/model.onnx").stat().st_size > 0


def test_the_choices_are_the_forms_that_are_made_and_those_that_are_refused():
    parser = make_parser()._subparsers._group_actions[0].choices["export"]
    choices = next(action.choices for action in parser._actions if action.dest == "form")
    assert list(choices) == [*forms.FORMS, *forms.REFUSED]
