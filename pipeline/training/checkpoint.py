"""The whole state of a training run after each epoch, in one file: a killed run resumes as if nothing had happened."""

import random
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pipeline.core.files import atomic_file, cache_dir
from pipeline.core.hardware import key_here
from pipeline.core.processes import leads

if TYPE_CHECKING:
    from pipeline.training.loop import Trainer

_KEPT_SECONDS = 7 * 24 * 3600.0
History = list[dict[str, float]]


def find_checkpoint(model: str, identity: str) -> "Checkpoint":
    """The checkpoint of a model whose inputs, params and code have the digest `identity`, whether the file exists or not."""
    return Checkpoint(cache_dir("checkpoints") / model / f"{key_here(identity)}.pt")


@dataclass(frozen=True)
class Checkpoint:
    """The file `<model>/<key>.pt`. Its key covers everything that decides the trained bytes."""

    path: Path

    def restore(self, trainer: "Trainer") -> History:
        """Bring the trainer to where the last complete epoch left it, and return the metrics so far; none if there is no checkpoint.

        Reports it on stderr. A damaged or foreign file is not used. Files of other runs are removed after a week.
        """
        self._remove_old()
        state = self._read()
        if state is None:
            return []
        trainer.model.load_state_dict(state["model"])
        trainer.restore(state["trainer"])
        _restore_random(state["random"], trainer.train)
        history: History = state["history"]
        print(f"{self.path.parent.name}: resumes after epoch {len(history) - 1} of {trainer.epochs}", file=sys.stderr)
        return history

    def write(self, trainer: "Trainer", history: History) -> None:
        """Replace the file by the trainer's present state. A kill leaves the old file or the new one. Only the leading process writes."""
        if not leads():
            return
        state = {
            "key": self.path.stem,
            "model": trainer.model.state_dict(),
            "trainer": trainer.state(),
            "random": _random_state(trainer.train),
            "history": history,
        }
        # torch.save to a path hides why a write failed; to a file it does not.
        with atomic_file(self.path) as partial, partial.open("wb") as file:
            torch.save(state, file)

    @property
    def activations(self) -> Path:
        """The file that keeps the activations of a frozen front on the training pictures (.npy)."""
        return self.path.with_suffix(".npy")

    def remove(self) -> None:
        """Delete the files, once the model is stored."""
        self.path.unlink(missing_ok=True)
        self.activations.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        with suppress(Exception):  # zipfile and torch raise many kinds of errors on a damaged file
            with zipfile.ZipFile(self.path) as archive:
                whole = archive.testzip() is None  # torch does not compare checksums
            state = torch.load(self.path, "cpu", weights_only=True)
            if whole and isinstance(state, dict) and state["key"] == self.path.stem:
                return state
        print(f"{self.path}: is damaged, or not a checkpoint of this run; training starts again", file=sys.stderr)
        return None

    def _remove_old(self) -> None:
        with suppress(FileNotFoundError):  # the folder, or a file that another process has just removed
            for file in self.path.parent.iterdir():
                if file.stem != self.path.stem and time.time() - file.stat().st_mtime > _KEPT_SECONDS:
                    file.unlink()


def _random_state(batches: object) -> dict[str, Any]:
    """The state of every random generator, that of a dataloader included."""
    name, words, *rest = cast(tuple[Any, ...], np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),
        "batches": [generator.get_state() for generator in _generators(batches)],
    }


def _restore_random(state: dict[str, Any], batches: object) -> None:
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
    for mps in state["mps"]:
        torch.mps.set_rng_state(mps)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    for generator, saved in zip(_generators(batches), state["batches"], strict=True):
        generator.set_state(saved)


def _generators(batches: object) -> list[torch.Generator]:
    """The generator that shuffles a dataloader's examples; a list of batches has none."""
    generator = getattr(getattr(getattr(batches, "batch_sampler", None), "sampler", None), "generator", None)
    return [] if generator is None else [generator]
