"""Names of classes, from their publishers and from files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.stock.networks import distinct, names_inside, published_names, read_names


@pytest.mark.parametrize("model", ["resnet18", "tf_efficientnet_lite0"])
def test_the_classes_of_imagenet_stand_in_their_order(model):
    names = published_names(zoo.find_architecture(model))
    assert (len(names), names[0], names[309], names[310]) == (1000, "tench", "bee", "ant")


def test_a_network_of_more_classes_has_the_names_of_its_own_set_each_but_once():
    names = published_names(zoo.find_architecture("vit_base_patch16_224_miil"))
    assert (len(names), len(set(names)), names[0]) == (11221, 11221, "benthos")


def test_a_network_without_classes_is_refused():
    with pytest.raises(PipelineError) as error:
        published_names(zoo.find_architecture("resnet50_clip"))
    assert str(error.value) == "--model resnet50_clip: its published weights give features, no classes of ImageNet; take another model"


def test_a_text_file_has_a_name_a_line(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffbackground\r\n Käfer \r\nflower pot".encode())
    assert read_names(tmp_path / "names.txt", "names.txt") == ["background", "Käfer", "flower pot"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty; write a class a line"),
        (b"a\n\nb\n", "has a line that is no name; write a class a line"),
        (b"a\nb\x1b[2J\n", "has a line that is no name; write a class a line"),
        (b"\xff\xfe", "is no UTF-8 text; name a text file with a class a line"),
        (None, "No such file or directory; name a text file with a class a line"),
    ],
)
def test_a_file_that_holds_no_names_is_refused(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    with pytest.raises(PipelineError) as error:
        read_names(tmp_path / "names", "names")
    assert str(error.value) == f"--classes names: {fault}"


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"class_names": '["a", "b"]'}, ["a", "b"]),
        ({"class_names": '["a", "a"]'}, ["a (0)", "a (1)"]),
        ({"class_names": "[]"}, None),
        ({"class_names": '["a", 2]'}, None),
        ({"class_names": '["a", ""]'}, None),
        ({"class_names": json.dumps(["a", "b\nc"])}, None),
        ({"class_names": '{"a": 1}'}, None),
        ({"class_names": "a, b"}, None),
        ({"class_names": "[" * 100_000}, None),
        ({"other": "[]"}, None),
        (None, None),
    ],
)
def test_a_safetensors_file_may_tell_its_classes(tmp_path, metadata, names):
    save_file({"a": torch.zeros(1)}, tmp_path / "own.safetensors", metadata)
    assert names_inside(tmp_path / "own.safetensors") == names


def test_a_torch_file_tells_none(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "own.pth")
    assert names_inside(tmp_path / "own.pth") is None


def test_a_name_that_several_classes_have_is_numbered():
    assert distinct(["crane", "bee", "crane"]) == ["crane (0)", "bee", "crane (2)"]


def test_a_number_makes_no_new_twins():
    names = distinct(["a", "a", "a (0)", "b"])
    assert len(set(names)) == 4
    assert names[3] == "b"
