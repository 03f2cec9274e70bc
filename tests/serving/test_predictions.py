"""Predictions for many files are those of the predictor, in order; a broken file stops nothing."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.images import Preprocessing, read_square
from pipeline.serving.predictions import BrokenFile, PictureFile, Prediction, make_prediction, predict_all, printable
from pipeline.serving.predictor import Predictor
from tests.stored import SIZE, write_model

NAMES = ["ants", "bees", "Käfer"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(write_model(tmp_path_factory.mktemp("stored") / "model") / "model.onnx", 1)


def draw(seed, mode="RGB", size=(14, 11)):
    """A picture of random pixels."""
    shape = (size[1], size[0], len(mode)) if mode in ("RGB", "CMYK") else (size[1], size[0])
    high, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    return Image.fromarray(np.random.default_rng(seed).integers(0, high, shape, dtype), mode if mode == "CMYK" else None)


def encoded(image, form, **options):
    with io.BytesIO() as file:
        image.save(file, form, **options)
        return file.getvalue()


def turned():
    """A picture that EXIF marks as turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(draw(1), "JPEG", exif=exif)


PICTURES = {
    "plain.png": encoded(draw(0), "PNG"),
    "turned.jpg": turned(),
    "cmyk.jpg": encoded(draw(2, "CMYK"), "JPEG"),
    "deep.png": encoded(draw(3, "I;16"), "PNG"),
    "grey.gif": encoded(draw(4, "L"), "GIF"),
}


@pytest.fixture
def here(tmp_path):
    for name, content in PICTURES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def predictions(predictor, here, *names, abstain_below=0.0, threads=2):
    files = [name if isinstance(name, PictureFile) else PictureFile(name) for name in names]
    return [item for batch in predict_all(predictor, files, here, abstain_below, 32, threads, None) for item in batch]


@pytest.mark.parametrize("name", PICTURES)
def test_probabilities_are_those_of_the_predictor_on_the_bytes(predictor, here, name):
    (prediction,) = predictions(predictor, here, name)
    assert list(prediction.probs.values()) == pytest.approx(predictor.predict([PICTURES[name]])[0].tolist(), abs=1e-6)


def test_a_picture_is_turned_upright_by_its_exif(predictor, here):
    (here / "lying.jpg").write_bytes(encoded(draw(1), "JPEG"))
    first, second = predictions(predictor, here, "turned.jpg", "lying.jpg")
    assert first.probs != second.probs


def test_the_predicted_class_is_the_most_probable(predictor, here):
    (prediction,) = predictions(predictor, here, "plain.png")
    best = int(predictor.predict([PICTURES["plain.png"]])[0].argmax())
    assert (prediction.predicted, prediction.probability) == (NAMES[best], prediction.probs[NAMES[best]])


def test_probabilities_are_in_the_order_of_the_classes(predictor, here):
    assert list(predictions(predictor, here, "plain.png")[0].probs) == NAMES


def test_broken_files_keep_their_place_among_the_predictions(predictor, here):
    (here / "cut.png").write_bytes(PICTURES["plain.png"][:-40])
    (here / "text.png").write_text("hello")
    found = predictions(
        predictor, here, "text.png", "plain.png", "nothing.png", PictureFile("empty", "contains no pictures"), "cut.png", "grey.gif"
    )
    assert [(each.path, each.outcome) for each in found] == [
        ("text.png", "broken"), ("plain.png", "answered"), ("nothing.png", "broken"),
        ("empty", "broken"), ("cut.png", "broken"), ("grey.gif", "answered"),
    ]  # fmt: skip
    assert found[0] == BrokenFile("text.png", "not a picture")
    assert found[2] == BrokenFile("nothing.png", "does not exist")
    assert found[3] == BrokenFile("empty", "contains no pictures")


def test_no_files_give_no_predictions(predictor, here):
    assert predictions(predictor, here) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_more_pictures_than_a_batch_keep_their_order(predictor, here, threads):
    names = ["plain.png", "grey.gif", "nothing.png"] * 30
    one = {found.path: found for found in predictions(predictor, here, *names[:3])}
    found = predictions(predictor, here, *names, threads=threads)
    assert [each.path for each in found] == names
    for each in found:
        if isinstance(each, Prediction):
            assert list(each.probs.values()) == pytest.approx(list(one[each.path].probs.values()), abs=2e-6)


def test_batches_are_bounded(predictor, here):
    batches = predict_all(predictor, [PictureFile("plain.png")] * 70, here, 0.0, 32, 1, None)
    assert [len(batch) for batch in batches] == [32, 32, 6]


