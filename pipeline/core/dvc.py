"""DVC as this project uses it: run it, repair its files after a kill, and keep the file lists of dvc.yaml."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file, project_root, read_json, sha256_of
from pipeline.core.params import parse_yaml
from pipeline.core.stage import import_closure

STAGES_WITH_FILES = ("embed", "train")  # they may take hours, so an unrelated edit must not rerun them
_WRITE_SECONDS = 0.5  # much longer than DVC takes to write either of its files


def rewrite_deps(path: Path = Path("dvc.yaml")) -> bool:
    """Make `embed` and `train` list exactly the files that they import. Returns whether dvc.yaml changed.

    The other stages take seconds and list whole folders.
    """
    text = path.read_text(encoding="utf-8")
    new = text
    for stage in STAGES_WITH_FILES:
        block = re.compile(rf"(?ms)(^  {stage}:\n.*?)((?:^      - pipeline/[^\n]*\.py\n)+)")
        files = "".join(f"      - {file}\n" for file in import_closure(f"pipeline.stages.{stage}"))
        new = block.sub(lambda match, files=files: match[1] + files, new, count=1)  # type: ignore[misc]
    if new == text:
        return False
    with atomic_file(path) as partial:
        partial.write_text(new, encoding="utf-8")
    return True


def run_dvc(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run DVC with this Python first on the path, so that its stages use it, too. Options are those of subprocess.run.

    A service may have no PATH, and a shell that refuses to run commands.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, "SHELL": "/bin/sh"}
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, text=True, check=False, **options)


def locked_params(stage: str, lock: Path = Path("dvc.lock")) -> dict[str, Any]:
    """The params of params.yaml with which a stage last ran, by dvc.lock; none if it never did. Raises PipelineError if it is torn."""
    try:
        locked = parse_yaml(lock.read_text(encoding="utf-8"))
        return dict(locked["stages"][stage]["params"]["params.yaml"])
    except (FileNotFoundError, KeyError):
        return {}
    except (ValueError, TypeError):
        raise PipelineError(f"{lock}: is not what DVC writes; run `pipeline mend`") from None


def cached_files(stage: str, out: Path, lock: Path = Path("dvc.lock")) -> dict[str, Path]:
    """The files that a folder of a stage's outs had after the last run, by dvc.lock: `name: its file in the project's DVC cache`.

    Raises OSError, ValueError, TypeError or KeyError if the lock or the cache has no such folder.
    """
    outs = parse_yaml(lock.read_text(encoding="utf-8"))["stages"][stage]["outs"]
    listing = read_json(_cached(next((str(entry["md5"]) for entry in outs if entry["path"] == str(out)), "")))
    paths = {entry["relpath"]: _cached(entry["md5"]) for entry in listing}
    return {name: path for name, path in paths.items() if path.is_file()}


def _cached(md5: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
        raise ValueError(f"{md5!r} is not the name of a file in DVC's cache")
    return project_root() / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def mend() -> list[str]:
    """Repair what a killed DVC left half-written: delete its list of running commands, restore dvc.lock from git. Keep a copy of both.

    A file that parses is not judged. Outside of a git repository DVC is told to work without one, until there is one. Returns one line
    per repair. Raises PipelineError if dvc.lock contains a merge conflict, which only a person can resolve.
    """
    lines = _follow_git()
    running, lock = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
    if _is_torn(running, json.loads):
        copy = _keep_copy(running)
        running.unlink()
        lines.append(f"{running}: was half-written; removed, a copy is {copy}")
    if not _is_torn(lock, _expect_mapping):
        return lines
    if re.search(r"^<<<<<<< ", lock.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        raise PipelineError(f"{lock}: contains a merge conflict; resolve it, or take one side whole, then run `dvc repro`")
    copy = _keep_copy(lock)
    if (content := committed(lock)) is not None:
        with atomic_file(lock) as partial:
            partial.write_text(content, encoding="utf-8")
        lines.append(f"{lock}: was half-written; restored from git, a copy is {copy}. DVC's cache has the results of later runs")
    else:
        lock.unlink()
        lines.append(f"{lock}: was half-written and is not in git; removed, a copy is {copy}. All stages will run again")
    return lines


def _follow_git() -> list[str]:
    """Let DVC work without git in a source archive (`core.no_scm`), and with it again once there is a repository."""
    if not Path(".dvc/config").is_file():
        return []
    here, note = Path.cwd(), Path(".dvc/tmp/no_scm")  # the note says that the setting is ours
    has_git = any((folder / ".git").exists() for folder in (here, *here.parents))
    if has_git == note.is_file():
        change = ("--unset", "core.no_scm") if has_git else ("core.no_scm", "true")
        if run_dvc("config", "--local", *change, stdout=subprocess.DEVNULL).returncode:
            raise PipelineError(f".dvc/config.local: cannot set core.no_scm; run `dvc config --local {' '.join(change)}`")
        if has_git:
            note.unlink()
            return [".dvc/config.local: there is a git repository now; DVC uses it"]
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        return [".dvc/config.local: there is no git repository; DVC works without one"]
    return []


def committed(path: Path) -> str | None:
    """The last committed content of a file, if that is whole."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, text=True, encoding="utf-8", check=False)
        if shown.returncode == 0:
            _expect_mapping(shown.stdout)
            return shown.stdout
    except (FileNotFoundError, ValueError):  # no git, or what was committed is torn
        pass
    return None


def _keep_copy(path: Path) -> Path:
    """Copy a file that will be replaced into `.cache/`, and return the copy."""
    content = path.read_bytes()
    copy = Path(".cache/mended") / f"{path.name}.{sha256_of(content)[:8]}"
    with atomic_file(copy) as partial:
        partial.write_bytes(content)
    return copy


def _is_torn(path: Path, parse: Callable[[str], object]) -> bool:
    """Whether a file cannot be parsed. A second look after a moment excludes a file that is just being written."""
    for wait in (_WRITE_SECONDS, 0):
        try:
            parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except ValueError:
            time.sleep(wait)
        else:
            return False
    return True


def _expect_mapping(text: str) -> None:
    """Raise ValueError if a text is not YAML, or not a set of keys."""
    if not isinstance(parse_yaml(text), dict):
        raise ValueError("is not a set of keys")  # noqa: TRY004 - like a text that does not parse
