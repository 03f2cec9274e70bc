"""`pipeline detect`: a drawn picture and a JSON line for each."""

import json

import pytest
from PIL import Image

OWN = ("--weights", "own.safetensors", "--classes", "names.txt", "--image-size", "64")


@pytest.fixture(autouse=True)
def own(write_network):
    write_network("fasterrcnn_mobilenet_v3_large_320_fpn")


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_each_picture_gives_a_line_and_a_drawn_picture(ask, below):
    code, out, err = ask("detect", "in/a.png", "in/c/a.png", *OWN, "--threshold", "0.4")
    assert (code, err) == (0, "")
    for line, path, drawn in zip(lines(out), ("in/a.png", "in/c/a.png"), ("a_drawn.png", "a-2_drawn.png"), strict=True):
        assert list(line) == ["path", "drawn", "width", "height", "found"]
        assert (line["path"], line["drawn"], line["width"], line["height"]) == (path, drawn, 60, 40)
        with Image.open(below / "detected" / drawn) as picture:
            assert (picture.format, picture.width) == ("PNG", 540)


def test_things_have_a_label_a_score_and_a_box_within_the_picture_the_surest_first(ask):
    found = [thing for line in lines(ask("detect", "in/a.png", *OWN, "--threshold", "0.4")[1]) for thing in line["found"]]
    assert found
    for thing in found:
        assert list(thing) == ["label", "score", "box"]
        assert thing["label"] in ("ant", "Käfer")
        x0, y0, x1, y1 = thing["box"]
        assert 0 <= x0 <= x1 <= 60
        assert 0 <= y0 <= y1 <= 40
    scores = [thing["score"] for thing in found]
    assert scores == sorted(scores, reverse=True)


def test_a_higher_threshold_leaves_out_the_less_sure(ask):
    few, many = (lines(ask("detect", "in/a.png", *OWN, "--threshold", share)[1])[0]["found"] for share in ("0.6", "0.4"))
    assert few == [thing for thing in many if thing["score"] >= 0.6]
    assert len(few) < len(many)


def test_nothing_found_is_an_empty_list_and_a_drawn_picture(ask, below):
    assert lines(ask("detect", "in/a.png", *OWN, "--threshold", "1")[1])[0]["found"] == []
    assert (below / "detected" / "a_drawn.png").is_file()


def test_a_picture_is_never_replaced_by_the_drawn_one(ask, below):
    before = (below / "in" / "a.png").read_bytes()
    ask("detect", "in/a.png", *OWN, "--output", "in")
    assert (below / "in" / "a.png").read_bytes() == before
    assert (below / "in" / "a_drawn.png").is_file()


def test_broken_pictures_are_a_line_each_and_the_rest_goes_on(ask):
    code, out, err = ask("detect", "-", *OWN, stdin=b"broken.png\nin/a.png\n")
    assert (code, len(out.splitlines()), err) == (3, 1, "broken.png: not a picture\n")


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan", "half"])
def test_a_threshold_out_of_range_is_wrong_usage(ask, share):
    code, out, err = ask("detect", "in", f"--threshold={share}")
    wanted = f"pipeline detect: error: argument --threshold: '{share}' is not a number from 0 to 1"
    assert (code, out, err.splitlines()[-1]) == (2, "", wanted)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["in", "--model", "fcn_resnet50"],
            "--model fcn_resnet50: belongs to `pipeline segment`; of those that detect takes the nearest are fcos_resnet50_fpn, "
            "fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn_v2",
        ),
        (
            ["in"],
            "--model fasterrcnn_mobilenet_v3_large_320_fpn: its weights are not on this disk; --fetch fetches them from "
            "https://download.pytorch.org/models/fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth, or name a file with --weights",
        ),
    ],
)
def test_a_call_that_cannot_be_answered_is_one_line_and_ends_with_1(ask, arguments, line):
    assert ask("detect", *arguments) == (1, "", f"{line}\n")
