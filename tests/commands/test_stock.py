"""`pipeline classify`, `segment` and `detect`: what they print, whole, and the pictures that they write.

`GOLDEN=write python -m pytest tests/commands/test_stock.py` writes tests/golden anew; read the diff before you commit it.
"""

import csv
import hashlib
import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.networks import zoo
from tests.checkout import ROOT
from tests.servers import serving

GOLDEN = ROOT / "tests" / "golden"
NAMES = ["background", "ant", "Käfer"]
OWN = "--weights own.safetensors --classes names.txt"


class Segmenting(nn.Module):
    """A network whose weights are the scores that it returns for any picture."""

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("scores", torch.eye(num_classes)[None, :, None, :])  # as many stripes as classes

    def forward(self, pixels):
        self.seen = pixels
        return {"out": self.scores}


class Detecting(nn.Module):
    """A network whose weights are the things that it finds in any picture."""

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("boxes", torch.tensor([[1.0, 2, 30, 20], [5, 5, 59, 39], [0, 0, 200, 200]]))
        self.register_buffer("labels", torch.tensor([1, 2, 1]) % num_classes)
        self.register_buffer("scores", torch.tensor([0.625, 0.75, 0.4375]))
        self.transform = SimpleNamespace(max_size=300, min_size=(200,), fixed_size=None)

    def forward(self, pictures):
        return [{"boxes": self.boxes, "labels": self.labels, "scores": self.scores}]


