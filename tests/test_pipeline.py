"""All stages in a row on thirty generated pictures: what they write, and that they write it twice alike."""

from pathlib import Path

import pytest
import yaml

from pipeline.commands.data import refresh
from pipeline.files import read_json, read_table, sha256_of_file
from pipeline.models.artifact import verify
from pipeline.params import read_section
from pipeline.stages import backbone, download, embed, evaluate, report, split, train, train_baseline

PARAMS = {
    "seed": 3,
    "threads": 1,
    "download": {
        "source": "pictures", "digest": None, "url_mirrors": [],
        "limits": {"fetch_gigabytes": 1, "fetch_hours": 1, "files": 100, "gigabytes": 1, "ratio": 100},
    },
    "split": {"val": 0.2, "test": 0.3, "group": None, "similarity": 0.99, "leak": "repair"},
    "backbone": {"name": "mobilenet_v3_small", "weights": "none", "digest": None},
    "embed": {"image_size": "auto", "batch_size": 8},
    "train_baseline": {"l2_grid": [0.01, 0.1]},
    "models": {
        "finetuned": {
            "regime": "finetuned", "epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.01, "warmup": 0.1,
            "label_smoothing": 0.0, "min_crop_area": 0.8, "flip": "auto", "patience": 2, "precision": "fp32",
        }
    },
    "evaluate": {"confidence": 0.9},
}  # fmt: skip
# 255 bytes are the most that a file's name may have.
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
    """Run every stage in a folder, and return the sum of each file that it wrote."""
    folder.mkdir()
    make_pictures(folder / "pictures", 15)
    for index, name in enumerate(HOSTILE_NAMES):
        (folder / f"pictures/left/{index:03d}.png").rename(folder / "pictures/left" / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers there
    refresh()

    def run(module, section, *paths):
        module.run(read_section(section, module.Params), *map(Path, paths))

    run(download, "download", "data/raw.zip", "data/source.json")
    run(backbone, "backbone", "models/backbone")
    run(split, "split", "data/raw.zip", "data/splits", "data/manifest.csv", "data/quarantine.csv", "data/audit.json")
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
    run(report, "evaluate", "data", "models", "results", "metrics", "report", "metrics/comparison.json")
    files = [path for out in OUTS for path in Path(out).rglob("*") if path.is_file()]
    return {path.as_posix(): sha256_of_file(path) for path in sorted(files)}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, make_pictures):
    """The sums of two runs in two folders, and the first folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = run_all(folder / "one", monkeypatch, make_pictures)
        return first, run_all(folder / "two elsewhere", monkeypatch, make_pictures), folder / "one"


def test_two_runs_in_two_folders_write_the_same_bytes(two_runs):
    first, second, _ = two_runs
    assert first == second


def test_no_out_names_the_folder_it_was_made_in(two_runs):
    first, _, folder = two_runs
    assert [name for name in first if str(folder).encode() in (folder / name).read_bytes()] == []


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_model_that_was_scored_is_the_one_that_is_stored(two_runs, name):
    folder = two_runs[2]
    assert read_json(folder / f"metrics/{name}.json")["model_sha256"] == verify(folder / "models" / name)


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_the_stored_weights_and_the_stored_graph_are_one_model(two_runs, name):
    """model.safetensors in torch answers what predictions.csv says of model.onnx."""
    import numpy as np
    import torch

    from pipeline.data.images import Preprocessing, read_square
    from pipeline.models.classifier import load_classifier

    folder = two_runs[2]
    facts = read_json(folder / f"models/{name}/model.json")
    classifier = load_classifier(folder / "models/backbone", folder / "models" / name, 2)
    rows = read_table(folder / f"results/{name}/predictions.csv")
    paths = {row["image_id"]: row["path"] for row in read_table(folder / "data/manifest.csv")}
    pixels = [read_square(folder / "data/splits/test" / paths[row["image_id"]], Preprocessing(**facts["preprocessing"])) for row in rows]
    with torch.no_grad():
        probs = classifier(torch.from_numpy(np.stack(pixels))).softmax(1)
    assert np.abs(probs[:, 0].numpy() - [float(row["prob_left"]) for row in rows]).max() < 1e-4


def test_embeddings_hold_a_row_for_every_train_and_val_picture_and_none_for_test(two_runs):
    folder = two_runs[2]
    wanted = {row["image_id"] for row in read_table(folder / "data/manifest.csv") if row["split"] != "test"}
    assert {row["image_id"] for row in read_table(folder / "data/embeddings/image_ids.csv")} == wanted


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_goes_through_all_stages(two_runs, name):
    tables = ("models/out_of_fold.csv", "results/baseline/predictions.csv")
    assert f"left/{name}" in {row["image_id"] for table in tables for row in read_table(two_runs[2] / table)}


def test_the_history_begins_with_the_start_and_has_a_row_an_epoch(two_runs):
    rows = read_table(two_runs[2] / "models/finetuned/history.csv")
    assert [row["epoch"] for row in rows][:2] == ["0", "1"]
    assert rows[0]["train_loss"] == ""
