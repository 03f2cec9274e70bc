"""Grad-CAM: where any convolutional classifier looked, from the gradient of its answer at its last feature map."""

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.evaluation.explain import Array, scaled
from pipeline.models.classifier import Classifier
from pipeline.models.maps import channels_first, watched


def grad_cam(classifier: Classifier, feature_map: Mapping[str, Any], pixels: Array, index: int) -> Array:
    """How much each place speaks for a class (Selvaraju et al., 2017): float (h, w), 0 to 1.

    `pixels`: uint8 (S, S, 3); `feature_map`: the layer of the backbone and the axis of its channels; `index`: of the class,
    whose logit counts as far as it differs from the mean of all. Where the head is linear on the pooled map, this is CAM.
    """
    with watched(classifier.backbone.network.get_submodule(feature_map["layer"])) as seen, torch.enable_grad():
        logits = classifier.eval()(torch.tensor(pixels[None]))[0]
        maps = seen[-1]
        (gradient,) = torch.autograd.grad(logits[index] - logits.mean(), maps)
    maps, gradient = (channels_first(tensor, feature_map["channel_axis"])[0] for tensor in (maps, gradient))
    return scaled((gradient.mean(dim=(1, 2))[:, None, None] * maps).sum(dim=0).detach().numpy())
