"""Galleries of pictures: which ones are worth a look, activation maps over them, contact sheets."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.core.files import atomic_file, write_json
from pipeline.pictures.images import decode, thumbnail_url
from pipeline.pictures.manifest import Picture

if TYPE_CHECKING:
    from pipeline.networks.classifier import Classifier


def font(letters: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib carries, in pixels: it has the letters of most alphabets, and is the same on every machine."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", letters)


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont, keep_end: bool = False) -> str:
    """The text, or as much of its beginning or end as fits into so many pixels."""
    return next(each for each in _shorter(text, width, keep_end) if font.getlength(each) <= width)


def _shorter(text: str, width: int, keep_end: bool) -> Iterator[str]:
    yield text
    text = text[-width:] if keep_end else text[:width]  # more would not fit
    for length in range(len(text) - 1, 0, -1):
        yield f"…{text[-length:]}" if keep_end else f"{text[:length]}…"
    yield ""


_COLUMNS, _FEWEST_COLUMNS = 6, 3  # the title needs some width
SIDE, _GAP, _TEXT = 176, 12, 40  # pixels: of a picture, between two, below one
_TITLE = 44
_LETTERS = 14
_TINY = SIDE // 2  # below that a picture is shown pixel by pixel
_COLOURS = {"answered": "#222222", "abstained": "#b35c00", "wrong": "#b00020", "broken": "#b00020"}


@dataclass(frozen=True)
class Cell:
    """A picture on the sheet (None: it does not decode), its name, and in a few words what is said of it; the outcome colours them."""

    picture: Image.Image | None
    name: str
    words: str
    outcome: Literal["answered", "abstained", "wrong", "broken"]


def draw_sheet(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Write the sheet as PNG, whole or not at all. What does not decode is a crossed square; all texts are of printable letters."""
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
        sheet.save(partial, "PNG")


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


def thumbnail(path: Path) -> Image.Image:
    """A picture as large as the sheet shows it, tiny ones pixel by pixel. Raises BrokenPicture."""
    image = decode(path, at_least=SIDE)
    tiny = max(image.size) < _TINY
    return ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)


Array = np.ndarray[Any, np.dtype[Any]]
_OPACITY = 0.55


def class_activation(feature_map: Array, weight: Array, index: int) -> Array:
    """How much each place speaks for a class (CAM: Zhou et al., 2016): float (h, w), 0 to 1, 0 where it speaks against it.

    `feature_map`: float (C, h, w); `weight`: float (classes, C), the head's; `index`: of the class. Its row counts as far as
    it differs from the others' mean: what all rows share moves no probability.
    """
    return scaled(np.tensordot(weight[index] - weight.mean(axis=0), feature_map, axes=1))


def scaled(heat: Array) -> Array:
    """A map with its negative part cut off, its highest place 1."""
    positive = np.maximum(heat, 0)
    return np.asarray(positive / max(float(positive.max()), 1e-12))


