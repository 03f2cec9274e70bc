"""Chromium, if this machine has it, and pages of servers that have just been started."""

import os
import shutil
import time

import requests

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root Chromium has no sandbox


def status_of(url: str, patience_seconds: float = 120) -> int | None:
    """The status of a page once its server answers; None if it never does."""
    give_up = time.monotonic() + patience_seconds
    while time.monotonic() < give_up:
        try:
            return requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.5)
    return None
