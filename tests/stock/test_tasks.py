"""Classify, segment and detect: tensor by tensor what torchvision and timm do themselves, for pictures of any size."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models import WeightsEnum
from torchvision.transforms.functional import resize

from pipeline.core.errors import PipelineError
from pipeline.networks import zoo
from pipeline.stock import tasks
from pipeline.stock.networks import NetworkRequest, WeightsFile
from pipeline.stock.tasks import Detector, load_classifier, load_detector, load_segmenter, middle, shrunk, widened, working_size
from tests.conftest import HYMENOPTERA

LRASPP = "lraspp_mobilenet_v3_large"
FASTER_RCNN = "fasterrcnn_mobilenet_v3_large_320_fpn"


def build(model, **options):
    return torchvision.models.get_model(model, weights=None, weights_backbone=None, **options)


def slow(*models):
    return [pytest.param(model, marks=pytest.mark.slow) for model in models]


# Sizes of pictures


@pytest.mark.parametrize(("size", "wanted"), [((30, 20), (30, 20)), ((160, 20), (160, 20)), ((200, 20), (160, 20)), ((1, 50), (1, 8))])
def test_the_middle_is_eight_times_as_long_as_wide_at_most(size, wanted):
    assert middle(Image.new("RGB", size)).size == wanted


def test_as_much_is_cut_off_at_both_ends():
    picture = Image.new("RGB", (100, 10), "white")
    picture.paste("black", (10, 0, 90, 10))
    assert middle(picture).getcolors() == [(800, (0, 0, 0))]


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (33, 97), (7, 7), (1000, 251)])
def test_a_working_size_is_the_one_that_torchvision_takes(size):
    assert working_size(size, 520) == resize(Image.new("RGB", size), [520]).size


@pytest.mark.parametrize(("size", "wanted"), [((8000, 1000), (400, 50)), ((1000, 8000), (50, 400)), ((1, 100_000), (1, 400))])
def test_a_longer_side_is_four_times_the_working_size_at_most(size, wanted):
    assert working_size(size, 100) == wanted


@pytest.mark.parametrize(("size", "wanted"), [((300, 200), (300, 200)), ((600, 400), (300, 200)), ((3, 90_000), (1, 300))])
def test_a_picture_is_shrunk_to_its_longer_side(size, wanted):
    assert shrunk(Image.new("RGB", size), 300).size == wanted


@pytest.mark.parametrize(("size", "wanted"), [((30, 20), (30, 20)), ((160, 10), (160, 10)), ((161, 10), (161, 11)), ((1, 100), (7, 100))])
def test_a_narrow_picture_is_widened(size, wanted):
    assert widened(Image.new("RGB", size)).size == wanted


def test_it_is_widened_in_black_and_stays_at_the_upper_left():
    picture = widened(Image.new("RGB", (32, 1), "white"))
    assert [picture.getpixel((31, 0)), picture.getpixel((0, 1))] == [(255, 255, 255), (0, 0, 0)]


# Classify


AS_PUBLISHED = {"inception_v3": {"init_weights": False, "transform_input": True}}  # what torchvision sets if it loads its weights
IMAGENET_CLASS = {"ants": 310, "bees": 309}


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "inception_v3", *slow("squeezenet1_1", "swin_t", "densenet121")])
def test_probabilities_are_those_of_torchvisions_own_forward_pass(model, own, random_weights, make_picture, published, cpu, root):
    network = torchvision.models.get_model(model, weights=None, **AS_PUBLISHED.get(model, {}))
    state = random_weights(network)
    classifier = load_classifier(own(model, state), cpu)
    for number, size in enumerate([(61, 97), (300, 200)]):
        picture = make_picture(*size)
        picture.save(root / f"{number}.png")
        prepared = published(model).transforms()(picture)
        assert np.array_equal(classifier.read(root / f"{number}.png"), prepared.numpy())
    with torch.inference_mode():
        wanted = network(prepared[None]).softmax(dim=1).numpy()
    assert np.array_equal(classifier.predict_pixels(prepared[None].numpy()), wanted)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", *slow("xcit_nano_12_p16_224")])
def test_probabilities_are_those_of_timms_own_forward_pass(model, own, random_weights, make_picture, cpu, root):
    network = timm.create_model(model)
    state = random_weights(network)
    picture = make_picture(300, 200)
    picture.save(root / "a.png")
    classifier = load_classifier(own(model, state), cpu)
    prepared = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)(picture)
    assert np.array_equal(classifier.read(root / "a.png"), prepared.numpy())
    with torch.inference_mode():
        wanted = network(prepared[None]).softmax(dim=1).numpy()
    assert np.array_equal(classifier.predict_pixels(prepared[None].numpy()), wanted)


def test_a_file_of_a_classifier_may_have_classes_of_its_own(own, random_weights, cpu):
    state = random_weights(timm.create_model("test_resnet", num_classes=3))
    classifier = load_classifier(own("test_resnet", state, {"class_names": '["a", "b", "c"]'}), cpu)
    assert classifier.class_names == ["a", "b", "c"]
    assert classifier.predict_pixels(np.zeros((2, 3, 160, 160), np.float32)).shape == (2, 3)


def test_a_file_with_other_classes_and_no_names_of_them_does_not_fit(own, random_weights, cpu):
    state = random_weights(timm.create_model("test_resnet", num_classes=3))
    with pytest.raises(PipelineError) as error:
        load_classifier(own("test_resnet", state), cpu)
    for fact in ("own.safetensors", "test_resnet", "fc.weight (3x96, not 1000x96)", "fc.bias (3, not 1000)", "--classes"):
        assert fact in str(error.value)


@pytest.mark.slow
def test_published_weights_with_older_names_are_understood(own, random_weights, cpu):
    network = torchvision.models.get_model("densenet121", weights=None)
    state = random_weights(network)
    older = {key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.") if "denselayer" in key else key: state[key] for key in state}
    assert older.keys() != state.keys()
    classifier = load_classifier(own("densenet121", older), cpu)
    assert all(torch.equal(tensor, state[key]) for key, tensor in classifier.network.state_dict().items())


def test_a_picture_of_any_size_is_prepared(root, cpu):
    classifier = load_classifier(NetworkRequest("tf_efficientnet_lite0", root), cpu)
    for size in ((1, 1), (1, 3000), (3000, 2), (2500, 1700)):
        Image.new("RGB", size, "orange").save(root / "a.png")
        assert classifier.read(root / "a.png").shape == (3, 224, 224)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The ImageNet classes of hymenoptera's val pictures, and those that the default network predicts."""
    if not HYMENOPTERA.is_file():
        pytest.skip("hymenoptera is not on this disk")
    folder = tmp_path_factory.mktemp("hymenoptera")
    with zipfile.ZipFile(HYMENOPTERA) as archive:
        names = sorted(name for name in archive.namelist() if "/val/" in name and name.endswith(".jpg"))
        for number, name in enumerate(names):
            (folder / f"{number}.jpg").write_bytes(archive.read(name))
    classifier = load_classifier(NetworkRequest("tf_efficientnet_lite0", folder), torch.device("cpu"))
    probs = [classifier.predict_pixels(classifier.read(folder / f"{number}.jpg")[None])[0] for number in range(len(names))]
    truth = [IMAGENET_CLASS[name.split("/")[-2]] for name in names]
    return SimpleNamespace(truth=np.array(truth), named=np.stack(probs).argmax(axis=1), class_names=classifier.class_names)


