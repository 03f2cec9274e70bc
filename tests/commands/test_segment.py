"""`pipeline segment`: an overlay, a mask and a row a picture."""

import csv
import hashlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from pipeline.networks import zoo
from tests.commands.conftest import NAMES
from tests.data.conftest import serving

MODEL = "lraspp_mobilenet_v3_large"

OWN = ("--weights", "own.safetensors", "--classes", "names.txt", "--image-size", "64")


@pytest.fixture(autouse=True)
def own(write_network):
    write_network(MODEL)


def test_each_picture_gives_a_row_an_overlay_and_a_mask_of_its_size(ask, below):
    code, out, err = ask("segment", "in/a.png", "in/b.png", *OWN)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err, list(rows[0])) == (0, "", ["path", "overlay", "mask", *(f"pixels_{name}" for name in NAMES)])
    for name, row in zip("ab", rows, strict=True):
        assert (row["path"], row["overlay"], row["mask"]) == (f"in/{name}.png", f"{name}_overlay.png", f"{name}_mask.png")
        with Image.open(below / "segmented" / row["mask"]) as mask, Image.open(below / "segmented" / row["overlay"]) as overlay:
            assert (mask.format, mask.mode, mask.size, overlay.format, overlay.mode) == ("PNG", "P", (60, 40), "PNG", "RGB")
            counts = np.bincount(np.asarray(mask).ravel(), minlength=3).tolist()
        assert [int(row[f"pixels_{name}"]) for name in NAMES] == counts
        assert sum(counts) == 60 * 40


def test_json_lines_say_the_same(ask):
    row = json.loads(ask("segment", "in/a.png", *OWN, "--format", "jsonl")[1])
    [same] = csv.DictReader(io.StringIO(ask("segment", "in/a.png", *OWN)[1]))
    assert row == {
        "path": "in/a.png",
        "overlay": "a_overlay.png",
        "mask": "a_mask.png",
        "pixels": {name: int(same[f"pixels_{name}"]) for name in NAMES},
    }


def test_pictures_of_one_name_have_masks_of_two(ask, below):
    out = ask("segment", "in/a.png", "in/c/a.png", *OWN, "--output", "new/masks")[1]
    assert [row["mask"] for row in csv.DictReader(io.StringIO(out))] == ["a_mask.png", "a-2_mask.png"]
    assert sorted(path.name for path in (below / "new" / "masks").iterdir()) == [
        "a-2_mask.png", "a-2_overlay.png", "a_mask.png", "a_overlay.png",
    ]  # fmt: skip


def test_a_picture_that_is_turned_is_segmented_upright(ask, below):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "orange").save(below / "turned.jpg", exif=exif)
    ask("segment", "turned.jpg", *OWN)
    with Image.open(below / "segmented" / "turned_mask.png") as mask:
        assert mask.size == (40, 60)


def test_broken_pictures_are_a_line_each_and_the_rest_goes_on(ask):
    code, out, err = ask("segment", "broken.png", "absent.png", "in/a.png", *OWN)
    assert (code, len(out.splitlines()), err) == (3, 2, "broken.png: not a picture\nabsent.png: is not there\n")


def test_asking_twice_gives_the_same_bytes(ask, below):
    written = []
    for folder in ("one", "two"):
        ask("segment", "in", *OWN, "--output", folder)
        written.append({path.name: path.read_bytes() for path in (below / folder).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 6


def test_published_weights_are_fetched_where_that_is_said_and_then_found(ask, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    published, network = zoo.torchvision_weights(MODEL), get_model(MODEL, weights=None, weights_backbone=None)
    with io.BytesIO() as file, serving() as server:
        torch.save(network.state_dict(), file)
        name = f"/lraspp-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
        server.answers[name] = [(200, {"Content-Length": str(len(file.getvalue()))}, file.getvalue())]
        offered = SimpleNamespace(url=server.url + name, meta=published.meta, transforms=published.transforms)
        monkeypatch.setattr(zoo, "torchvision_weights", lambda _: offered)
        arguments = ("segment", "in/a.png", "--image-size", "64")
        line = (
            f"--model {MODEL}: its weights are not on this disk; --fetch fetches them from {offered.url}, or name a file with --weights\n"
        )
        assert ask(*arguments) == (1, "", line)
        fetched = ask(*arguments, "--fetch")
        assert (fetched[0], server.asked) == (0, [name])
    assert ask(*arguments) == fetched


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["in", "--model", "resnet18"],
            "--model resnet18: belongs to `pipeline classify`; of those that segment takes the nearest are fcn_resnet101, "
            "fcn_resnet50, deeplabv3_resnet101, deeplabv3_resnet50, lraspp_mobilenet_v3_large",
        ),
        (
            ["in"],
            "--model lraspp_mobilenet_v3_large: its weights are not on this disk; --fetch fetches them from "
            "https://download.pytorch.org/models/lraspp_mobilenet_v3_large-d234d4ea.pth, or name a file with --weights",
        ),
        (["in", *OWN, "--output", "broken.png"], "broken.png: File exists; see to it and ask again"),
        (
            ["in", "--weights", "own.safetensors"],
            "own.safetensors: does not fit lraspp_mobilenet_v3_large: 4 of its tensors differ, first classifier.low_classifier.weight "
            "(3x40x1x1, not 21x40x1x1), classifier.low_classifier.bias (3, not 21), classifier.high_classifier.weight "
            "(3x128x1x1, not 21x128x1x1); name its own architecture, or its classes with --classes",
        ),
    ],
)
def test_a_call_that_cannot_be_answered_is_one_line_and_ends_with_1(ask, arguments, line):
    assert ask("segment", *arguments) == (1, "", f"{line}\n")


def test_wrong_usage_ends_with_2(ask):
    code, out, err = ask("segment", "in", "--image-size", "0")
    wanted = "pipeline segment: error: argument --image-size: '0' is not a whole number above 0"
    assert (code, out, err.splitlines()[-1]) == (2, "", wanted)
