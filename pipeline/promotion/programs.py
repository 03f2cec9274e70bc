"""Other programs, each with a time limit and without a terminal that they could ask."""

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.promotion.journal import Entry

_HOOK_SECONDS = 600.0


def start(words: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
    """Start a program in a session of its own, so that it has no terminal. Options are those of subprocess.Popen. Raises OSError."""
    return subprocess.Popen(words, text=True, start_new_session=True, **options)


def communicate(process: "subprocess.Popen[str]", seconds: float, text: str | None = None) -> tuple[str, str]:
    """Send a text to a program that `start` started, and return its stdout and stderr when it ends.

    Raises TimeoutError if it takes longer: then it is killed, with all that it started.
    """
    try:
        return process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            pipe.close()
        raise TimeoutError from None


def call_hook(command: str, entry: Entry, seconds: float = _HOOK_SECONDS) -> str | None:
    """Run a command, without a shell, with the entry as JSON on stdin. Its output goes to stderr. Returns what went wrong, or None."""
    try:
        process = start(shlex.split(command), stdin=subprocess.PIPE, stdout=2, encoding="utf-8")
    except (OSError, ValueError, IndexError) as error:
        return f"{command}: cannot be run ({error})"
    try:
        communicate(process, seconds, json.dumps(asdict(entry), ensure_ascii=False))
    except TimeoutError:
        return f"{command}: did not end within {seconds:g} seconds, and was killed"
    return f"{command}: exit code {process.returncode}" if process.returncode else None