def test_an_absolute_path_is_not_relative_to_here(predictor, here, tmp_path_factory):
    (found,) = predictions(predictor, tmp_path_factory.mktemp("elsewhere"), f"{here}/plain.png")
    assert (found.path, found.outcome) == (f"{here}/plain.png", "answered")


@pytest.mark.parametrize(("abstain_below", "predicted"), [(0.0, "bees"), (0.7, "bees"), (0.700001, None), (1.0, None)])
def test_below_the_threshold_no_class_is_predicted(abstain_below, predicted):
    prediction = make_prediction("a.png", np.array([0.1, 0.7, 0.2], np.float32), None, NAMES, abstain_below)  # 0.7 in float32 is less
    assert prediction == Prediction("a.png", predicted, 0.7, {"ants": 0.1, "bees": 0.7, "Käfer": 0.2})


def test_of_equals_the_first_class_is_predicted():
    assert make_prediction("a.png", np.array([0.2, 0.4, 0.4], np.float32), None, NAMES, 0).predicted == "bees"


def test_a_prediction_and_a_fault_have_captions():
    assert Prediction("a.png", "bees", 0.7, {"ants": 0.3, "bees": 0.7}).caption == "bees (0.70)"
    assert Prediction("a.png", None, 0.7, {"ants": 0.3, "bees": 0.7}).caption == "abstained: bees (0.70)"
    assert BrokenFile("a.png", "not a picture").caption == "broken: not a picture"


# Unfamiliar pictures


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """A model to which plain.png is familiar, and nothing else."""
    pixels = read_square(PICTURES["plain.png"], Preprocessing(SIZE, 1.0, "bicubic"))
    return Predictor.load(write_model(tmp_path_factory.mktemp("telling") / "model", familiar=pixels[None]) / "model.onnx", 1)


@pytest.mark.parametrize("refuses", [False, True])
def test_an_unfamiliar_picture_is_said_to_be_so_or_refused_and_a_familiar_one_is_answered(telling, here, refuses):
    files = [PictureFile(name) for name in ("plain.png", "nothing.png", "deep.png")]
    [familiar, broken, unfamiliar] = next(predict_all(telling, files, here, 0.0, 32, 1, None, refuse_unfamiliar=refuses))
    assert (familiar.unfamiliar, familiar.outcome, broken.outcome) == (False, "answered", "broken")
    assert familiar.unfamiliarity == pytest.approx(0, abs=1e-4)
    assert (unfamiliar.unfamiliar, unfamiliar.outcome) == (True, "refused" if refuses else "answered")
    assert (unfamiliar.predicted is None) == refuses


def test_a_model_that_does_not_tell_refuses_nothing(predictor, here):
    [[found]] = predict_all(predictor, [PictureFile("plain.png")], here, 0.0, 32, 1, None, refuse_unfamiliar=True)
    assert (found.unfamiliar, found.unfamiliarity, found.outcome) == (None, None, "answered")


@pytest.mark.parametrize(("unfamiliarity", "unfamiliar"), [(0.2, False), (1.0, False), (1.0001, True)])
def test_above_1_a_picture_is_unfamiliar(unfamiliarity, unfamiliar):
    found = make_prediction("a.png", np.array([0.25, 0.75]), unfamiliarity, NAMES[:2], 0.0, refuse_unfamiliar=True)
    assert (found.unfamiliar, found.refused, found.predicted) == (unfamiliar, unfamiliar, None if unfamiliar else "bees")


def test_the_caption_says_that_a_picture_is_unfamiliar():
    probs = {"ants": 0.3, "bees": 0.7}
    assert Prediction("a.png", "bees", 0.7, probs, 1.5).caption == "bees (0.70), unfamiliar"
    assert Prediction("a.png", "bees", 0.7, probs, 0.5).caption == "bees (0.70)"
    assert Prediction("a.png", None, 0.7, probs, 1.5).caption == "abstained: bees (0.70), unfamiliar"
    assert Prediction("a.png", None, 0.7, probs, 1.5, refused=True).caption == "unfamiliar: bees (0.70)"


@pytest.mark.parametrize(
    ("text", "line"),
    [("Käfer 🐝.png", "Käfer 🐝.png"), ("a\nb", "a\\nb"), ("\x1b[2J", "\\x1b[2J"), ("\udcff", "\\udcff"), ('it\'s "a"', 'it\'s "a"')],
)
def test_a_text_becomes_one_line_without_control_characters(text, line):
    assert printable(text) == line
