"""Chromium, where this machine has it."""

import os
import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root Chromium has no sandbox
