"""New pictures: a folder of them, or the log of a server's predictions, as a sample that is compared with the reference."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file
from pipeline.core.params import read_params
from pipeline.drift.reference import Reference, Sample, Seen, look_at, measure
from pipeline.evaluation.intervals import Array
from pipeline.pictures.images import read_ahead
from pipeline.pictures.splits import read_groups
from pipeline.serving.log import LOG_FILES, PICTURES, Record, read_log
from pipeline.serving.predictions import BrokenFile, PictureFile, find_pictures, read_file
from pipeline.serving.predictor import Predictor

NO_GROUPS = "none"
_BATCH = 32


@dataclass(frozen=True)
class Incoming:
    """The new pictures, equal ones once, as `split` keeps one of equal test pictures.

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

    `group`: a regular expression with one pair of parentheses, searched in the path: what they enclose is the group. None: that of
    `split.group`, if it is one, for a folder, and the request for a log. NO_GROUPS: each picture is a group.
    """
    folder = here / name
    if not folder.is_dir():
        raise PipelineError(f"{name}: is not a folder; name a folder of pictures, or of a log of predictions")
    incoming = _read_log(folder, group, reference) if is_log(folder) else _read_folder(name, here, group, predictor, threads)
    for whose, sample in ((name, incoming.sample), ("the test pictures", reference.sample)):
        is_number = np.isfinite(sample.features).all(axis=1) & np.isfinite(sample.probs).all(axis=1)
        if not is_number.all():
            count = np.count_nonzero(~is_number)
            raise PipelineError(f"{whose}: the model's answers to {count} pictures are not numbers, or too large; use another model")
    return incoming


def _read_folder(name: str, here: Path, group: str | None, predictor: Predictor, threads: int) -> Incoming:
    start, paths, faults, digests = f"{name.rstrip('/')}/", list[str](), list[str](), list[str]()

    def read(file: PictureFile) -> tuple[str, tuple[str, Seen] | BrokenFile]:
        return file.path.removeprefix(start), read_file(file, here, lambda path: (sha256_of_file(path), look_at(path, predictor)))

    def readable() -> Iterator[list[Seen]]:
        files = list(find_pictures([name], here))
        for batch in read_ahead(files, read, _BATCH, threads, "drift"):
            faults.extend(f"{item.path}: {item.fault}" for _, item in batch if isinstance(item, BrokenFile))
            kept = [(path, *item) for path, item in batch if not isinstance(item, BrokenFile)]
            paths.extend(path for path, _, _ in kept)
            digests.extend(digest for _, digest, _ in kept)
            if kept:
                yield [seen for _, _, seen in kept]

    sample = measure(predictor, readable())
    if sample is None:
        fault = faults[0] if len(faults) == 1 else f"{name}: none of its {len(faults)} pictures can be read"
        raise PipelineError(f"{fault}; name another folder")
    first = np.sort(np.unique(digests, return_index=True)[1])
    kept = [paths[row] for row in first]
    groups, notes = _group_by_path(kept, group)
    return Incoming(replace(sample.take(first), groups=groups), kept, faults, _copies_note(len(paths), len(first)) + notes)


def _read_log(folder: Path, group: str | None, reference: Reference) -> Incoming:
    every = list(read_log(folder))
    of_model = [record for record in every if record.model_sha256 == reference.model_sha256]
    if not of_model:
        raise PipelineError(f"{folder}: has no prediction of the model {reference.model_sha256[:12]}; name that model, or another log")
    if wrong := next((record for record in of_model if not _is_whole(record, reference)), None):
        raise PipelineError(f"{folder}: the prediction of {wrong.time} for {wrong.sha256!s:.12} is damaged; remove its line")
    others = len(every) - len(of_model)
    notes = [f"{others} of {len(every)} predictions are of other models, and are left out"] * (others > 0)
    first: dict[str, Record] = {}
    for record in of_model:
        if record.sha256 not in first or (record.picture and not first[record.sha256].picture):
            first[record.sha256] = record
    records = [*first.values()]
    notes += _copies_note(len(of_model), len(records))
    if group is None:  # what one request brings is often one scene, several times
        groups = _numbers([record.request_id for record in records])
    elif group == NO_GROUPS:
        groups = np.arange(len(records))
    else:
        groups, _ = _group_by_path([record.picture or record.request_id for record in records], group)
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


def _is_whole(record: Record, reference: Reference) -> bool:
    """Whether the model can have answered so."""
    shapes = record.features.shape, record.probs.shape
    numbers = [record.brightness, record.sharpness, record.width, record.height]
    numbers += [] if record.unfamiliarity is None else [record.unfamiliarity]
    if shapes != (reference.sample.features.shape[1:], reference.sample.probs.shape[1:]):
        return False
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or min(record.width, record.height) < 1:
        return False
    parts = PurePosixPath(str(record.picture)).parts
    return record.picture is None or (parts[0] == PICTURES and ".." not in parts)


def _copies_note(count: int, kept: int) -> list[str]:
    return [f"{count - kept} of {count} pictures are copies of others, and are left out"] * (kept < count)


def _group_by_path(paths: Sequence[str], group: str | None) -> tuple[Array, list[str]]:
    """The number of each picture's group, int (N,), and a note if `split.group` matches no path. Raises PipelineError for a typed one."""
    named = (read_params().get("split") or {}).get("group") if group is None else group
    of: dict[str, str] = {}
    notes = []
    if isinstance(named, str) and named != NO_GROUPS:  # a table of `split.group` has no new pictures
        try:
            of = read_groups(set(paths), named)
        except PipelineError as error:
            if group is not None:
                raise PipelineError(
                    str(error).replace("params.yaml: split.group", "--group").replace("set null", f"name {NO_GROUPS}")
                ) from None
            notes = ["split.group gives these pictures no groups, so each is one; --group names another expression"]
    return _numbers([f"g{of[path]}" if path in of else f"n{path}" for path in paths]), notes


def _numbers(names: Sequence[str]) -> Array:
    return np.asarray(np.unique(names, return_inverse=True)[1])
