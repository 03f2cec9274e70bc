"""The whole state of fine-tuning after each epoch, in one file: a run that was killed goes on as if nothing had happened."""

import platform
import random
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pipeline.files import atomic_file, cache_dir, sha256_of_json
from pipeline.training.recipe import Recipe

_KEPT_SECONDS = 7 * 24 * 3600.0
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")

History = list[dict[str, float]]


def find_checkpoint(model: str, identity: str) -> "Checkpoint":
    """The checkpoint of a model whose inputs, params and code have the sum `identity`, whether it is there or not.

    Its key covers what else the trained bytes depend on.
    """
    return Checkpoint(cache_dir("checkpoints") / model / f"{key_here(identity)}.pt")


def key_here(identity: str) -> str:
    """A sum of `identity` and of what else trained bytes depend on: the versions of packages, the processor, the GPUs."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    hardware = [platform.machine(), torch.backends.cpu.get_cpu_capability(), *gpus]
    return sha256_of_json([identity, [version(name) for name in _PACKAGES], hardware])


@dataclass(frozen=True)
class Checkpoint:
    """The file `<model>/<key>.pt`. Its key stands for all that decides the bytes of a run."""

    path: Path

    def restore(self, model: nn.Module, recipe: Recipe, batches: object) -> History:
        """Bring all back to where the last whole epoch left it, and return the rows so far: none where nothing is kept.

        Says so on stderr. A file that is damaged or foreign is not used. Files that lie beside for a week are removed.
        """
        self._remove_old()
        state = self._read()
        if state is None:
            return []
        model.load_state_dict(state["model"])
        recipe.restore(state["recipe"])
        _restore_random(state["random"], batches)
        history: History = state["history"]
        print(f"{self.path.parent.name}: goes on after epoch {len(history) - 1} of {recipe.epochs}", file=sys.stderr)
        return history

    def write(self, model: nn.Module, recipe: Recipe, batches: object, history: History) -> None:
        """Keep all that `restore` brings back, in place of what the file held; a kill leaves the old file or the new one."""
        state = {
            "key": self.path.stem,
            "model": model.state_dict(),
            "recipe": recipe.state(),
            "random": _random_state(batches),
            "history": history,
        }
        # Given a path, torch writes by itself, and does not say why it could not.
        with atomic_file(self.path) as partial, partial.open("wb") as file:
            torch.save(state, file)

    @property
    def activations(self) -> Path:
        """Where what a frozen front made of the training pictures lies meanwhile (.npy)."""
        return self.path.with_suffix(".npy")

    def remove(self) -> None:
        """Forget the run: its model is stored."""
        self.path.unlink(missing_ok=True)
        self.activations.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        with suppress(Exception):  # of a damaged file, zipfile and torch let many kinds out
            with zipfile.ZipFile(self.path) as archive:
                whole = archive.testzip() is None  # torch compares no sums
            state = torch.load(self.path, "cpu", weights_only=True)
            if whole and isinstance(state, dict) and state["key"] == self.path.stem:
                return state
        print(f"{self.path}: is damaged, or no checkpoint of this run; training starts over", file=sys.stderr)
        return None

    def _remove_old(self) -> None:
        with suppress(FileNotFoundError):  # the folder, or what another process has just removed
            for file in self.path.parent.iterdir():
                if file.stem != self.path.stem and time.time() - file.stat().st_mtime > _KEPT_SECONDS:
                    file.unlink()


def _random_state(batches: object) -> dict[str, Any]:
    """Where every generator of random numbers stands; `batches` may have its own."""
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
    for generator, stood in zip(_generators(batches), state["batches"], strict=True):
        generator.set_state(stood)


def _generators(batches: object) -> list[torch.Generator]:
    """The generator from which a loader draws its order and its workers' seeds; a list of batches has none."""
    generator = getattr(batches, "generator", None)
    return [] if generator is None else [generator]
