"""All stages in order on thirty generated pictures: they write the same bytes twice, and every way to predict agrees."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.commands.upkeep import refresh
from pipeline.core.files import read_json, read_table, sha256_of_file
from pipeline.core.sections import read_section
from pipeline.networks.artifact import verify_model
from pipeline.networks.classifier import WithProbs, load_classifier
from pipeline.pictures.images import read_square
from pipeline.pictures.manifest import read_manifest
from pipeline.serving.predictor import Predictor
from pipeline.serving.pyfunc import PictureModel
from pipeline.stages import backbone, download, embed, evaluate, report, split, train, train_baseline
from tests import projects
from tests.recipes import PLAIN

PARAMS = {
    "seed": 3,
    "threads": 1,
    "processes": 1,
    "false_alarm_rate": 0.2,  # four val pictures are enough
    "download": {
        "source": "pictures", "digest": None, "url_mirrors": [], "encoding": None,
        "limits": {"fetch_gigabytes": 1, "fetch_hours": 1, "files": 100, "gigabytes": 1, "ratio": 100},
    },
    "split": {"val": 0.2, "test": 0.3, "folders": "auto", "group": None, "similarity": 0.99, "folders_up_to": 1000, "leak": "repair"},
    "backbone": {"name": "test_resnet", "weights": "none", "digest": None},
    "embed": {"image_size": "auto", "batch_size": 8, "cluster": None},
    "train_baseline": {"l2_grid": [0.01, 0.1]},
    "recipe": {
        **PLAIN, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "min_crop_area": 0.8, "patience": 2,
    },
    "models": {"finetuned": {"regime": "finetuned"}},
    "evaluate": {"confidence": 0.9},
}  # fmt: skip
# A file's name has at most 255 bytes.
HOSTILE_NAMES = [
    "a\nb.png",
    "<script>alert(1)<&>.png",
    'it\'s "quoted", or not.png',
    "-rf.png",
    "🐝.png",
    "é" * 125 + "x.png",
    "$x${y}%s.png",
]
OUTS = ("data", "models", "results", "metrics", "report")


def run_all(folder: Path, monkeypatch: pytest.MonkeyPatch, make_pictures) -> dict[str, str]:
    """Run every stage in a folder, and return the sha256 of each file that it wrote."""
    folder.mkdir()
    make_pictures(folder / "pictures", 15)
    for index, name in enumerate(HOSTILE_NAMES):
        (folder / f"pictures/left/{index:03d}.png").rename(folder / "pictures/left" / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # no server listens there
    refresh()

    def run(module, section, *paths):
        module.run(read_section(section, module.Params), *map(Path, paths))

    run(download, "download", "data/raw", "data/source.json")
    run(backbone, "backbone", "models/backbone")
    run(split, "split", "data/raw", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
    pictures = ("data/splits/train", "data/splits/val", "data/manifest.csv")
    run(embed, "embed", *pictures, "models/backbone", "data/embeddings")
    run(
        train_baseline,
        "train_baseline",
        "data/embeddings",
        "data/manifest.csv",
        "models/backbone",
        "models/baseline",
        "models/out_of_fold.csv",
    )
    run(train, "models.finetuned", *pictures, "models/backbone", "data/embeddings", "models/baseline", "models/finetuned")
    for name in ("baseline", "finetuned"):
        run(evaluate, "evaluate", f"models/{name}", "data/splits/test", "data/manifest.csv", f"results/{name}", f"metrics/{name}.json")
    run(report, "evaluate", "data", "models", "results", "report", "metrics/comparison.json")
    files = [path for out in OUTS for path in Path(out).rglob("*") if path.is_file()]
    return {path.as_posix(): sha256_of_file(path) for path in sorted(files)}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, make_pictures):
    """The digests of two runs in two folders, and the first folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = run_all(folder / "one", monkeypatch, make_pictures)
        return first, run_all(folder / "two elsewhere", monkeypatch, make_pictures), folder / "one"


def test_two_runs_in_two_folders_write_the_same_bytes(two_runs):
    first, second, _ = two_runs
    assert first == second


def test_no_out_contains_the_path_of_its_folder(two_runs):
    first, _, folder = two_runs
    assert [name for name in first if str(folder).encode() in (folder / name).read_bytes()] == []


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_model_that_was_scored_is_the_one_that_is_stored(two_runs, name):
    folder = two_runs[2]
    assert read_json(folder / f"results/{name}/scores.json")["model_sha256"] == verify_model(folder / "models" / name)


