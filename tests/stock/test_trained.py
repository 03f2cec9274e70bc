"""What the commands find in pictures of squares and discs with small networks that are trained on such shapes here, in seconds.

They are torchvision's FCN and FCOS with a small body in place of the ResNet, which would train for minutes.
"""

import csv
import io
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision.ops import box_iou
from torchvision.transforms._presets import SemanticSegmentation

from pipeline.__main__ import main
from tests import shapes

pytestmark = pytest.mark.slow
UNSEEN = range(1_000_000, 1_000_012)  # the seeds of scenes that nothing was learnt from


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A project with files of both networks, and pictures of shapes that they have not seen."""
    root = tmp_path_factory.mktemp("learnt")
    (root / "dvc.yaml").touch()
    (root / "params.yaml").write_text("threads: 1\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, train in (("fcn", shapes.train_segmenter), ("fcos", shapes.train_detector)):
        save_file(train().state_dict(), root / f"{name}.safetensors", {"class_names": json.dumps(shapes.NAMES)})
    for seed in UNSEEN:
        shapes.draw_scene(seed).picture.save(root / f"{seed}.png")
    yield root
    torch.set_num_threads(threads)


@pytest.fixture
def see(learnt, monkeypatch, capsys):
    """Type a command in that project, with a small network in the place of the one that is named, and return its stdout."""
    monkeypatch.setenv("DVC_ROOT", str(learnt))
    monkeypatch.chdir(learnt)

    def typed(command, *arguments, small):
        monkeypatch.setattr(torchvision.models, "get_model", lambda *_, num_classes, **__: small(num_classes))
        main([command, *(f"{seed}.png" for seed in UNSEEN), *arguments])
        return capsys.readouterr().out

    return typed


@pytest.fixture
def masks(see, learnt):
    """The rows that `segment` prints, and the masks that it writes."""
    out = see("segment", "--model", "fcn_resnet50", "--weights", "fcn.safetensors", "--image-size", "96", small=shapes.small_fcn)
    rows = list(csv.DictReader(io.StringIO(out)))
    return rows, [np.asarray(Image.open(learnt / "segmented" / row["mask"])) for row in rows]


@pytest.fixture
def found(see):
    """The lines that `detect` prints."""
    out = see("detect", "--model", "fcos_resnet50_fpn", "--weights", "fcos.safetensors", small=shapes.small_fcos)
    return [json.loads(line) for line in out.splitlines()]


def ious(seen, truth):
    """Intersection over union of each class."""
    return [((seen == label) & (truth == label)).sum() / ((seen == label) | (truth == label)).sum() for label in range(3)]


def test_each_pixel_of_the_shapes_is_known_by_its_class(masks):
    assert min(ious(np.stack(masks[1]), np.stack([shapes.draw_scene(seed).mask for seed in UNSEEN]))) >= 0.85


def test_the_pixels_that_are_printed_are_those_of_the_mask(masks):
    for row, mask in zip(*masks, strict=True):
        assert [int(row[f"pixels_{name}"]) for name in shapes.NAMES] == np.bincount(mask.ravel(), minlength=3).tolist()


def test_the_shapes_are_found_where_they_are(found):
    overlaps = []
    for line, seed in zip(found, UNSEEN, strict=True):
        scene = shapes.draw_scene(seed)
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            same = [thing["box"] for thing in line["found"] if thing["label"] == shapes.NAMES[label]]
            overlaps.append(float(box_iou(torch.tensor([box]), torch.tensor(same)).max()) if same else 0.0)
    assert np.mean(overlaps) >= 0.85
    assert min(overlaps) >= 0.5


def test_little_else_is_found(found):
    shapes_there = sum(len(shapes.draw_scene(seed).boxes) for seed in UNSEEN)
    assert sum(len(line["found"]) for line in found) <= 1.1 * shapes_there


def test_with_random_weights_the_same_network_draws_noise():
    torch.manual_seed(0)
    blind, prepare = shapes.small_fcn().eval(), SemanticSegmentation(resize_size=None)
    scenes = [shapes.draw_scene(seed) for seed in UNSEEN]
    with torch.inference_mode():
        seen = [blind(prepare(scene.picture)[None])["out"][0].argmax(0).numpy() for scene in scenes]
    assert min(ious(np.stack(seen), np.stack([scene.mask for scene in scenes]))) < 0.2