@pytest.mark.slow
def test_of_hymenopteras_val_pictures_84_in_a_hundred_are_named_exactly(answers):
    assert len(answers.truth) == 153
    assert (answers.named == answers.truth).mean() >= 0.84


@pytest.mark.slow
def test_the_names_are_those_of_ants_and_bees(answers):
    assert {answers.class_names[number] for number in answers.truth} == {"ant", "bee"}


def test_the_packaged_network_is_prepared_for_as_its_publisher_says(root, cpu):
    transform = load_classifier(NetworkRequest("tf_efficientnet_lite0", root), cpu).transform
    steps = {type(step).__name__: step for step in transform.transforms}
    assert (steps["Resize"].size, steps["Resize"].interpolation.value, tuple(steps["CenterCrop"].size)) == (256, "bicubic", (224, 224))
    assert steps["Normalize"].mean.tolist() == steps["Normalize"].std.tolist() == [0.5, 0.5, 0.5]


# Segment


LAST_BIAS = {
    "lraspp_mobilenet_v3_large": "classifier.low_classifier.bias",
    "deeplabv3_mobilenet_v3_large": "classifier.4.bias",
    "fcn_resnet50": "classifier.4.bias",
}


@pytest.mark.parametrize("model", [LRASPP, *slow("deeplabv3_mobilenet_v3_large", "fcn_resnet50")])
@pytest.mark.parametrize("size", [(150, 100), (60, 97)])
def test_a_mask_is_the_argmax_of_torchvisions_own_forward_pass(model, size, own, random_weights, make_picture, published, cpu):
    network, picture = build(model, num_classes=21), make_picture(*size)
    prepared = published(model).transforms(resize_size=96)(picture)[None]
    state = random_weights(network)
    with torch.no_grad():
        state[LAST_BIAS[model]] -= network(prepared)["out"].mean((0, 2, 3))  # so that several classes win
    mask = load_segmenter(own(model, state, image_size=96), cpu).segment(picture)
    with torch.no_grad():
        scores = network(prepared)["out"]
        wanted = interpolate(scores, size=size[::-1], mode="bilinear", align_corners=False)[0].argmax(0)
    assert (mask.dtype, len(np.unique(mask)) > 5) == (np.uint8, True)
    assert np.array_equal(mask, wanted.numpy())