@pytest.fixture(scope="module")
def sources(two_runs, tmp_path_factory):
    """Every test picture of the first run, and three more: rotated by EXIF, in CMYK, of 16 bits."""
    folder, extra = two_runs[2], tmp_path_factory.mktemp("extra")
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(extra / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(extra / "cmyk.jpg")
    Image.fromarray(generator.integers(0, 65536, (40, 60), np.uint16)).save(extra / "deep.png")
    return [*sorted((folder / "data/splits/test").rglob("*.png")), *sorted(extra.iterdir())]


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_torch_onnx_pyfunc_and_predict_answer_alike_from_the_bytes_of_a_file_onward(two_runs, sources, name, monkeypatch, capsys):
    monkeypatch.chdir(two_runs[2])
    monkeypatch.setenv("DVC_ROOT", str(two_runs[2]))
    model, contents = Path("models") / name, [path.read_bytes() for path in sources]
    predictor = Predictor.load(model / "model.onnx", 1)
    wanted = predictor.predict(contents)

    classifier = WithProbs(load_classifier(Path("models/backbone"), model, 2), predictor.facts["temperature"])
    pixels = np.stack([read_square(content, predictor.preprocessing) for content in contents])
    with torch.no_grad():
        np.testing.assert_allclose(classifier(torch.from_numpy(pixels))[0].numpy(), wanted, atol=1e-4)

    served = PictureModel()
    served.load_context(SimpleNamespace(artifacts={"model": str(model / "model.onnx")}))
    answers = served.predict(None, pd.DataFrame({"picture": contents}))
    np.testing.assert_allclose(np.array(answers["probabilities"].tolist()), wanted, atol=1e-4)
    unfamiliarity = predictor.answer(pixels)[1]
    assert answers["unfamiliar"].tolist() == (unfamiliarity > 1).tolist()

    main(["predict", "--model", name, "--format", "jsonl", *map(str, sources)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([list(line["probs"].values()) for line in lines], wanted, atol=1e-4)
    np.testing.assert_allclose([line["unfamiliarity"] for line in lines], unfamiliarity, atol=1e-3, rtol=1e-3)
    assert [line["unfamiliar"] for line in lines] == answers["unfamiliar"].tolist()


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_stored_model_repeats_the_scored_predictions(two_runs, name):
    folder = two_runs[2]
    rows = read_table(folder / f"results/{name}/predictions.csv")
    paths = {row["image_id"]: row["path"] for row in read_table(folder / "data/manifest.csv")}
    contents = [(folder / "data/splits/test" / paths[row["image_id"]]).read_bytes() for row in rows]
    predictor = Predictor.load(folder / "models" / name / "model.onnx", 1)
    probs, unfamiliarity = predictor.answer(np.stack([predictor.read(content) for content in contents]))
    np.testing.assert_allclose([float(row["unfamiliarity"]) for row in rows], unfamiliarity, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(np.load(folder / f"results/{name}/predictions.npy", allow_pickle=False), probs, atol=1e-6)


def test_embeddings_contain_a_row_for_every_train_and_val_picture_and_none_for_test(two_runs):
    folder = two_runs[2]
    wanted = {row["image_id"] for row in read_table(folder / "data/manifest.csv") if row["split"] != "test"}
    assert {row["image_id"] for row in read_table(folder / "data/embeddings/image_ids.csv")} == wanted


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_goes_through_all_stages(two_runs, name):
    tables = ("models/out_of_fold.csv", "results/baseline/predictions.csv")
    assert f"left/{name}" in {row["image_id"] for table in tables for row in read_table(two_runs[2] / table)}


def test_the_history_starts_before_training_and_has_a_row_per_epoch(two_runs):
    rows = read_table(two_runs[2] / "models/finetuned/history.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["train_loss"] == ""


def test_a_split_of_its_own_seed_outlives_another_seed_and_another_split_embeds_only_what_was_never_embedded(in_small_project, capsys):
    def deal_and_embed(seed, split_seed):
        """Run both stages; the sums of the pictures of train and val, and how many of them were embedded and found in the cache."""
        params = {**projects.PARAMS, "seed": seed, "split": {**projects.PARAMS["split"], "seed": split_seed}}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        outs = ("data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
        projects.run(split, "split", "data/raw", *outs)
        capsys.readouterr()
        projects.run(embed, "embed", *projects.TREES, "models/backbone", "data/embeddings")
        embedded, known = re.search(r"(\d+) pictures? embedded.*?(\d+) .*cache", "".join(capsys.readouterr())).groups()
        return dealt(), (int(embedded), int(known))

    def dealt():
        manifest = read_manifest(Path("data/manifest.csv"))
        return {picture.sha256 for picture in (*manifest.train, *manifest.val)}

    first = dealt()
    assert deal_and_embed(projects.PARAMS["seed"] + 1, projects.PARAMS["seed"]) == (first, (0, len(first)))
    second, counts = deal_and_embed(projects.PARAMS["seed"] + 1, None)
    assert counts == (len(second - first), len(second & first))
    assert second - first
    third, counts = deal_and_embed(projects.PARAMS["seed"] + 1, projects.PARAMS["seed"] + 2)
    assert counts == (len(third - first - second), len(third & (first | second)))


@pytest.mark.slow
def test_pictures_that_stay_in_the_shards_give_the_same_features_weights_and_answers(in_small_project):
    def learn(folders_up_to):
        """Run the stages that read pictures: the number of files in the trees, and what the stages wrote."""
        params = {**projects.PARAMS, "split": {**projects.PARAMS["split"], "folders_up_to": folders_up_to}}
        Path("params.yaml").write_text(yaml.safe_dump(params) + projects.MODELS)
        shutil.rmtree(".cache")  # which has features
        projects.run(split, "split", "data/raw", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
        projects.run(embed, "embed", *projects.TREES, "models/backbone", "data/embeddings")
        projects.train_by("finetuned")
        scored = ("data/splits/test", "data/manifest.csv", "results/finetuned", "metrics/finetuned.json")
        projects.run(evaluate, "evaluate", "models/finetuned", *scored)
        written = ("data/embeddings/features.npy", "models/finetuned/model.safetensors", "results/finetuned/predictions.csv")
        return len([*Path("data/splits").rglob("*.png")]), [
            Path(name).read_bytes() for name in (*written, "results/finetuned/galleries.json")
        ]

    (few, of_trees), (none, of_shards) = learn(24), learn(23)
    assert (few, none) == (24, 0)
    assert of_trees == of_shards
