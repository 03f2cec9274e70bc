"""The files that a data set is published as, opened: archives and packed files with suspicion, and what may be wrong in them."""

import gzip
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.archive import is_archive, open_archive
from pipeline.data.fetch import Pin
from pipeline.data.limits import Limits
from pipeline.data.members import BLOCK, Budget, Members, damage_named, is_junk, name_fault, shown
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class PublishedFile:
    """A file of a data set: its address, and the checksum that is published for it (None: there is none)."""

    url: str
    md5: str | None = None  # no other is published; against forgers stands the content's sha256, which params.yaml pins

    @property
    def name(self) -> str:
        """What its address ends with."""
        return self.url.rpartition("/")[2]

    @property
    def pin(self) -> Pin | None:
        """What it must be to be taken."""
        fault = "its MD5 is {found}, the published one is {digits}"
        cure = "run again later, or name a mirror in params.yaml: download.url_mirrors"
        return Pin(self.md5, fault, cure, "md5") if self.md5 else None


class Published:
    """All files of a data set: those of archives by their paths in them, a packed file without its `.gz`.

    `budget` counts the pictures that a reader makes of them.
    """

    def __init__(self, title: str, members: Members, limits: Limits) -> None:
        self.members, self.budget = members, Budget(title, limits)

    def member(self, name: str) -> Callable[[], bytes]:
        """How to read a file. Raises PipelineError where there is none of that name."""
        if name not in self.members:
            raise self.fault(name, "is missing")
        return self.members[name]

    def lines(self, name: str) -> list[str]:
        """The lines of a text file, without empty ones. Raises PipelineError."""
        try:
            lines = self.member(name)().decode().splitlines()
        except UnicodeDecodeError:
            raise self.fault(name, "is no text in UTF-8") from None
        return [line.strip() for line in lines if line.strip()]

    def class_names(self, name: str) -> list[str]:
        """The lines of a text file, each fit to name a folder, no two alike. Raises PipelineError."""
        names = self.lines(name)
        for line in names:
            if "/" in line or name_fault(line) or is_junk(line) or not line.isprintable():
                raise self.fault(name, f"names the class {shown(line)}, which cannot be a folder")
        if len({line.casefold() for line in names}) < len(names):
            raise self.fault(name, "names a class twice")
        return names

    def fault(self, name: str, fault: str) -> PipelineError:
        """What to say of a file that is not in the format that its publisher describes."""
        return PipelineError(f"{self.budget.title}: {shown(name)} {fault}; name a folder or an archive of the pictures instead")


Reader = Callable[[Published], Members]  # finds a data set's pictures, as `<split>/<class>/<file>`


def all_members(published: Published) -> Members:
    """The files as they are: an archive of folders of pictures."""
    return published.members


@contextmanager
def open_published(title: str, paths: Mapping[str, Path], limits: Limits) -> Iterator[Published]:
    """Open the files of a data set, by the names that they are published under. Raises PipelineError."""
    members: Members = {}
    with ExitStack() as stack:
        for name, path in paths.items():
            if is_archive(name):
                members |= stack.enter_context(open_archive(path, f"{title}: {name}", limits))
            else:
                members[name.removesuffix(".gz")] = partial(_read, name, path, Budget(f"{title}: {name}", limits, path.stat().st_size))
        yield Published(title, members, limits)


def _read(name: str, path: Path, budget: Budget) -> bytes:
    with damage_named(budget.title), gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
        return budget.read(name, iter(partial(file.read, BLOCK), b""))
