"""The stage embed: the export and the features that are cached, their order, and what it writes down."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.core import stage as core_stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table
from pipeline.networks import classifier, embedding, features, onnx_file
from pipeline.networks.classifier import Backbone
from pipeline.networks.embedding import export_backbone
from pipeline.networks.onnx_file import export_onnx
from pipeline.pictures.images import Preprocessing, read_square
from pipeline.pictures.manifest import Picture, write_manifest
from pipeline.stages.embed import Params, run
from tests.checkout import ROOT, set_params
from tests.projects import TREES

HALF = ((0.5,) * 3, (0.5,) * 3)
TRAIN, VAL = {"1.png": 1, "2.png": 2, "4.png": 4, "5.png": 5}, {"0.png": 0, "3.png": 3}  # names of pictures and the seeds of their pixels


def make_picture(width, height, image_id="a.png", split="train"):
    return Picture(image_id, image_id, "0" * 64, "ants", split, image_id, width, height)


class Refusing(nn.Module):
    """A network that accepts one size, and reports another in two lines."""

    def forward(self, pixels):
        raise AssertionError(f"Input height ({pixels.shape[1]}) doesn't match model (224)\nmore")


def write_backbone(folder, weights=b"weights"):
    """A backbone folder, whose network a test puts in its place."""
    folder.mkdir(exist_ok=True)
    (folder / "weights.safetensors").write_bytes(weights)
    own = {"name": "own", "library": "timm", "image_size": 224, "fixed_size": False}
    architecture = {**own, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": 1.0, "interpolation": "bicubic"}
    facts = {"architecture": architecture, "feature_map": {"layer": "0", "channel_axis": 1}, "num_features": 4}
    (folder / "backbone.json").write_text(json.dumps(facts))
    return folder


def draw_backbone(seed=0, kernel=3, stride=1):
    torch.manual_seed(seed)
    return Backbone(nn.Sequential(nn.Conv2d(3, 4, kernel, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten()), *HALF).eval()


def put_in_place(backbone, patch):
    """Let the stage load this network."""
    patch.setattr(classifier, "load_backbone", lambda _: (backbone, 4))


def deal(root, train, val):
    """Write the pictures of both splits and their manifest."""
    pictures = []
    for split, seeds in {"train": train, "val": val}.items():
        shutil.rmtree(root / split, ignore_errors=True)
        (root / split).mkdir()
        for name, seed in seeds.items():
            pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name)
            pictures.append(make_picture(8, 8, name, split))
    write_manifest(root / "manifest.csv", pictures)


def run_in(root, name="again", batch_size=4, threads=1, **changes):
    """Run the stage, and return the bytes of the features."""
    paths = (root / path for path in ("train", "val", "manifest.csv", "backbone"))
    settings = {"threads": threads, "processes": 1, "image_size": "auto", "batch_size": batch_size, "cluster": None, **changes}
    run(Params(**settings), *paths, root / name)
    return (root / name / "features.npy").read_bytes()


def test_a_size_that_the_network_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    put_in_place(Refusing(), monkeypatch)
    with pytest.raises(PipelineError) as error:
        export_backbone(write_backbone(tmp_path / "backbone"), 64, np.zeros((1, 64, 64, 3), np.uint8), 1)
    assert str(error.value) == (
        "params.yaml: embed.image_size: the backbone refuses 64: Input height (64) doesn't match model (224); set 224"
    )


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Six pictures, embedded by a network of one convolution, twice."""
    root, backbone, exported = tmp_path_factory.mktemp("embed"), draw_backbone(), []
    deal(root, TRAIN, VAL)
    write_backbone(root / "backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        put_in_place(backbone, patch)
        patch.setattr(embedding, "export_onnx", lambda *options: exported.append(options[1]) or export_onnx(*options))
        patch.setattr(embedding.hardware, "choose_device", lambda: torch.device("cpu"))
        for name in ("first", "second"):
            run_in(root, name)
    return SimpleNamespace(root=root, folder=root / "first", backbone=backbone, exported=exported)


@pytest.fixture
def project(embedded, tmp_path, monkeypatch):
    """A copy of that project with its cache; `features`: the bytes of its features."""
    root = shutil.copytree(embedded.root, tmp_path / "project")
    monkeypatch.setenv("DVC_ROOT", str(root))
    put_in_place(embedded.backbone, monkeypatch)
    monkeypatch.setattr(embedding.hardware, "choose_device", lambda: torch.device("cpu"))
    return SimpleNamespace(root=root, cache=root / ".cache" / "features", features=(root / "first" / "features.npy").read_bytes())


@pytest.fixture
def counts(capsys):
    """Return how many pictures the last run embedded, and how many came from the cache."""

    def read():
        (line,) = re.findall(r"^embed: ([\d,]+) pictures embedded, ([\d,]+) from the cache$", capsys.readouterr().err, re.MULTILINE)
        return tuple(map(int, line))

    return read


def test_the_pictures_are_those_of_train_and_then_of_val(embedded):
    assert [row["image_id"] for row in read_table(embedded.folder / "image_ids.csv")] == [*TRAIN, *VAL]


def test_the_features_are_those_of_the_network_in_the_pictures_order(embedded):
    paths = [*(embedded.root / "train" / name for name in TRAIN), *(embedded.root / "val" / name for name in VAL)]
    pixels = np.stack([read_square(path, Preprocessing(64, 1.0, "bicubic")) for path in paths])
    with torch.inference_mode():
        wanted = embedded.backbone(torch.from_numpy(pixels)).numpy()
    found = np.load(embedded.folder / "features.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_size_that_was_resolved_is_written_down(embedded):
    assert json.loads((embedded.folder / "embedding.json").read_text()) == {
        "preprocessing": {"image_size": 64, "crop": 1.0, "interpolation": "bicubic", "crop_mode": "center", "border": None},
        "image_sizes": [],
        "tiny": True,
        "size": {"parameters": 4 * 3 * 9 + 4, "gmacs": 0.0004152},  # multiply-adds: 62 x 62 places, 4 x 27 weights each
    }


def test_a_backbone_too_large_for_one_file_has_its_tensors_beside_it(project, monkeypatch):
    monkeypatch.setattr(onnx_file, "_LARGEST", 100)
    monkeypatch.setattr(onnx_file, "_LEAST", 100)
    shutil.rmtree(project.root / ".cache")
    assert run_in(project.root) == project.features
    assert sorted(path.name for path in (project.root / "again").iterdir()) == [
        "backbone.onnx",
        "backbone.onnx.data",
        "embedding.json",
        "features.npy",
        "image_ids.csv",
    ]
    graph = onnx_file.read_onnx(project.root / "again" / "backbone.onnx")
    assert sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > (4 * 3 * 9 + 4) * 4


def test_pictures_too_small_for_a_network_are_embedded_at_its_own_size(project, monkeypatch):
    put_in_place(draw_backbone(0, 75, 75), monkeypatch)  # it takes no picture below 75 pixels
    write_backbone(project.root / "backbone", b"others")
    run_in(project.root)
    assert json.loads((project.root / "again" / "embedding.json").read_text())["preprocessing"]["image_size"] == 224


def test_an_export_is_made_once(embedded):
    assert embedded.exported == [64]


def test_embedding_twice_writes_equal_bytes(embedded):
    names = sorted(path.name for path in embedded.folder.iterdir())
    assert names == ["backbone.onnx", "embedding.json", "features.npy", "image_ids.csv"]
    assert all((embedded.folder / name).read_bytes() == (embedded.root / "second" / name).read_bytes() for name in names)


def test_a_cold_cache_embeds_all_and_a_warm_one_nothing_with_equal_bytes(project, counts):
    assert run_in(project.root) == project.features
    assert counts() == (0, 6)
    shutil.rmtree(project.cache)
    assert run_in(project.root) == project.features
    assert counts() == (6, 0)


def test_with_a_cached_export_new_pictures_are_embedded_without_torch(project):
    shutil.rmtree(project.cache)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'mlflow', 'pandas', 'scipy', 'sklearn', 'onnx']))\n"
        "from pathlib import Path; from pipeline.core import hardware; from pipeline.stages.embed import Params, run\n"
        "hardware.device_type = lambda: 'cpu'\n"
        "paths = [Path(name) for name in ('train', 'val', 'manifest.csv', 'backbone', 'again')]\n"
        "run(Params(threads=1, processes=1, image_size='auto', batch_size=4, cluster=None), *paths)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert (project.root / "again" / "features.npy").read_bytes() == project.features


