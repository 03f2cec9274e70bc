"""`pipeline classify`: rows for what can be read, a line for what cannot, an exit code that tells."""

import csv
import io
import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

HEAD = "path,predicted,probability,top_1,top_1_prob,top_2,top_2_prob\n"
OWN = ("--model", "test_resnet", "--weights", "own.safetensors", "--classes", "names.txt")


@pytest.fixture(autouse=True)
def own(below):
    """A tiny network that says 0.7, 0.2, 0.1 to any picture."""
    network = timm.create_model("test_resnet", num_classes=3)
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    save_file(network.state_dict(), below / "own.safetensors")
    (below / "names.txt").write_text("ant\nbee\nKäfer\n", encoding="utf-8")


def test_pictures_and_folders_are_named_from_where_the_user_stands(ask):
    row = ",ant,0.700000,ant,0.700000,bee,0.200000\n"
    assert ask("classify", "in/c", "-", *OWN, "--top", "2", stdin=b"in/b.png\n") == (0, f"{HEAD}in/c/a.png{row}in/b.png{row}", "")


def test_the_packaged_network_answers_with_five_classes_of_imagenet(ask):
    code, out, err = ask("classify", "in/a.png", "--format", "jsonl")
    row = json.loads(out)
    assert (code, err, list(row)) == (0, "", ["path", "predicted", "probability", "probs"])
    assert len(row["probs"]) == 5
    assert row["predicted"] == next(iter(row["probs"]))


def test_broken_pictures_are_a_line_each_and_the_rest_goes_on(ask):
    code, out, err = ask("classify", "broken.png", "in/a.png", *OWN, "--top", "1")
    assert (code, len(out.splitlines()), err) == (3, 2, "broken.png: not a picture\n")


def test_the_size_of_a_batch_changes_no_answer(ask):
    one, all_at_once = (ask("classify", "in", "--batch-size", size)[1] for size in (1, 3))
    for row, same in zip(*(csv.DictReader(io.StringIO(out)) for out in (one, all_at_once)), strict=True):
        assert row["predicted"] == same["predicted"]
        assert float(row["probability"]) == pytest.approx(float(same["probability"]), abs=2e-6)


def test_a_sheet_is_drawn_where_it_is_named(ask, below):
    assert ask("classify", "in", *OWN, "--sheet", "sheet.png", "--output", "names.csv")[0] == 0
    with Image.open(below / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (576, 272))
    assert len((below / "names.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["in", "--weights", "absent.pth"], "--weights absent.pth: no such file; say packaged, pretrained or name a file"),
        (
            ["in", "--model", "resnet18"],
            "--model resnet18: its weights are not on this disk; --fetch fetches them from "
            "https://download.pytorch.org/models/resnet18-f37072fd.pth, or name a file with --weights",
        ),
        (
            ["in", "--model", "fcn_resnet50"],
            "--model fcn_resnet50: belongs to `pipeline segment`; of those that classify takes the nearest are "
            "nf_resnet50, resnet50, nf_seresnet50, gcresnet50t, cspresnet50",
        ),
        (["in", "--output", "in"], "in: is no ordinary file; name another"),
    ],
)
def test_a_call_that_cannot_be_answered_is_one_line_and_ends_with_1(ask, arguments, line):
    assert ask("classify", *arguments) == (1, "", f"{line}\n")


def test_wrong_usage_ends_with_2(ask):
    code, out, err = ask("classify", "in", "--top", "0")
    assert (code, out, err.splitlines()[-1]) == (2, "", "pipeline classify: error: argument --top: '0' is not a whole number above 0")
