"""New pictures: a folder of them, or the log of a server's predictions, as a sample that is compared with the reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.drift.reference import Reference, Sample, Seen, look_at, measure
from pipeline.evaluation.intervals import Array
from pipeline.pictures.images import read_ahead
from pipeline.pictures.splits import read_groups
from pipeline.serving.log import LOG_FILES, read_log
from pipeline.serving.predictions import BrokenFile, PictureFile, find_pictures, read_file
from pipeline.serving.predictor import Predictor

NO_GROUPS = "none"
_BATCH = 32


@dataclass(frozen=True)
class Incoming:
    """The new pictures.

    `paths`: below the folder, None of a picture that the log did not keep; `faults`: a line per broken picture; `notes`: what is left out.
    """

    sample: Sample
    paths: Sequence[str | None]
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()


def is_log(folder: Path) -> bool:
    """Whether a folder is a log of predictions."""
    return any(folder.glob(LOG_FILES))


def read_incoming(name: str, here: Path, group: str | None, reference: Reference, predictor: Predictor, threads: int) -> Incoming:
    """Read a folder of pictures or a log, whose name is relative to `here`. Raises PipelineError if there is no picture to compare.

    `group`: a regular expression with one pair of parentheses, searched in the path: what they enclose is the group. None: a picture of
    a folder is a group, and so are the pictures of one request of a log. NO_GROUPS: each picture is a group.
    """
    folder = here / name
    if not folder.is_dir():
        raise PipelineError(f"{name}: is not a folder; name a folder of pictures, or of a log of predictions")
    return _read_log(folder, group, reference) if is_log(folder) else _read_folder(name, here, group, predictor, threads)


def _read_folder(name: str, here: Path, group: str | None, predictor: Predictor, threads: int) -> Incoming:
    start, paths, faults = f"{name.rstrip('/')}/", list[str](), list[str]()

    def read(file: PictureFile) -> tuple[str, Seen | BrokenFile]:
        return file.path.removeprefix(start), read_file(file, here, lambda path: look_at(path, predictor))

    def readable() -> Iterator[list[Seen]]:
        files = list(find_pictures([name], here))
        for batch in read_ahead(files, read, _BATCH, threads, "drift"):
            faults.extend(f"{item.path}: {item.fault}" for _, item in batch if isinstance(item, BrokenFile))
            kept = [(path, item) for path, item in batch if not isinstance(item, BrokenFile)]
            paths.extend(path for path, _ in kept)
            if kept:
                yield [item for _, item in kept]

    sample = measure(predictor, readable())
    if sample is None:
        fault = faults[0] if len(faults) == 1 else f"{name}: none of its {len(faults)} pictures can be read"
        raise PipelineError(f"{fault}; name another folder")
    return Incoming(replace(sample, groups=_numbers(paths, group)), paths, faults)


def _read_log(folder: Path, group: str | None, reference: Reference) -> Incoming:
    every = list(read_log(folder))
    records = [record for record in every if record.model_sha256 == reference.model_sha256]
    if not records:
        raise PipelineError(f"{folder}: has no prediction of the model {reference.model_sha256[:12]}; name that model, or another log")
    others = len(every) - len(records)
    notes = [f"{others} of {len(every)} predictions are of other models, and are left out"] * (others > 0)
    # In a log, what one request brings is often one scene, several times.
    names = [record.request_id if group is None else record.picture or record.request_id for record in records]
    groups = np.arange(len(records)) if group == NO_GROUPS else _numbers(names, group)
    has_all = all(record.unfamiliarity is not None for record in records)
    facts = {name: np.array([getattr(record, name) for record in records]) for name in ("brightness", "sharpness", "width", "height")}
    sample = Sample(
        features=np.stack([record.features for record in records]),
        probs=np.stack([record.probs for record in records]),
        groups=groups,
        unfamiliarity=np.array([record.unfamiliarity for record in records], np.float32) if has_all else None,
        **facts,
    )
    return Incoming(sample, [record.picture for record in records], (), notes)


def _numbers(names: Sequence[str], group: str | None) -> Array:
    """The number of each picture's group. Equal names are one group."""
    of = {} if group in (None, NO_GROUPS) else read_groups(set(names), group)
    return np.asarray(np.unique([f"g{of[name]}" if name in of else f"n{name}" for name in names], return_inverse=True)[1])
