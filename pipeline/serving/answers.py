"""Answers of a stored model for many pictures, calmly: a broken one is told, and the rest goes on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipeline.data.images import BrokenPicture
from pipeline.data.loading import Array, Item, read_ahead
from pipeline.data.picks import Pick, file_fault

Outcome = Literal["answered", "abstained", "broken"]


@dataclass(frozen=True)
class Answer:
    """What the model says of a picture: probabilities to six places, `probs` in the order of the classes.

    `probability` is that of the most probable class, `predicted` its name, or None where that is too improbable.
    """

    path: str
    predicted: str | None
    probability: float
    probs: dict[str, float]

    @property
    def outcome(self) -> Outcome:
        """What became of the picture."""
        return "abstained" if self.predicted is None else "answered"

    @property
    def words(self) -> str:
        """The answer for a person."""
        said = f"{max(self.probs, key=lambda name: self.probs[name])} ({self.probability:.2f})"
        return f"abstained: {said}" if self.predicted is None else said


@dataclass(frozen=True)
class Broken:
    """A path without an answer, and why."""

    path: str
    fault: str
    outcome: Outcome = "broken"

    @property
    def words(self) -> str:
        """The fault for a person."""
        return f"broken: {self.fault}"


class Answerer(Protocol):
    """What gives probabilities for pictures, in two steps, of which the first may run in several threads."""

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""

    def read(self, source: Path) -> Array:
        """A picture as it is prepared for the network. Raises BrokenPicture."""

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (pictures, classes), of prepared pictures in one array."""


def answer_all(
    model: Answerer, picks: Sequence[Pick], here: Path, abstain_below: float, batch_size: int, threads: int, title: str | None
) -> Iterator[list[Answer | Broken]]:
    """An answer for each pick, in batches, in their order. Relative paths start at `here`; without a title no progress is shown.

    Where the highest probability, as it is written, is below `abstain_below`, the model does not commit itself.
    """

    def read(pick: Pick) -> Array | Broken:
        return read_pick(pick, here, model.read)

    paths = iter(pick.path for pick in picks)
    for batch in read_ahead(picks, read, batch_size, threads, title):
        pixels = [found for found in batch if not isinstance(found, Broken)]
        probs = iter(model.predict_pixels(np.stack(pixels)) if pixels else ())
        yield [
            found if isinstance(found, Broken) else judge(path, next(probs), model.class_names, abstain_below)
            for found, path in zip(batch, paths, strict=False)
        ]


def read_pick(pick: Pick, here: Path, read: Callable[[Path], Item]) -> Item | Broken:
    """What `read` makes of a picture, or why it cannot be read. Relative paths start at `here`."""
    if fault := pick.fault or file_fault(here / pick.path):
        return Broken(pick.path, fault)
    try:
        return read(here / pick.path)
    except BrokenPicture as error:
        return Broken(pick.path, str(error))


def judge(path: str, probs: Array, class_names: Sequence[str], abstain_below: float) -> Answer:
    """What probabilities, float (classes,), say: the most probable class, the first of equals, if it is probable enough."""
    rounded = {name: round(float(prob), 6) for name, prob in zip(class_names, probs, strict=True)}
    best = class_names[int(probs.argmax())]
    return Answer(path, None if rounded[best] < abstain_below else best, rounded[best], rounded)


def plain(text: str) -> str:
    """A text in one line, without what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
