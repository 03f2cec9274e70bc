"""torch to ONNX: the same answers at any batch size, the same bytes at any time, nothing of this machine."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.core.errors import PipelineError
from pipeline.networks import onnx_file
from pipeline.networks.classifier import Backbone
from pipeline.networks.onnx_file import check_parity, export_onnx, open_session, write_onnx

SIDE = 64


def draw_pixels(count):
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(backbone_of, tmp_path_factory):
    """A backbone whose BatchNorm statistics are not those of the start, and its file. test_families exports others."""
    backbone, path = backbone_of("timm/test_efficientnet"), tmp_path_factory.mktemp("export") / "model.onnx"
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    write_onnx(export_onnx(backbone, SIDE, ["features"]), path)
    return SimpleNamespace(backbone=backbone, path=path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network that is exported in no time, and its file."""
    torch.manual_seed(0)
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (0.5,) * 3, (0.5,) * 3)
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    write_onnx(export_onnx(backbone, SIDE, ["features"]), path)
    return SimpleNamespace(backbone=backbone, path=path)


@pytest.fixture
def far_from_itself(small, monkeypatch):
    """Pretend that torch gave two answers to the pixels, `apart` from that of the file and from each other."""

    def pretend(apart_from_file, apart):
        answer = open_session(small.path, 1).run(None, {"pixels": draw_pixels(2)})[0] + apart_from_file
        answers = iter([[answer], [answer + apart]])
        monkeypatch.setattr(onnx_file, "_run_torch", lambda *_: next(answers))

    return pretend


@pytest.mark.parametrize(
    ("on_gpu", "available", "chosen"),
    [
        (True, ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        (False, ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        (True, ["CPUExecutionProvider"], ["CPUExecutionProvider"]),
    ],
)
def test_a_gpu_is_used_where_it_is_asked_for_and_its_provider_is_installed(on_gpu, available, chosen, monkeypatch):
    opened = []
    monkeypatch.setattr(onnx_file.onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnx_file.onnxruntime, "InferenceSession", lambda path, options, providers: opened.extend(providers))
    open_session(Path("model.onnx"), 1, on_gpu)
    assert [each if isinstance(each, str) else each[0] for each in opened] == chosen
    assert all(each[1]["use_tf32"] == 0 for each in opened if isinstance(each, tuple))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_file_answers_as_torch_does(exported, batch_size):
    check_parity(exported.path, exported.backbone, draw_pixels(batch_size), 2)


def test_the_file_names_no_folder_of_this_machine(exported):
    content = exported.path.read_bytes()
    assert b"/" + b"site-packages" not in content
    assert str(exported.path.parent).encode() not in content


def test_the_file_is_a_valid_model_of_uint8_pixels_with_a_free_batch_size(exported):
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    (pixels,), (features,) = model.graph.input, model.graph.output
    assert (pixels.name, features.name) == ("pixels", "features")
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_value for axis in pixels.type.tensor_type.shape.dim] == [0, SIDE, SIDE, 3]
    assert pixels.type.tensor_type.shape.dim[0].dim_param == features.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_exporting_twice_writes_equal_bytes(exported, tmp_path):
    write_onnx(export_onnx(exported.backbone, SIDE, ["features"]), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.path.read_bytes()


def test_exporting_prints_nothing(capsys):
    export_onnx(nn.Flatten(), 4, ["flat"])
    assert capsys.readouterr() == ("", "")


def test_another_network_than_that_of_the_file_is_refused(small):
    torch.manual_seed(1)
    other = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        PipelineError,
        match=r"^the exported network: differs from torch by \d\.\de[-+]\d\d, more than 0\.0001; this network cannot be exported$",
    ):
        check_parity(small.path, other, draw_pixels(2), 1)


def test_where_torch_differs_from_itself_a_difference_up_to_ten_times_that_is_rounding(small, far_from_itself):
    far_from_itself(0.002, 0.0003)
    check_parity(small.path, small.backbone, draw_pixels(2), 1)


@pytest.mark.parametrize(("apart_from_file", "apart", "most"), [(0.002, 0.0001, "0.001"), (0.05, 0.5, "0.01")])
def test_more_than_that_is_none_and_a_hundredth_is_the_most(small, far_from_itself, apart_from_file, apart, most):
    far_from_itself(apart_from_file, apart)
    with pytest.raises(PipelineError, match=f"more than {most}; this network cannot be exported$"):
        check_parity(small.path, small.backbone, draw_pixels(2), 1)


def test_a_graph_that_onnx_runtime_refuses_is_a_line(small, tmp_path):
    graph = onnx.load(small.path)
    graph.graph.node[0].input[0] = "nowhere"
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(PipelineError, match=r"^the exported network: ONNX Runtime refuses it: .*nowhere.*; choose another$"):
        check_parity(tmp_path / "model.onnx", small.backbone, draw_pixels(2), 1)


class Sorts(nn.Module):
    """A network that looks at its numbers to know what to do."""

    def forward(self, pixels):
        return pixels.float().mean(dim=(1, 2)) if pixels.sum().item() > 7 else pixels.float().amax(dim=(1, 2))


def test_a_network_that_torch_cannot_export_is_a_line():
    with pytest.raises(PipelineError, match=r"^the network: torch cannot export it to ONNX: [^\n]+; choose another$"):
        export_onnx(Sorts(), 4, ["features"])


def test_answers_that_are_no_numbers_are_no_parity(small):
    broken = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (0.5,) * 3, (0.5,) * 3)
    nn.init.constant_(broken.network[0].weight, torch.nan)
    with pytest.raises(PipelineError) as error:
        check_parity(small.path, broken, draw_pixels(2), 1)
    assert str(error.value) == "the exported network: differs from torch by nan, more than 0.0001; this network cannot be exported"


def test_a_network_in_training_is_exported_as_it_answers_in_use(tmp_path):
    network = Backbone(nn.Sequential(nn.Flatten(), nn.Dropout(0.9)), (0.5,) * 3, (0.5,) * 3).train()
    write_onnx(export_onnx(network, 4, ["features"]), tmp_path / "model.onnx")
    check_parity(tmp_path / "model.onnx", network, np.zeros((2, 4, 4, 3), np.uint8), 1)


class Windows(nn.Module):
    """Attention within the windows of a picture, five dimensions at once, as timm's Hiera and NesT compute it."""

    fused_attn = True

    def forward(self, pixels):
        windows = (pixels / 255).unflatten(1, (2, 2)).unsqueeze(1).flatten(4)  # (batch, heads, windows, rows, columns x channels)
        if self.fused_attn:
            return functional.scaled_dot_product_attention(windows, windows, windows).flatten(1)
        scores = windows @ windows.transpose(-2, -1) / windows.shape[-1] ** 0.5
        return (scores.softmax(dim=-1) @ windows).flatten(1)


def test_attention_of_five_dimensions_is_exported_product_by_product(tmp_path):
    network = Windows()
    write_onnx(export_onnx(network, 4, ["features"]), tmp_path / "model.onnx")
    assert network.fused_attn
    check_parity(tmp_path / "model.onnx", network, draw_pixels(2)[:, :4, :4], 1)
