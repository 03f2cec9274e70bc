"""Take docs/decisions.png: `PYTHONPATH=. python docs/decision_pictures.py`. Its figures are invented. Needs playwright and Chromium."""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from report_pictures import take

from pipeline.report.decisions import write_decisions
from tests.decisions import twelve_weeks


def main() -> None:
    """Write the page of twelve weeks, and take its picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_decisions(Path(folder), twelve_weeks())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser, "decisions", Path(folder) / "index.html", (1060, 1000), "light")


if __name__ == "__main__":
    main()
