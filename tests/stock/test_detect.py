"""Finding things as torchvision does it itself, tensor by tensor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models import WeightsEnum

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.stock.networks import NetworkRequest, WeightsFile
from pipeline.stock.tasks import Detector, load_detector

SIZES = {  # a side at which the large ones take no minutes; None: they have one side alone
    "fasterrcnn_mobilenet_v3_large_320_fpn": 96,
    "maskrcnn_resnet50_fpn": 96,
    "retinanet_resnet50_fpn": 96,
    "fcos_resnet50_fpn": 96,
    "ssdlite320_mobilenet_v3_large": None,
}
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
LONGEST = {SMALL: 192}  # of 640 to 320; the others have 1333 to 800
FACTORS = {SMALL: 200, "ssdlite320_mobilenet_v3_large": 5}  # at which scores lie far apart
CLASS_SCORES = ("box_predictor.cls_score.weight", "cls_logits.weight", "classification_head.module_list")


def build(model, **options):
    return torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=91, **options)


def sure(state, factor=1):
    """The same weights, but such that things are found: the scores of the classes lie far apart."""
    for key, tensor in state.items():
        if any(part in key for part in CLASS_SCORES) and key.endswith("weight"):
            tensor.mul_(factor)
        if key.endswith("cls_logits.bias"):
            tensor.zero_()
        if key.endswith("cls_score.bias"):
            tensor[0] = -1e4  # the background
    return state


@pytest.mark.parametrize("model", SIZES)
def test_what_is_found_is_what_torchvisions_own_forward_pass_gives(model, own, random_weights, make_picture, published, cpu):
    side, picture = SIZES[model], make_picture(130, 90)
    network = build(model, **({"min_size": side, "max_size": LONGEST.get(model, 160)} if side else {}))
    detector = load_detector(own(model, sure(random_weights(network), FACTORS.get(model, 1)), image_size=side), cpu)
    with torch.inference_mode():
        wanted = network([published(model).transforms()(picture)])[0]
    threshold = float(wanted["scores"].median())
    found = detector.detect(picture, threshold)
    kept = [number for number in wanted["scores"].argsort(descending=True, stable=True) if wanted["scores"][number] >= threshold]
    assert len(found) == len(kept) >= 5
    names = [name.strip("_") for name in published(model).meta["categories"]]
    for thing, number in zip(found, kept, strict=True):
        assert (thing.label, thing.name) == (wanted["labels"][number], names[wanted["labels"][number]])
        assert thing.score == pytest.approx(wanted["scores"][number].item(), abs=1e-6)
        assert thing.box == pytest.approx(wanted["boxes"][number].tolist(), abs=0.006)
        assert (thing.mask is None) == ("masks" not in wanted)
        if thing.mask is not None:
            assert np.array_equal(thing.mask, wanted["masks"][number, 0].numpy() > 0.5)


@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_published_weights_give_what_torchvision_gives_with_them(model, random_weights, make_picture, published, cpu, monkeypatch, root):
    state = random_weights(build(model))
    state["backbone.body.bn1.running_var"] *= 1e-5  # so that what BatchNorm adds to the variance is seen
    state["backbone.body.bn1.weight"] *= 1e-5**0.5
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    theirs = torchvision.models.get_model(model, weights=published(model)).eval()
    assert any(isinstance(layer, torchvision.ops.FrozenBatchNorm2d) and layer.eps == 0 for layer in theirs.modules())
    torch.save(state, root / "published.pth")
    monkeypatch.setattr("pipeline.stock.tasks.find_weights", lambda *_: WeightsFile(root / "published.pth", "its URL", "published"))
    ours = load_detector(NetworkRequest(model, root, image_size=96), cpu)
    batch = ours.to_tensor(make_picture(130, 90)).unsqueeze(0)
    with torch.inference_mode():
        wanted, found = theirs.backbone(batch), ours.network.backbone(batch)
    assert found.keys() == wanted.keys()
    for level, features in wanted.items():  # not the things found: rounding decides which of two boxes is left out
        assert (found[level] - features).abs().max() < 1e-3 * features.abs().max()


def test_older_names_of_tensors_are_understood(own, random_weights, cpu):
    model = "maskrcnn_resnet50_fpn"
    state = random_weights(build(model))
    older = state
    for today, once in (("conv.0.0.", "conv."), ("_blocks.0.0.", "_blocks.0."), ("mask_head.0.0.", "mask_head.mask_fcn1.")):
        older = {key.replace(today, once): tensor for key, tensor in older.items()}
    assert len(older.keys() - state.keys()) == 8
    filled = load_detector(own(model, older), cpu).network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in filled.items())


class Fixed(nn.Module):
    """A network that finds always the same, and keeps what it was shown."""

    def __init__(self, **found):
        super().__init__()
        self.found = {key: torch.tensor(values) for key, values in found.items()}
        self.transform = SimpleNamespace(max_size=300)

    def forward(self, pictures):
        self.shown = pictures[0]
        return [self.found]


def fixed(cpu, **found):
    network = Fixed(**{"boxes": [[10.0, 20.0, 30.0, 40.0]], "labels": [1], "scores": [0.75], **found})
    return Detector(network, zoo.torchvision_weights("fcos_resnet50_fpn").transforms(), ["background", "bee"], cpu)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.25, 3), (0.26, 2), (0.75, 1), (0.76, 0), (1.0, 0)])
def test_what_is_below_the_threshold_is_left_out(threshold, count, cpu):
    detector = fixed(cpu, boxes=[[0.0, 0, 9, 9]] * 3, labels=[1] * 3, scores=[0.25, 0.75, 0.5])
    found = detector.detect(Image.new("RGB", (50, 50)), threshold)
    assert [thing.score for thing in found] == [0.75, 0.5, 0.25][:count]


def test_boxes_of_a_large_picture_are_in_its_own_pixels(cpu):
    detector = fixed(cpu, boxes=[[10.0, 20.0, 2000.0, 1000.0]])
    [thing] = detector.detect(Image.new("RGB", (6000, 3000)), 0.5)
    assert detector.network.shown.shape == (3, 1000, 2000)
    assert thing.box == (30.0, 60.0, 6000.0, 3000.0)


def test_a_narrow_picture_is_widened_and_its_boxes_end_where_it_ends(cpu):
    detector = fixed(cpu, boxes=[[0.0, 0.0, 40.0, 20.0]], masks=np.ones((1, 1, 25, 400), np.float32).tolist())
    [thing] = detector.detect(Image.new("RGB", (400, 3)), 0.5)
    assert detector.network.shown.shape == (3, 25, 400)
    assert (thing.box, thing.mask.shape) == ((0.0, 0.0, 40.0, 3.0), (3, 400))


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 2), (3000, 20)])
def test_a_picture_may_have_any_size(size, own, random_weights, cpu):
    model = SMALL
    detector = load_detector(own(model, sure(random_weights(build(model)), 200), image_size=64), cpu)
    for thing in detector.detect(Image.new("RGB", size, "orange"), 0.0):
        assert 0 <= thing.box[0] <= thing.box[2] <= size[0]
        assert 0 <= thing.box[1] <= thing.box[3] <= size[1]


def test_a_network_of_one_size_takes_no_other(own, random_weights, cpu):
    model = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(PipelineError) as error:
        load_detector(own(model, random_weights(build(model)), image_size=64), cpu)
    assert str(error.value) == f"--image-size 64: {model} takes pictures of 320 x 320 pixels alone; leave it away"


@pytest.mark.parametrize("model", [*SIZES, "ssd300_vgg16", "maskrcnn_resnet50_fpn_v2"])
def test_weights_that_are_not_on_this_disk_are_named_and_nothing_is_fetched(model, root, cpu):
    with pytest.raises(PipelineError) as error:
        load_detector(NetworkRequest(model, root), cpu)
    url = zoo.torchvision_weights(model).url
    assert str(error.value) == (
        f"--model {model}: its weights are not on this disk; --fetch fetches them from {url}, or name a file with --weights"
    )