def test_another_split_of_the_same_pictures_embeds_nothing(project, counts):
    deal(project.root, {**VAL, "2.png": 2}, {"1.png": 1, "4.png": 4, "renamed.png": 5})
    run_in(project.root)
    assert counts() == (0, 6)
    found, before = (np.load(project.root / name / "features.npy") for name in ("again", "first"))
    np.testing.assert_array_equal(found, before[[4, 1, 5, 0, 2, 3]])  # 0, 2, 3, then 1, 4, 5


def test_only_new_pictures_are_embedded_with_the_bytes_of_a_cold_cache(project, counts):
    deal(project.root, {**TRAIN, "6.png": 6, "7.png": 7, "2.png": 8}, {**VAL, "9.png": 9})  # 2.png has other bytes
    half_known = run_in(project.root)
    assert counts() == (4, 5)
    shutil.rmtree(project.cache)
    assert run_in(project.root) == half_known


def test_pictures_of_equal_bytes_have_equal_features(project, counts):
    deal(project.root, {"a.png": 20, "b.png": 21}, {"c.png": 20})
    run_in(project.root)
    assert counts() == (3, 0)
    first, second, third = np.load(project.root / "again" / "features.npy")
    assert np.array_equal(first, third)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("change", [{"image_size": 96}, {"batch_size": 3}, {"threads": 2}], ids=str)
def test_what_may_change_the_features_embeds_all(change, project, counts):
    run_in(project.root, **change)
    assert counts() == (6, 0)


def test_another_graph_embeds_all(project, counts, monkeypatch):
    put_in_place(draw_backbone(1), monkeypatch)
    write_backbone(project.root / "backbone", b"others")
    assert run_in(project.root) != project.features
    assert counts() == (6, 0)


