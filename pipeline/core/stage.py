"""What every stage shares: its params, a lock on what it writes, an orderly end, its main line, and the digest of its code."""

import ast
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError
from pipeline.core.files import is_running, sha256_of_json
from pipeline.core.params import Section, read_section

_ROOT = Path(__file__).parent.parent.parent
_POLL_SECONDS = 0.2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SectionType = TypeVar("SectionType", bound=Section)


def main(section: str, section_class: type[SectionType], run: Callable[..., None]) -> None:
    """Run a stage: its params from params.yaml, its paths from the command line, inputs first.

    A section that ends in `.*` takes its last key from the first argument. A PipelineError or a full disk becomes one
    line on stderr and exit code 1. Where another process writes the last path, it waits.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait in a loop starve others: training is several times slower
    arguments = sys.argv[1:]
    if section.endswith(".*"):
        section = section.removesuffix("*") + arguments.pop(0)
    paths = [Path(argument) for argument in arguments]
    try:
        params = read_section(section, section_class)
        with _orderly_end(), _lock(paths[-1]):
            run(params, *paths)
    except PipelineError as error:
        fail(error)
    except Exception as error:
        if reason := _no_room(error):
            fail(PipelineError(f"{paths[-1]}: {reason}; make room and run `dvc repro` again, it carries on"))
        raise


def fail(error: PipelineError) -> NoReturn:
    """Print the one line and end with exit code 1."""
    print(error, file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let the first SIGTERM or SIGHUP raise SystemExit, so that what is open is closed; a second one kills at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold the lock on an out. While another process holds it, say so once and wait: a killed `dvc` leaves its stage running."""
    path = Path(".cache/locks") / f"{str(out).replace(os.sep, '_')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_suffix(".pid")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{out}: {_waiting_for(holder)}", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _waiting_for(holder: Path) -> str:
    """Who holds a lock, as the file beside it says: that may be missing, empty, or of a process that was killed."""
    pid = ""
    with suppress(FileNotFoundError):
        pid = holder.read_text()
    if not (pid.isdigit() and is_running(int(pid))):
        return "another process is writing it; waiting"
    return f"process {pid} is writing it; waiting (stop it with: kill {pid})"


def _no_room(error: BaseException | None) -> str | None:
    """What the system says of a write that found no room, here or behind another fault; None of any other fault."""
    while error is not None:
        for number in _NO_ROOM:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        if isinstance(error, OSError) and "requested and" in str(error):  # all that NumPy says of a short write
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def import_closure(module: str) -> list[str]:
    """The files of this project that a module imports, directly or indirectly, itself included: sorted paths from the root.

    Imports inside functions count. Raises ValueError if there is no such module.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _ROOT / Path(*name.split(".")).with_suffix(".py")
        if name not in found and path.is_file():
            found[name] = path
            waiting += _imports(path)
    if module not in found:
        raise ValueError(f"{module}: is not a module of this project")
    return sorted(path.relative_to(_ROOT).as_posix() for path in found.values())


def code_digest(module: str) -> str:
    """One sha256 over the code of `import_closure(module)`. Comments, docstrings and formatting do not change it."""
    return sha256_of_json({path: _code_of(_ROOT / path) for path in import_closure(module)})


def _code_of(path: Path) -> str:
    """A module's code in Python's own spelling, without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "pipeline"]