def test_of_equally_probable_classes_the_first_is_taken():
    scores = torch.tensor([1.0, 2.0, 2.0, 0.0]).view(1, 4, 1, 1)
    assert tasks._highest(scores, (2, 3)).tolist() == [[1, 1, 1]] * 2


def test_a_picture_is_as_large_as_its_publisher_made_it(own, random_weights, make_picture, published, cpu):
    seen = []
    network, picture = build(LRASPP, num_classes=21), make_picture(80, 60)
    segmenter = load_segmenter(own(LRASPP, random_weights(network)), cpu)
    segmenter.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    segmenter.segment(picture)
    assert torch.equal(seen[0][0], published(LRASPP).transforms()(picture))


@pytest.mark.slow
def test_a_file_with_the_head_that_serves_training_is_the_same_network(own, random_weights, make_picture, cpu):
    model, picture = "fcn_resnet50", make_picture(64, 64)
    state = random_weights(build(model, aux_loss=True))
    assert any(key.startswith("aux_classifier.") for key in state)
    plain = {key: tensor for key, tensor in state.items() if not key.startswith("aux_classifier.")}
    masks = [load_segmenter(own(model, each, image_size=64), cpu).segment(picture) for each in (state, plain)]
    assert np.array_equal(*masks)


def test_a_picture_of_any_size_is_segmented(own, random_weights, cpu):
    segmenter = load_segmenter(own(LRASPP, random_weights(build(LRASPP, num_classes=21)), image_size=64), cpu)
    for size in ((1, 1), (1, 900), (900, 2), (3, 5)):
        assert segmenter.segment(Image.new("RGB", size, "orange")).shape == size[::-1]
    names = segmenter.class_names  # of the published weights
    assert (len(names), names[:3], names[15]) == (21, ["background", "aeroplane", "bicycle"], "person")


def test_a_file_of_a_segmenter_may_have_classes_of_its_own(own, random_weights, cpu):
    state = random_weights(build(LRASPP, num_classes=3))
    names = '["background", "square", "disc"]'
    assert load_segmenter(own(LRASPP, state, {"class_names": names}), cpu).class_names == ["background", "square", "disc"]


def test_more_classes_than_a_mask_can_have_are_refused(own, cpu):
    names = str([str(number) for number in range(257)]).replace("'", '"')
    with pytest.raises(PipelineError) as error:
        load_segmenter(own("fcn_resnet50", {"a": torch.zeros(1)}, {"class_names": names}), cpu)
    assert all(fact in str(error.value) for fact in ("own.safetensors", "257", "256"))


# Detect


SIZES = {  # a side at which the large ones do not take minutes; None: there is only one
    FASTER_RCNN: 96,
    "maskrcnn_resnet50_fpn": 96,
    "retinanet_resnet50_fpn": 96,
    "fcos_resnet50_fpn": 96,
    "ssdlite320_mobilenet_v3_large": None,
}
LONGEST = {FASTER_RCNN: 192}  # of 640 to 320; the others have 1333 to 800
FACTORS = {FASTER_RCNN: 200, "ssdlite320_mobilenet_v3_large": 5}  # which spread the scores
CLASS_SCORES = ("box_predictor.cls_score.weight", "cls_logits.weight", "classification_head.module_list")


def sure(state, factor=1):
    """The same weights, but with class scores so far apart that things are found."""
    for key, tensor in state.items():
        if any(part in key for part in CLASS_SCORES) and key.endswith("weight"):
            tensor.mul_(factor)
        if key.endswith("cls_logits.bias"):
            tensor.zero_()
        if key.endswith("cls_score.bias"):
            tensor[0] = -1e4  # the background
    return state


@pytest.mark.parametrize(
    "model", [FASTER_RCNN, "ssdlite320_mobilenet_v3_large", *slow("maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")]
)
def test_what_is_found_is_what_torchvisions_own_forward_pass_gives(model, own, random_weights, make_picture, published, cpu):
    side, picture = SIZES[model], make_picture(130, 90)
    network = build(model, num_classes=91, **({"min_size": side, "max_size": LONGEST.get(model, 160)} if side else {}))
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


class Normed(nn.Module):
    """A network with a layer of BatchNorm."""

    def __init__(self):
        super().__init__()
        self.norm, self.transform = nn.BatchNorm2d(3), SimpleNamespace(max_size=300)


