"""Galleries of test pictures, class activation maps, contact sheets, and the montage of the classes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.core.files import Slice, atomic_file, write_json
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.intervals import Array
from pipeline.pictures.images import data_url, decode, thumbnail_url
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from pipeline.networks.classifier import Classifier

# A sheet, in pixels
SIDE, _GAP, _TEXT, _TITLE = 176, 12, 40, 44  # of a picture, between two, of the text below one, of the title
_COLUMNS, _FEWEST_COLUMNS = 6, 3  # the title needs some width
_LETTERS = 14
_TINY = SIDE // 2  # a smaller picture is enlarged without smoothing
_COLOURS = {"answered": "#222222", "abstained": "#b35c00", "refused": "#b35c00", "wrong": "#b00020", "broken": "#b00020"}
_OPACITY = 0.55  # of an activation map over its picture

# The galleries
TITLES = {
    "mistakes": "Most confident mistakes",
    "least_sure": "Least confident answers",
    "mislabelled": "Likely mislabelled",
    "unfamiliar": "Most unfamiliar test pictures",
    "random": "Random test pictures",
}
_SHOWN = 12  # pictures per gallery
_QUALITY = 82  # of their JPEGs

# The montage
_MOST_CLASSES = 150
_PER_CLASS = 8  # pictures at most
_IN_ALL = 320  # pictures, of about five kilobytes each


def font(letters: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in that size in pixels. Matplotlib ships it: it covers most alphabets and is the same on every machine."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", letters)


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont, keep_end: bool = False) -> str:
    """The text, or as much of its beginning (or end) as fits into `width` pixels, with an ellipsis."""
    return next(each for each in _shorter(text, width, keep_end) if font.getlength(each) <= width)


def _shorter(text: str, width: int, keep_end: bool) -> Iterator[str]:
    yield text
    text = text[-width:] if keep_end else text[:width]  # no letter is narrower than a pixel
    for length in range(len(text) - 1, 0, -1):
        yield f"…{text[-length:]}" if keep_end else f"{text[:length]}…"
    yield ""


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet (None: it does not decode), its name, a few words about it, and the outcome, which sets their colour."""

    picture: Image.Image | None
    name: str
    words: str
    outcome: Literal["answered", "abstained", "refused", "wrong", "broken"]


