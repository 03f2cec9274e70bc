"""Predictions by Ray Data: the machines of a cluster predict for chunks of pictures, and the answers come in the order of the files."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.core.cluster import connected
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file
from pipeline.serving.predictions import BrokenFile, PictureFile, Prediction, predict_all
from pipeline.serving.predictor import Predictor, open_model

_COLUMNS = ("path", "predicted", "unfamiliarity", "refused", "fault", "probs")
_CHUNK_BATCHES = 32  # a chunk is what a machine is handed at once, and what is computed again if the machine is lost


class ChunkPredictor:
    """A process of the cluster that opens the model once and predicts for one chunk of pictures after the other."""

    def __init__(self, folder: Path, sha256: str, here: Path, abstain_below: float, batch_size: int, threads: int, refuse: bool) -> None:
        """Open the model of a folder. Raises PipelineError if its `model.onnx` does not have that sha256 on this machine."""
        path = folder / "model.onnx"
        if not path.is_file() or sha256_of_file(path) != sha256:
            found = "another file" if path.is_file() else "missing"
            raise PipelineError(f"{path}: is {found} on {platform.node()}; all machines need the same files at the same paths")
        self.model = open_model(folder, threads)
        self.settings = here, abstain_below, batch_size, threads, None, refuse

    def __call__(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """The columns `_COLUMNS` of a chunk with the columns path and fault. `probs`: float64 (classes).

        A picture that cannot be read is a row with a fault. Paths are bytes, since a file name need not be text.
        """
        files = [PictureFile(os.fsdecode(path), fault) for path, fault in zip(chunk["path"], chunk["fault"], strict=True)]
        batches = predict_all(self.model, files, *self.settings)
        items = [item for batch in batches for item in batch]
        blank = np.zeros(len(self.model.class_names))
        return {
            "path": chunk["path"],
            "predicted": [None if isinstance(item, BrokenFile) else item.predicted for item in items],
            "unfamiliarity": [None if isinstance(item, BrokenFile) else item.unfamiliarity for item in items],
            "refused": [item.outcome == "refused" for item in items],
            "fault": [item.fault if isinstance(item, BrokenFile) else "" for item in items],
            "probs": np.stack([blank if isinstance(item, BrokenFile) else np.array([*item.probs.values()]) for item in items]),
        }


def predict_on_ray(
    folder: Path,
    model: Predictor,
    files: Iterable[PictureFile],
    here: Path,
    abstain_below: float,
    batch_size: int,
    threads: int,
    title: str | None,
    refuse_unfamiliar: bool = False,
) -> Iterator[list[Prediction | BrokenFile]]:
    """Predictions by the model of a folder, as `predict_all` yields them, computed on a Ray cluster in chunks of some batches.

    All machines need the folder and the pictures at the same paths. Raises PipelineError as `connected` does.
    """
    sha256 = sha256_of_file(folder / "model.onnx")
    settings = (folder.resolve(), sha256, here, abstain_below, batch_size, threads, refuse_unfamiliar)
    with connected(threads), tqdm(desc=title, unit="picture", disable=None if title else True) as bar:
        for columns in _map_chunks(_chunks(files, _CHUNK_BATCHES * batch_size), settings, threads):
            names = model.class_names
            yield [_item(dict(zip(_COLUMNS, row, strict=True)), names) for row in zip(*columns, strict=True)]
            bar.update(len(columns[0]))


def _item(row: Mapping[str, Any], class_names: list[str]) -> Prediction | BrokenFile:
    path, probs = os.fsdecode(row["path"]), dict(zip(class_names, row["probs"], strict=True))
    if row["fault"]:
        return BrokenFile(path, row["fault"])
    return Prediction(path, row["predicted"], max(row["probs"]), probs, row["unfamiliarity"], row["refused"])


def _chunks(files: Iterable[PictureFile], size: int) -> Iterator[dict[str, list[Any]]]:
    """Columns of at most that many files each."""
    rest = iter(files)
    while chunk := list(islice(rest, size)):
        yield {"path": [os.fsencode(file.path) for file in chunk], "fault": [file.fault for file in chunk]}


def _map_chunks(chunks: Iterable[dict[str, list[Any]]], settings: tuple[Any, ...], threads: int) -> Iterator[list[list[Any]]]:
    """The columns `_COLUMNS` of each chunk, in the order of the chunks."""
    import pyarrow as pa
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = context.print_on_execution_start = False
    blocks = [ray.put(pa.table(chunk)) for chunk in chunks]  # in the memory of the cluster, which spills to its disks
    if not blocks:
        return
    answers = ray.data.from_arrow_refs(blocks).map_batches(
        ChunkPredictor,
        fn_constructor_args=settings,
        batch_size=None,  # a chunk is a batch
        compute=ray.data.ActorPoolStrategy(min_size=1),  # it grows to all machines
        num_cpus=threads,
    )
    for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield [batch[name].to_pylist() for name in _COLUMNS]
