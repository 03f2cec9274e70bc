"""What every stage shares: its section of params.yaml, a lock on what it writes, and its main line."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError
from pipeline.params import Section, read_section

SectionType = TypeVar("SectionType", bound=Section)


def main(section: str, section_class: type[SectionType], run: Callable[..., None]) -> None:
    """Run a stage: its params from params.yaml, its paths from the command line, inputs first.

    A section that ends in `.*` takes its last key from the first argument. A PipelineError becomes one line on
    stderr and exit code 1.
    """
    arguments = sys.argv[1:]
    if section.endswith(".*"):
        section = section.removesuffix("*") + arguments.pop(0)
    try:
        params = read_section(section, section_class)
        with _lock(section):
            run(params, *map(Path, arguments))
    except PipelineError as error:
        fail(error)


def fail(error: PipelineError) -> NoReturn:
    """Print the one line and end with exit code 1."""
    print(error, file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def _lock(section: str) -> Iterator[None]:
    path = Path(".cache/locks") / f"{section}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PipelineError(f"{section}: another process is running this stage; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()