def draw_sheet(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Write the sheet as PNG, whole or not at all. A picture that does not decode is a crossed square.

    All texts must consist of printable letters. Those that are too long are cut.
    """
    columns = min(_COLUMNS, max(_FEWEST_COLUMNS, len(cells)))
    rows = -(-len(cells) // columns)
    size = (_GAP + columns * (SIDE + _GAP), _TITLE + rows * (SIDE + _TEXT + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen, letters = ImageDraw.Draw(sheet), font(_LETTERS)
    pen.text((_GAP, _GAP), fitting(title, size[0] - 2 * _GAP, letters), "black", letters)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (SIDE + _GAP), _TITLE + row * (SIDE + _TEXT + _GAP)
        _draw_cell(sheet, pen, cell, left, top, letters)
    with atomic_file(path) as partial:
        sheet.save(partial, "PNG", compress_level=1)  # of photographs: a fifth faster than level 3, and 2 % larger


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int, letters: ImageFont.FreeTypeFont) -> None:
    square = (left, top, left + SIDE - 1, top + SIDE - 1)
    colour = _COLOURS[cell.outcome]
    pen.rectangle(square, "#f2f2f2")
    if cell.picture:
        picture = ImageOps.contain(cell.picture, (SIDE, SIDE))
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
    else:
        pen.line(square, "#c8c8c8", 2)
        pen.line((square[0], square[3], square[2], square[1]), "#c8c8c8", 2)
    if cell.outcome != "answered":
        pen.rectangle(square, outline=colour, width=3)
    pen.text((left, top + SIDE + 3), fitting(cell.name, SIDE, letters, keep_end=True), "#666666", letters)
    pen.text((left, top + SIDE + 20), fitting(cell.words, SIDE, letters), colour, letters)


def thumbnail(path: Path | Slice) -> Image.Image:
    """A picture in the size of the sheet; a tiny one keeps its sharp pixels. Raises BrokenPicture."""
    image = decode(path, at_least=SIDE)
    tiny = max(image.size) < _TINY
    return ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)


def class_activation(feature_map: Array, weight: Array, index: int) -> Array:
    """The class activation map (CAM: Zhou et al., 2016): float (h, w), 0 to 1, 0 for evidence against the class.

    `feature_map`: float (channels, h, w); `weight`: float (classes, channels), of the head; `index`: of the class.
    """
    # The mean of all rows is taken out: what the rows have in common moves no probability.
    return _scaled(np.tensordot(weight[index] - weight.mean(axis=0), feature_map, axes=1))


def _scaled(heat: Array) -> Array:
    """A map with negative values set to 0 and the highest value scaled to 1."""
    positive = np.maximum(heat, 0)
    return np.asarray(positive / max(float(positive.max()), 1e-12))


def overlay(picture: Image.Image, heat: Array) -> Image.Image:
    """A picture (RGB, of any size) in grey, blended with a map (float, 0 to 1) in colours from black to yellow."""
    from matplotlib import colormaps

    fine = Image.fromarray((255 * heat).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    colours = colormaps["inferno"](np.asarray(fine))
    glow = Image.fromarray((255 * colours[..., :3]).astype(np.uint8))
    return Image.blend(picture.convert("L").convert("RGB"), glow, _OPACITY)


def grad_cam(classifier: "Classifier", feature_map: Mapping[str, Any], pixels: Array, index: int) -> Array:
    """The Grad-CAM map of a class (Selvaraju et al., 2017): float (h, w), 0 to 1. Equals CAM if the head is linear on the pooled map.

    `pixels`: uint8 (S, S, 3); `feature_map`: {"layer": of the backbone, "channel_axis": of its output}; `index`: of the class.
    """
    import torch

    from pipeline.networks.classifier import channels_first, record_output

    with record_output(classifier.backbone.network.get_submodule(feature_map["layer"])) as seen, torch.enable_grad():
        logits = classifier.eval()(torch.tensor(pixels[None]))[0]
        maps = seen[-1]
        (gradient,) = torch.autograd.grad(logits[index] - logits.mean(), maps)
    maps, gradient = (channels_first(tensor, feature_map["channel_axis"])[0] for tensor in (maps, gradient))
    return _scaled((gradient.mean(dim=(1, 2))[:, None, None] * maps).sum(dim=0).detach().numpy())


def choose(answers: Answers, probs: Array, seed: int, unfamiliarity: Array | None = None) -> dict[str, Array]:
    """The row numbers of the pictures of each gallery, at most twelve: int (pictures,). `seed`: of the random gallery.

    `unfamiliarity`: float (pictures,), or None if the model does not have this output; then no picture is unfamiliar.
    """
    top_probs, wrong = answers.top_probs, np.flatnonzero(~answers.correct)
    drawn = np.random.default_rng(seed).permutation(len(top_probs))[:_SHOWN]
    chosen = {
        "mistakes": wrong[np.argsort(-top_probs[wrong], kind="stable")],
        "least_sure": np.argsort(top_probs, kind="stable"),
        "mislabelled": likely_mislabelled(answers, probs),
        "unfamiliar": np.argsort(-unfamiliarity, kind="stable") if unfamiliarity is not None else wrong[:0],
        "random": np.sort(drawn),
    }
    return {kind: numbers[:_SHOWN] for kind, numbers in chosen.items()}


def shown(chosen: Mapping[str, Array]) -> list[int]:
    """The row numbers of the pictures of all galleries, sorted, each once."""
    return sorted({int(number) for each in chosen.values() for number in each})


def likely_mislabelled(answers: Answers, probs: Array) -> Array:
    """The row numbers of pictures that confident learning suspects (Northcutt et al., 2021), the least probable labels first.

    Suspect: another class than the label is predicted, with at least the mean probability of that class over the pictures labelled so.
    """
    labels, predicted = answers.labels, answers.predicted
    present = np.unique(labels)
    usual = np.full(probs.shape[1], np.inf)
    usual[present] = [probs[labels == index, index].mean() for index in present]
    suspects = np.flatnonzero((predicted != labels) & (answers.top_probs >= usual[predicted]))
    return suspects[np.argsort(answers.true_probs[suspects], kind="stable")]


def write_galleries(
    folder: Path,
    chosen: Mapping[str, Array],
    rows: Mapping[int, Mapping[str, str]],
    count: int,
    paths: Mapping[int, Path | Slice],
    overlays: Mapping[int, Image.Image],
) -> None:
    """Write a PNG sheet per gallery, and `galleries.json` with the pictures as data URLs for the report.

    By row number of the chosen pictures: `rows` of predictions.csv, `paths`, and `overlays`, the pictures with their activation maps, if
    there are any. `count`: of all test pictures.
    """
    thumbnails = {number: thumbnail(paths[number]) for number in rows}
    for kind, title in TITLES.items():
        cells = [cell for number in chosen[kind] for cell in _cells(rows[number], thumbnails[int(number)], overlays.get(int(number)))]
        draw_sheet(folder / f"gallery_{kind}.png", cells, f"{title}: {len(chosen[kind])} of {count} test pictures")
    pictures = {
        row["image_id"]: {
            "picture": data_url(thumbnails[number], _QUALITY),
            "map": data_url(overlays[number], _QUALITY) if number in overlays else None,
        }
        for number, row in rows.items()
    }
    galleries = {kind: [_answer(rows[number]) for number in each] for kind, each in chosen.items()}
    write_json(folder / "galleries.json", {"pictures": pictures, "galleries": galleries})


def _answer(row: Mapping[str, str]) -> dict[str, Any]:
    """A picture's label and predicted class with their probabilities."""
    texts = {name: row[name] for name in ("image_id", "label", "predicted")}
    return {**texts, **{name: float(row[name]) for name in ("label_probability", "probability")}}


def _cells(row: Mapping[str, str], thumbnail: Image.Image, overlay: Image.Image | None) -> list[Cell]:
    """A picture, and its activation map if it has one."""
    answer = _answer(row)
    correct, words = answer["predicted"] == answer["label"], f"{answer['predicted']} {answer['probability']:.2f}"
    if not correct:
        words += f", label {answer['label']} {answer['label_probability']:.2f}"
    cells = [Cell(thumbnail, answer["image_id"], words, "answered" if correct else "wrong")]
    return cells if overlay is None else [*cells, Cell(overlay, "", "activation map", "answered")]


def sample_per_class(pictures: Iterable[Picture], seed: int) -> dict[str, list[Picture]]:
    """Random pictures of each class: eight, fewer if there are many classes, and none beyond the first 150 classes."""
    by_class: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture)
    labels = sorted(by_class)[:_MOST_CLASSES]
    count = max(2, min(_PER_CLASS, _IN_ALL // max(1, len(labels))))
    generator = np.random.default_rng(seed)
    return {label: [by_class[label][number] for number in generator.permutation(len(by_class[label]))[:count]] for label in labels}


def montage(pictures: Iterable[Picture], folder: Path, seed: int) -> Mapping[str, list[str]]:
    """The pictures of `sample_per_class` as data URLs, by class. `folder`: of their split."""
    sample = sample_per_class(pictures, seed)
    return {label: [thumbnail_url(each.source(folder)) for each in drawn] for label, drawn in sample.items()}
