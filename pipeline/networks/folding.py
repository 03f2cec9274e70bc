"""Frozen BatchNorm, computed by the convolution before it: one pass over the activations in place of two."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.classifier import replaced_forward
from pipeline.networks.regimes import main_logits

_TOLERANCE = 1e-3  # between the outputs before and after, as a share of the largest


@contextmanager
def folded_norms(model: nn.Module, inputs: Tensor) -> Iterator[int]:
    """Fold the BatchNorm layers of a model into the convolutions before them for the block, and yield how many.

    Only for norms that are frozen. Nothing is stored: a convolution multiplies its weights by the norm's scale when it runs, so the
    weights, their gradients and the names of all tensors stay those of the model. `inputs`: a batch that shows which norm follows
    which convolution.
    """
    model.eval()
    with torch.no_grad(), ExitStack() as stack:
        before, pairs = _run_and_pair(model, inputs)
        for conv, norm in pairs.items():
            stack.enter_context(replaced_forward(conv, partial(_convolve, conv, *_scale_and_shift(norm))))
            stack.enter_context(replaced_forward(norm, partial(_activate, norm)))
        difference = (main_logits(model(inputs))[0] - before).abs().max()
        if difference > _TOLERANCE * before.abs().max():  # another layer reads what the norm reads
            stack.close()
            pairs = {}
        kept = stack.pop_all()
    with kept:
        yield len(pairs)


@contextmanager
def depthwise_in_fp32(model: nn.Module) -> Iterator[None]:
    """Let convolutions with a filter per channel compute in fp32 for the block, also under autocast."""
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
                stack.enter_context(replaced_forward(layer, partial(_without_autocast, layer.forward)))
        yield


def _run_and_pair(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[nn.Conv2d, nn.BatchNorm2d]]:
    """The output for inputs, and each convolution that runs once and whose output enters a norm that runs once."""
    from timm.layers.conv2d_same import Conv2dSame  # it makes folders for its caches, so `keep_caches_here` comes first
    from timm.layers.norm_act import BatchNormAct2d

    outputs: list[tuple[nn.Conv2d, Tensor]] = []  # they stay alive, so that each is another object
    entered: list[tuple[nn.BatchNorm2d, Tensor]] = []
    handles = []
    for layer in model.modules():
        if type(layer) in (nn.Conv2d, Conv2dSame):
            handles.append(layer.register_forward_hook(lambda conv, _, output: outputs.append((conv, output))))
        elif type(layer) in (nn.BatchNorm2d, BatchNormAct2d) and layer.running_var is not None:
            handles.append(layer.register_forward_pre_hook(lambda norm, values: entered.append((norm, values[0]))))
    try:
        output = main_logits(model(inputs))[0]
    finally:
        for handle in handles:
            handle.remove()
    convs, norms = [conv for conv, _ in outputs], [norm for norm, _ in entered]
    found = [(conv, norm) for norm, value in entered for conv, output_of in outputs if output_of is value]
    return output, {conv: norm for conv, norm in found if convs.count(conv) == norms.count(norm) == 1}


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A frozen norm as one multiplication and one addition per channel, float32 (C,) each."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = torch.rsqrt(var + norm.eps) * (1 if norm.weight is None else norm.weight)
    return scale, (0 if norm.bias is None else norm.bias) - mean * scale


def _convolve(conv: nn.Conv2d, scale: Tensor, shift: Tensor, inputs: Tensor) -> Tensor:
    """A convolution and the norm behind it."""
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.padding import pad_same

    weight = conv.weight * scale.view(-1, 1, 1, 1)
    bias = shift if conv.bias is None else conv.bias * scale + shift
    if isinstance(conv, Conv2dSame):
        size, stride, dilation = ([*pair] for pair in (conv.kernel_size, conv.stride, conv.dilation))
        inputs = pad_same(inputs, size, stride, dilation)
        return functional.conv2d(inputs, weight, bias, conv.stride, 0, conv.dilation, conv.groups)
    return cast(Tensor, conv._conv_forward(inputs, weight, bias))


def _activate(norm: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """What timm's norms do after normalisation."""
    from timm.layers.norm_act import BatchNormAct2d

    return norm.act(norm.drop(inputs)) if isinstance(norm, BatchNormAct2d) else inputs


def _without_autocast(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return forward(inputs.float())