def overlay(picture: Image.Image, heat: Array) -> Image.Image:
    """A picture (RGB, of any size) in grey, with the map (0 to 1) laid over it in colours from dark to yellow."""
    from matplotlib import colormaps

    fine = Image.fromarray((255 * heat).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    colours = colormaps["inferno"](np.asarray(fine))
    glow = Image.fromarray((255 * colours[..., :3]).astype(np.uint8))
    return Image.blend(picture.convert("L").convert("RGB"), glow, _OPACITY)


def grad_cam(classifier: "Classifier", feature_map: Mapping[str, Any], pixels: Array, index: int) -> Array:
    """How much each place speaks for a class (Selvaraju et al., 2017): float (h, w), 0 to 1.

    `pixels`: uint8 (S, S, 3); `feature_map`: the layer of the backbone and the axis of its channels; `index`: of the class,
    whose logit counts as far as it differs from the mean of all. Where the head is linear on the pooled map, this is CAM.
    """
    import torch

    from pipeline.networks.classifier import channels_first, record_output

    with record_output(classifier.backbone.network.get_submodule(feature_map["layer"])) as seen, torch.enable_grad():
        logits = classifier.eval()(torch.tensor(pixels[None]))[0]
        maps = seen[-1]
        (gradient,) = torch.autograd.grad(logits[index] - logits.mean(), maps)
    maps, gradient = (channels_first(tensor, feature_map["channel_axis"])[0] for tensor in (maps, gradient))
    return scaled((gradient.mean(dim=(1, 2))[:, None, None] * maps).sum(dim=0).detach().numpy())


SHOWN = 12
TITLES = {
    "mistakes": "Surest mistakes",
    "least_sure": "Least sure answers",
    "mislabelled": "Likely mislabelled",
    "random": "A random draw of test pictures",
}


def choose(labels: Array, probs: Array, seed: int) -> dict[str, Array]:
    """The numbers of the pictures of each gallery, at most twelve, int (pictures,)."""
    predicted, sure = probs.argmax(axis=1), probs.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    drawn = np.random.default_rng(seed).permutation(len(labels))[:SHOWN]
    chosen = {
        "mistakes": wrong[np.argsort(-sure[wrong], kind="stable")],
        "least_sure": np.argsort(sure, kind="stable"),
        "mislabelled": likely_mislabelled(labels, probs),
        "random": np.sort(drawn),
    }
    return {kind: numbers[:SHOWN] for kind, numbers in chosen.items()}


def likely_mislabelled(labels: Array, probs: Array) -> Array:
    """Pictures that confident learning (Northcutt et al., 2021) suspects, the least likely labels first.

    Another class is answered with at least the mean probability that the pictures labelled so get for it.
    """
    predicted, rows = probs.argmax(axis=1), np.arange(len(labels))
    present = np.unique(labels)
    usual = np.full(probs.shape[1], np.inf)
    usual[present] = [probs[labels == index, index].mean() for index in present]
    suspects = np.flatnonzero((predicted != labels) & (probs[rows, predicted] >= usual[predicted]))
    return suspects[np.argsort(probs[suspects, labels[suspects]], kind="stable")]


def write_galleries(
    folder: Path,
    chosen: Mapping[str, Array],
    rows: Sequence[Mapping[str, str]],
    paths: Sequence[Path],
    overlays: Mapping[int, Image.Image],
) -> None:
    """Write a PNG sheet a gallery, and `galleries.json` with its pictures as data URLs for the report.

    `rows`: those of predictions.csv; `overlays`: for the number of a picture, its map laid over it, where there is one.
    """
    numbers = sorted({int(number) for each in chosen.values() for number in each})
    thumbnails = {number: thumbnail(paths[number]) for number in numbers}
    for kind, title in TITLES.items():
        cells = [cell for number in chosen[kind] for cell in _cells(rows[number], thumbnails[int(number)], overlays.get(int(number)))]
        draw_sheet(folder / f"gallery_{kind}.png", cells, f"{title}: {len(chosen[kind])} of {len(rows)} test pictures")
    pictures = {
        rows[number]["image_id"]: {
            "picture": data_url(thumbnails[number]),
            "map": data_url(overlays[number]) if number in overlays else None,
        }
        for number in numbers
    }
    galleries = {kind: [_told(rows[number]) for number in each] for kind, each in chosen.items()}
    write_json(folder / "galleries.json", {"pictures": pictures, "galleries": galleries})


def data_url(image: Image.Image) -> str:
    """A picture as the data URL of a JPEG."""
    with io.BytesIO() as file:
        image.convert("RGB").save(file, "JPEG", quality=82)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _told(row: Mapping[str, str]) -> dict[str, Any]:
    """What is said of a picture: its label, the answer, the probabilities of both."""
    label, predicted = row["label"], row["predicted"]
    return {
        "image_id": row["image_id"],
        "label": label,
        "predicted": predicted,
        "label_probability": float(row[f"prob_{label}"]),
        "probability": float(row[f"prob_{predicted}"]),
    }


def _cells(row: Mapping[str, str], thumbnail: Image.Image, overlay: Image.Image | None) -> list[Cell]:
    told = _told(row)
    words = f"{told['predicted']} ({told['probability']:.2f})"
    if told["predicted"] == told["label"]:
        cells = [Cell(thumbnail, row["image_id"], words, "answered")]
    else:
        cells = [Cell(thumbnail, row["image_id"], f"{words}, is {told['label']} ({told['label_probability']:.2f})", "wrong")]
    return cells if overlay is None else [*cells, Cell(overlay, "", "where it looked", "answered")]


_CLASSES = 150  # at most
_A_CLASS = 8  # pictures at most
_IN_ALL = 320  # some five kilobytes each


def draw(pictures: Iterable[Picture], seed: int) -> dict[str, list[Picture]]:
    """Some of the pictures of each class: eight, fewer the more classes there are; of many classes the first 150."""
    by_class: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture)
    shown = sorted(by_class)[:_CLASSES]
    each = max(2, min(_A_CLASS, _IN_ALL // max(1, len(shown))))
    generator = np.random.default_rng(seed)
    return {label: [by_class[label][number] for number in generator.permutation(len(by_class[label]))[:each]] for label in shown}


def montage(pictures: Iterable[Picture], folder: Path, seed: int) -> Mapping[str, list[str]]:
    """The drawn pictures of each class as data URLs. `folder`: that of their split."""
    return {label: [thumbnail_url((folder / each.path).read_bytes()) for each in drawn] for label, drawn in draw(pictures, seed).items()}
