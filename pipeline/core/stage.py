"""What every stage shares: its params, a lock on its out, an orderly end, its main line, and the digest of its code."""

import ast
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError
from pipeline.core.files import is_running, keep_caches_here, sha256_of_json
from pipeline.core.processes import joined, launch, leads, must_launch, report_fault, wait_for_all
from pipeline.core.sections import SectionType, read_section

_ROOT = Path(__file__).parent.parent.parent
_POLL_SECONDS = 0.2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(section: str, section_class: type[SectionType], run: Callable[..., None]) -> None:
    """Run a stage with its params from params.yaml and its paths from the command line, inputs first.

    With `--model NAME` in front, `{model}` in a path is that name: dvc.yaml hands the name over as one quoted argument. If the section
    ends in `.*`, the name, or else the first argument, is its last key. A PipelineError or a full disk becomes one line on stderr and
    exit code 1. If another process is writing the last path, the stage waits. With the param `processes` above 1 the stage runs in so
    many processes.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait in a loop make training several times slower
    keep_caches_here()
    arguments, model = sys.argv[1:], "{model}"
    if arguments[0] == "--model":
        _, model, *arguments = arguments
    elif section.endswith(".*"):
        model, *arguments = arguments
    if section.endswith(".*"):
        section = section.removesuffix("*") + model
    paths = [Path(argument.replace("{model}", model)) for argument in arguments]
    try:
        params = read_section(section, section_class)
        count = getattr(params, "processes", 1)
        if must_launch(count):
            launch(count)
            return
        with _orderly_end(), joined(count), _lock(paths[-1]):
            run(params, *paths)
        return
    except PipelineError as error:
        line = str(error)
    except Exception as error:
        if not (reason := _no_space(error)):
            raise
        line = f"{paths[-1]}: {reason}; free some space and run `dvc repro` again; it continues from there"
    report_fault(line)
    raise SystemExit(1)


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Make the first SIGTERM or SIGHUP raise SystemExit, so that open files are closed. A second one kills at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup ignores SIGHUP: leave it so
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Lock an out for the block. If another process has the lock, report that once and wait: a killed `dvc` leaves its stage running.

    In a group of processes the leading one locks it, and the others wait for that.
    """
    if not leads():
        wait_for_all()
        yield
        return
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
        wait_for_all()
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _waiting_for(holder: Path) -> str:
    """Which process has a lock, by the file beside it. That file may be missing, empty, or left by a killed process."""
    pid = ""
    with suppress(FileNotFoundError):
        pid = holder.read_text()
    if not (pid.isdigit() and is_running(int(pid))):
        return "another process is writing it; waiting"
    return f"process {pid} is writing it; waiting (stop it with: kill {pid})"


def _no_space(error: BaseException | None) -> str | None:
    """The system's message if a write failed for lack of space, here or as the cause of another error; else None."""
    while error is not None:
        for number in _NO_SPACE:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        if isinstance(error, OSError) and "requested and" in str(error):  # NumPy reports a short write only so
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def import_closure(module: str) -> list[str]:
    """The files of this project that a module imports, directly or indirectly, and its own: sorted paths from the root.

    Imports inside functions count. Raises ValueError if there is no such module.
    """
    paths: dict[str, Path] = {}
    names = [module]
    while names:
        name = names.pop()
        path = _ROOT / Path(*name.split(".")).with_suffix(".py")
        if name not in paths and path.is_file():
            paths[name] = path
            names += _read_code(path.read_text(encoding="utf-8"))[0]
    if module not in paths:
        raise ValueError(f"{module}: is not a module of this project")
    return sorted(path.relative_to(_ROOT).as_posix() for path in paths.values())


def code_digest(module: str) -> str:
    """One sha256 over the code of `import_closure(module)`. Comments, docstrings and formatting do not change it."""
    return sha256_of_json({path: _read_code((_ROOT / path).read_text(encoding="utf-8"))[1] for path in import_closure(module)})


@cache
def _read_code(text: str) -> tuple[list[str], str]:
    """What a module imports from this project, and its code as Python prints its syntax tree, without comments and docstrings.

    Some of the imported names are not modules but functions or classes.
    """
    tree, names = ast.parse(text), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return [name for name in names if name.split(".")[0] == "pipeline"], ast.unparse(tree)