@pytest.mark.parametrize("harm", [lambda content: content[:-1] + b"\0", lambda content: content[:200], lambda content: b""])
def test_a_damaged_file_of_the_cache_is_replaced(harm, project, counts):
    (path,) = project.cache.rglob("*.npy")
    content = path.read_bytes()
    path.write_bytes(harm(content))
    assert run_in(project.root) == project.features
    assert counts() == (6, 0)
    assert [file.read_bytes() for file in project.cache.rglob("*.npy")] == [content]


@pytest.mark.parametrize(("limit", "value"), [("_FILE_PICTURES", 4), ("_FILE_SECONDS", 0.0)])
def test_a_run_that_was_killed_leaves_what_it_had_embedded(limit, value, project, counts, monkeypatch):
    monkeypatch.setattr(features, limit, value)
    shutil.rmtree(project.cache)
    make_runner, batches = features.Embedder._make_runner, []

    def make_mortal_runner(*options):
        run_batch = make_runner(*options)
        return lambda pixels: run_batch(pixels) if batches.append(len(pixels)) or len(batches) < 2 else 1 / 0

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(features.Embedder, "_make_runner", make_mortal_runner)
        run_in(project.root)
    assert batches == [4, 2]
    counts_before = len(list(project.cache.rglob("*.npy")))
    assert run_in(project.root) == project.features
    assert (counts_before, counts()) == (1, (2, 4))


def test_every_batch_that_the_network_sees_is_full(project, monkeypatch):
    # Kernels are chosen by the shape of a batch: a picture's features may not depend on how many others are new.
    shapes = []

    class Session:
        def __init__(self, session):
            self.session = session

        def run(self, names, inputs):
            shapes.append(inputs["pixels"].shape)
            return self.session.run(names, inputs)

    open_session = features.open_session
    monkeypatch.setattr(features, "open_session", lambda *options: Session(open_session(*options)))
    shutil.rmtree(project.cache)
    run_in(project.root)
    assert shapes == [(4, 64, 64, 3)] * 2


def feature_writer(project, **changes):
    """A process of a cluster that embeds pictures of the project."""
    (cache,) = project.cache.iterdir()
    (onnx_path,) = project.root.glob(".cache/onnx/*/backbone.onnx")
    settings = {"preprocessing": Preprocessing(64, 1.0, "bicubic"), "batch_size": 4, "threads": 1, **changes}
    embedder = features.Embedder(onnx_path=onnx_path, folder=project.root / "backbone", **settings)
    return features.FeatureWriter(embedder, cache, Path.cwd())


def test_the_stage_finds_what_processes_of_a_cluster_embedded(project, counts):
    (cache,) = project.cache.iterdir()
    for path in cache.iterdir():
        path.unlink()
    paths = [project.root / "train" / name for name in TRAIN]
    assert feature_writer(project).write(paths, features.digests_of(paths)) == 4
    assert run_in(project.root) == project.features
    assert counts() == (2, 4)


def test_a_machine_that_would_compute_other_features_is_refused(project):
    with pytest.raises(PipelineError, match="use equal machines"):
        feature_writer(project, threads=2)


def test_features_that_vanish_before_they_are_collected_are_a_fault(project):
    (onnx_path,) = project.root.glob(".cache/onnx/*/backbone.onnx")
    embedder = features.Embedder(Preprocessing(64, 1.0, "bicubic"), 4, 1, onnx_path, project.root / "backbone")
    known = features.digests_of([project.root / "train" / name for name in TRAIN])
    shutil.rmtree(project.cache)
    with pytest.raises(PipelineError, match=r"a file was removed or damaged meanwhile \(4 pictures\)"):
        features.write_features(known, embedder, project.root / "features.npy")


@pytest.mark.slow
def test_embedding_on_ray_gives_the_bytes_of_one_process(in_small_project):
    features = Path("data/embeddings/features.npy").read_bytes()
    shutil.rmtree(".cache/features")
    set_params(in_small_project, {"embed.cluster": "ray"})
    command = [sys.executable, "-m", "pipeline.stages.embed", *TREES, "models/backbone", "data/embeddings"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path("data/embeddings/features.npy").read_bytes() == features
    assert "embed: 0 pictures embedded" in ended.stderr


@pytest.mark.parametrize(("edit", "exports"), [("# a comment", 0), ("def added():\n    pass", 1)], ids=["a comment", "code"])
def test_a_changed_comment_keeps_the_export_and_changed_code_does_not(edit, exports, project, counts, monkeypatch):
    copied = shutil.copytree(ROOT / "pipeline", project.root / "code" / "pipeline")
    monkeypatch.setattr(core_stage, "_ROOT", project.root / "code")
    for name in ("classifier", "onnx_file"):
        with (copied / "networks" / f"{name}.py").open("a") as file:
            file.write(f"\n\n{edit}\n")
    run_in(project.root)
    assert len(list((project.root / ".cache" / "onnx").iterdir())) == 1 + exports
    assert counts() == (0, 6)  # the graph has equal bytes
