"""Archives: read with suspicion, packed into one plain zip that is the same for the same content."""

import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.data.limits import Limits
from pipeline.data.members import BLOCK, Budget, Members, choose_members, damage_named, is_junk, name_fault, shown
from pipeline.data.tar_entries import tar_entries, unpack
from pipeline.data.zip_entries import zip_entries
from pipeline.errors import PipelineError
from pipeline.files import sha256_of

__all__ = ["Members", "digest_of", "folder_members", "is_archive", "open_archive", "pack"]

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def is_archive(name: str) -> bool:
    """Whether a file name ends like an archive that `open_archive` reads."""
    return name.lower().endswith(_SUFFIXES)


@contextmanager
def open_archive(path: Path, title: str, limits: Limits) -> Iterator[Members]:
    """The regular files of a zip or tar by name, without what systems leave behind (`.DS_Store` and the like).

    `title` names the archive in messages. Raises PipelineError on anything unsafe or damaged here or while a member
    is read, and where more comes out than the limits allow.
    """
    with path.open("rb") as file, tempfile.TemporaryFile() as plain:
        with damage_named(title):
            budget = Budget(title, limits, path.stat().st_size)
            if file.read(4) in _ZIP_STARTS:
                entries = zip_entries(file, budget)
            else:
                tar = unpack(file, plain, budget)
                budget = Budget(title, limits, tar.seek(0, 2))  # what was unpacked is not counted again
                entries = tar_entries(tar, budget)
            members = choose_members(entries, budget)
        yield members


def folder_members(folder: Path, limits: Limits) -> Members:
    """The regular files below a folder by their path in it, junk left out.

    Raises PipelineError on links, special files, unsafe names, and where there is more than the limits allow.
    """
    members: Members = {}
    budget, waiting = Budget(str(folder), limits), [folder]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            name = path.relative_to(folder).as_posix()
            if is_junk(name):
                continue
            budget.add_file()
            status = path.lstat()
            if fault := _fault(path, name, status.st_mode):
                raise PipelineError(f"{folder}: {shown(name)} {fault}")
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            else:
                budget.reach(name, status.st_size)
                members[name] = partial(_read, name, path, budget)
    return dict(sorted(members.items()))


def pack(members: Members, target: Path) -> str:
    """Write members as one zip (stored, sorted, fixed dates: same content, same bytes) and return `digest_of` them."""

    def write(name: str) -> bytes:
        content = members[name]()
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr = 0o644 << 16
        archive.writestr(info, content)
        return content

    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        return digest_of({name: partial(write, name) for name in members})


def digest_of(members: Members) -> str:
    """The digest of a set of files: sha256 over the lines «sha256  path» in the order of the paths."""
    lines = (f"{sha256_of(members[name]())}  {name}\n" for name in tqdm(sorted(members), "pack", disable=None, leave=False))
    return sha256_of("".join(lines).encode())


def _fault(path: Path, name: str, mode: int) -> str | None:
    """Why a file or folder on disk is not taken, and what to do."""
    if stat.S_ISLNK(mode):
        return "is a link; put the file itself there"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "is a pipe, a socket or a device; leave it out"
    if fault := name_fault(name):
        return f"{fault}; rename it"
    if not os.access(path, os.R_OK):
        return "may not be read; change its permissions or leave it out"
    return None


def _read(name: str, path: Path, budget: Budget) -> bytes:
    with path.open("rb") as file:
        return budget.read(name, iter(partial(file.read, BLOCK), b""))