@pytest.fixture
def write_network(below, monkeypatch):
    """Write a network with three classes and their names; segmenters and detectors of torchvision are replaced by it."""

    def write(network):
        if network is not None:
            monkeypatch.setattr(torchvision.models, "get_model", lambda *_, num_classes, **__: network(num_classes))
            state = network(3).state_dict()
        else:
            named = timm.create_model("test_resnet", num_classes=3)
            state = named.state_dict()
            state["fc.weight"].zero_()
            state["fc.bias"].copy_(torch.tensor([0.7, 0.2, 0.1]).log())
        save_file(state, below / "own.safetensors")
        (below / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")

    return write


@pytest.fixture
def segmenter(write_network):
    write_network(Segmenting)


@pytest.fixture
def detector(write_network):
    write_network(Detecting)


GOLDEN_LINES = {
    "classify": (
        None,
        f"classify in/c - --model test_resnet {OWN} --top 2",
        f"classify broken.png in/a.png --model test_resnet {OWN} --format jsonl",
        f"classify in --model test_resnet {OWN} --abstain-below 0.71 --top 1 --output names.csv --sheet sheet.png",
        "classify in --weights absent.pth",
        "classify in --model resnet18",
        "classify in --model fcn_resnet50",
        "classify in --output in",
        "classify in --top 0",
    ),
    "segment": (
        Segmenting,
        f"segment in/a.png in/b.png {OWN}",
        f"segment in/a.png {OWN} --format jsonl",
        f"segment in/a.png in/c/a.png {OWN} --output new/masks",
        f"segment broken.png absent.png in/a.png {OWN}",
        f"segment in {OWN} --output broken.png",
        "segment in --weights own.safetensors",
        "segment in --model resnet18",
        "segment in",
        "segment in --image-size 0",
    ),
    "detect": (
        Detecting,
        f"detect in/a.png in/c/a.png {OWN}",
        f"detect - {OWN} --threshold 0.4",
        f"detect in/a.png {OWN} --threshold 1",
        "detect in --model fcn_resnet50",
        "detect in",
        "detect in --threshold 1.5",
        "detect in --threshold=-0.1",
        "detect in --threshold nan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", GOLDEN_LINES)
def test_a_command_prints_what_its_golden_file_contains(command, below, ask, write_network, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    network, *lines = GOLDEN_LINES[command]
    write_network(network)
    parts = []
    for line in lines:
        code, out, err = ask(*line.split(), stdin=b"broken.png\nin/b.png\n")
        parts.append(f"$ pipeline {line}\n{out}" + (f"[stderr]\n{err}" if err else "") + (f"[exit code {code}]\n" if code else ""))
    printed = "\n".join(parts).replace(str(below.parent), "/project")
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / f"{command}.txt").write_text(printed, encoding="utf-8")
    assert printed == (GOLDEN / f"{command}.txt").read_text(encoding="utf-8")


def test_the_packaged_network_answers_and_the_size_of_a_batch_changes_no_answer(ask):
    one, all_at_once = (
        [json.loads(line) for line in ask("classify", "in", "--format", "jsonl", "--batch-size", size)[1].splitlines()] for size in (1, 3)
    )
    assert [row["path"] for row in one] == ["in/a.png", "in/b.png", "in/c/a.png"]
    for row, same in zip(one, all_at_once, strict=True):
        assert len(row["probs"]) == 5
        assert row["predicted"] == next(iter(row["probs"])) == same["predicted"]
        assert row["probability"] == pytest.approx(same["probability"], abs=2e-6)


def test_a_sheet_shows_the_pictures_and_rows_go_to_the_output(ask, below, write_network):
    write_network(None)
    ask("classify", "in", "--model", "test_resnet", *OWN.split(), "--sheet", "sheet.png", "--output", "names.csv")
    with Image.open(below / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (576, 272))
    assert len((below / "names.csv").read_text().splitlines()) == 4


@pytest.mark.usefixtures("segmenter")
def test_a_mask_has_the_size_of_its_picture_and_its_labels_are_counted(ask, below):
    rows = list(csv.DictReader(io.StringIO(ask("segment", "in/a.png", "in/b.png", *OWN.split())[1])))
    for row in rows:
        with Image.open(below / "segmented" / row["mask"]) as mask, Image.open(below / "segmented" / row["overlay"]) as overlay:
            assert (mask.format, mask.mode, mask.size, overlay.format, overlay.mode) == ("PNG", "P", (60, 40), "PNG", "RGB")
            counts = np.bincount(np.asarray(mask).ravel(), minlength=3).tolist()
        assert [int(row[f"pixels_{name}"]) for name in NAMES] == counts
        assert (sum(counts), min(counts) > 0) == (60 * 40, True)


@pytest.mark.usefixtures("segmenter")
def test_pictures_of_one_name_have_masks_of_two_and_asking_twice_gives_the_same_bytes(ask, below):
    written = []
    for folder in ("one", "new/two"):
        ask("segment", "in/a.png", "in/c/a.png", *OWN.split(), "--output", folder)
        written.append({path.name: path.read_bytes() for path in (below / folder).iterdir()})
    assert sorted(written[0]) == ["a-2_mask.png", "a-2_overlay.png", "a_mask.png", "a_overlay.png"]
    assert written[0] == written[1]


@pytest.mark.usefixtures("segmenter")
def test_a_picture_that_is_turned_is_segmented_upright(ask, below):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "orange").save(below / "turned.jpg", exif=exif)
    ask("segment", "turned.jpg", *OWN.split())
    with Image.open(below / "segmented" / "turned_mask.png") as mask:
        assert mask.size == (40, 60)


@pytest.mark.usefixtures("segmenter")
def test_published_weights_are_fetched_if_that_is_allowed_and_then_found(ask, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    published = zoo.torchvision_weights("lraspp_mobilenet_v3_large")
    with io.BytesIO() as file, serving() as server:
        torch.save(Segmenting(21).state_dict(), file)
        name = f"/lraspp-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
        server.answers[name] = [(200, {"Content-Length": str(len(file.getvalue()))}, file.getvalue())]
        offered = SimpleNamespace(url=server.url + name, meta=published.meta, transforms=published.transforms)
        monkeypatch.setattr(zoo, "torchvision_weights", lambda _: offered)
        code, out, err = ask("segment", "in/a.png")
        assert (code, out, offered.url in err, "--fetch" in err, server.asked) == (1, "", True, True, [])
        fetched = ask("segment", "in/a.png", "--fetch")
        assert (fetched[0], server.asked) == (0, [name])
    assert ask("segment", "in/a.png") == fetched


@pytest.mark.usefixtures("detector")
def test_each_picture_has_a_drawn_one_and_is_never_replaced_by_it(ask, below):
    before = (below / "in/a.png").read_bytes()
    ask("detect", "in/a.png", "in/c/a.png", *OWN.split(), "--output", "in")
    assert (below / "in/a.png").read_bytes() == before
    for name in ("a_drawn.png", "a-2_drawn.png"):
        with Image.open(below / "in" / name) as picture:
            assert (picture.format, picture.width) == ("PNG", 540)


@pytest.mark.usefixtures("detector")
def test_a_picture_in_which_nothing_is_found_is_drawn_too(ask, below):
    ask("detect", "in/a.png", *OWN.split(), "--threshold", "1")
    assert (below / "detected/a_drawn.png").is_file()
