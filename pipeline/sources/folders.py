"""Folders of pictures: their files, and a digest that reads only what changed since the last look."""

import json
import os
import re
import stat
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file, cache_dir, digest_of_sums, read_json, sha256_of
from pipeline.sources.members import BLOCK, Budget, Limits, is_junk, name_fault, shown

State = tuple[int, int, int, int]  # size, time of the last change in nanoseconds, inode, device
_GRANULARITY_NS = 2 * 10**9  # of that time on the coarsest file system, FAT


@dataclass(frozen=True)
class FolderFile:
    """A file of a folder; a call returns its content, counted on the budget.

    `state`: as it was when the folder was listed. `is_settled`: whether a later change gives another state. A change so soon after
    the last one that both have one time does not; git calls such a file racily clean.
    """

    name: str
    path: Path
    budget: Budget
    state: State
    is_settled: bool

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            return self.budget.read(self.name, iter(partial(file.read, BLOCK), b""))


def folder_members(folder: Path, limits: Limits) -> dict[str, FolderFile]:
    """The regular files below a folder, by their path in it, sorted, without hidden files and those that systems add.

    Raises PipelineError on links, special files and unsafe names, and beyond the limits.
    """
    members: dict[str, FolderFile] = {}
    budget, waiting = Budget(str(folder), limits), [folder]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
            if is_junk(name):
                continue
            if name in members:
                raise PipelineError(f"{folder}: contains {shown(name)} twice, in two Unicode forms; rename one")
            budget.add_file()
            status = path.lstat()
            if fault := _fault(path, name, status.st_mode):
                raise PipelineError(f"{folder}: {shown(name)} {fault}")
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            else:
                budget.reach(name, status.st_size)
                members[name] = FolderFile(name, path, budget, _state(status), status.st_mtime_ns < time.time_ns() - _GRANULARITY_NS)
    return dict(sorted(members.items()))


def file_member(path: Path, name: str, limits: Limits) -> FolderFile:
    """A file by itself, under another name."""
    return FolderFile(name, path, Budget(name, limits), _state(path.stat()), is_settled=False)


def folder_digest(folder: Path, members: Mapping[str, FolderFile], reads_all: bool = False) -> str:
    """The `digest_of` a folder's files, see `folder_sums`."""
    return digest_of_sums(folder_sums(folder, members, reads_all))


def folder_sums(folder: Path, members: Mapping[str, FolderFile], reads_all: bool = False) -> dict[str, str]:
    """`path: sha256` of a folder's files. `.cache/sums` keeps them by `state`, and only files in another state are read.

    `reads_all`: read them all the same. A change that leaves the state as it is is found only so.
    """
    note = cache_dir("sums") / f"{sha256_of(os.fsencode(folder.resolve()))}.json"
    kept = {} if reads_all else _read_sums(note)
    sums = {}
    for name, file in tqdm(members.items(), "read", disable=None, leave=False):
        state, sha256 = kept.get(name, ((), ""))
        sums[name] = sha256 if state == file.state else sha256_of(file())
    settled = {name: (file.state, sums[name]) for name, file in members.items() if file.is_settled}
    if settled != kept:
        with atomic_file(note) as partial_note:
            partial_note.write_text(json.dumps(settled), encoding="utf-8")
    return sums


def _read_sums(note: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """The states and sums in a file that `folder_digest` wrote; none if it is missing, or if anything else is in it."""
    try:
        kept = {name: (tuple(state), sha256) for name, (state, sha256) in read_json(note).items()}
        return kept if all(re.fullmatch("[0-9a-f]{64}", sha256) for _, sha256 in kept.values()) else {}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _state(status: os.stat_result) -> State:
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _fault(path: Path, name: str, mode: int) -> str | None:
    """Why a file or folder on disk is refused, and what to do."""
    if stat.S_ISLNK(mode):
        return "is a link; replace it by the file itself"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "is a pipe, a socket or a device; leave it out"
    if fault := name_fault(name):
        return f"{fault}; rename it"
    if not os.access(path, os.R_OK):
        return "is not readable; change its permissions or leave it out"
    return None