@pytest.mark.parametrize(
    ("model", "kind", "eps"),
    [
        ("retinanet_resnet50_fpn", "published", 0.0),
        ("maskrcnn_resnet50_fpn", "published", 0.0),
        ("fasterrcnn_resnet50_fpn", "published", 0.0),
        ("fasterrcnn_resnet50_fpn_v2", "published", 1e-5),
        ("retinanet_resnet50_fpn", "own", 1e-5),
    ],
)
def test_published_weights_that_were_trained_without_epsilon_get_none(model, kind, eps, monkeypatch, root, cpu):
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: Normed())
    torch.save(Normed().state_dict(), root / "file.pth")
    monkeypatch.setattr(tasks, "find_weights", lambda *_: WeightsFile(root / "file.pth", "file.pth", kind))
    assert load_detector(NetworkRequest(model, root), cpu).network.norm.eps == eps


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_published_weights_give_what_torchvision_gives_with_them(model, random_weights, make_picture, published, cpu, monkeypatch, root):
    state = random_weights(build(model, num_classes=91))
    state["backbone.body.bn1.running_var"] *= 1e-5  # so that what BatchNorm adds to the variance is seen
    state["backbone.body.bn1.weight"] *= 1e-5**0.5
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    theirs = torchvision.models.get_model(model, weights=published(model)).eval()
    assert any(isinstance(layer, torchvision.ops.FrozenBatchNorm2d) and layer.eps == 0 for layer in theirs.modules())
    torch.save(state, root / "published.pth")
    monkeypatch.setattr(tasks, "find_weights", lambda *_: WeightsFile(root / "published.pth", "its URL", "published"))
    ours = load_detector(NetworkRequest(model, root, image_size=96), cpu)
    batch = ours.to_tensor(make_picture(130, 90)).unsqueeze(0)
    with torch.inference_mode():
        wanted, found = theirs.backbone(batch), ours.network.backbone(batch)
    assert found.keys() == wanted.keys()
    for level, features in wanted.items():  # not the things found: rounding decides which of two boxes is left out
        assert (found[level] - features).abs().max() < 1e-3 * features.abs().max()


@pytest.mark.slow
def test_older_names_of_tensors_are_understood(own, random_weights, cpu):
    model = "maskrcnn_resnet50_fpn"
    state = random_weights(build(model, num_classes=91))
    older = state
    for today, once in (("conv.0.0.", "conv."), ("_blocks.0.0.", "_blocks.0."), ("mask_head.0.0.", "mask_head.mask_fcn1.")):
        older = {key.replace(today, once): tensor for key, tensor in older.items()}
    assert len(older.keys() - state.keys()) == 8
    filled = load_detector(own(model, older), cpu).network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in filled.items())


class Fixed(nn.Module):
    """A network that always finds the same, and keeps the picture that it sees."""

    def __init__(self, **found):
        super().__init__()
        self.found = {key: torch.tensor(values) for key, values in found.items()}
        self.transform = SimpleNamespace(max_size=300)

    def forward(self, pictures):
        self.seen = pictures[0]
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
    assert detector.network.seen.shape == (3, 1000, 2000)
    assert thing.box == (30.0, 60.0, 6000.0, 3000.0)


def test_a_narrow_picture_is_widened_and_its_boxes_end_where_it_ends(cpu):
    detector = fixed(cpu, boxes=[[0.0, 0.0, 40.0, 20.0]], masks=np.ones((1, 1, 25, 400), np.float32).tolist())
    [thing] = detector.detect(Image.new("RGB", (400, 3)), 0.5)
    assert detector.network.seen.shape == (3, 25, 400)
    assert (thing.box, thing.mask.shape) == ((0.0, 0.0, 40.0, 3.0), (3, 400))


def test_a_picture_of_any_size_is_searched(own, random_weights, cpu):
    state = sure(random_weights(build(FASTER_RCNN, num_classes=91)), 200)
    detector = load_detector(own(FASTER_RCNN, state, image_size=64), cpu)
    for size in ((1, 1), (1, 900), (900, 2), (3000, 20)):
        for thing in detector.detect(Image.new("RGB", size, "orange"), 0.0):
            assert 0 <= thing.box[0] <= thing.box[2] <= size[0]
            assert 0 <= thing.box[1] <= thing.box[3] <= size[1]


def test_a_network_of_one_size_takes_no_other(own, random_weights, cpu):
    model = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(PipelineError) as error:
        load_detector(own(model, random_weights(build(model, num_classes=91)), image_size=64), cpu)
    assert all(fact in str(error.value) for fact in ("--image-size 64", model, "320 x 320"))


@pytest.mark.parametrize(
    ("load", "model"), [(load_classifier, "resnet18"), (load_segmenter, "fcn_resnet50"), (load_detector, "maskrcnn_resnet50_fpn_v2")]
)
def test_weights_that_are_not_on_this_disk_are_named_and_not_fetched(load, model, root, cpu):
    with pytest.raises(PipelineError) as error:
        load(NetworkRequest(model, root), cpu)
    assert all(fact in str(error.value) for fact in (model, "--fetch", zoo.torchvision_weights(model).url))
