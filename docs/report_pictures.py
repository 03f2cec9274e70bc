"""Take the README's screenshots of the report: `python docs/report_pictures.py`, after `dvc repro`. Needs playwright and Chromium."""

import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
PAGE = DOCS.parent / "report" / "index.html"
# name: width and height of the window in pixels, and its colour scheme
PICTURES = {
    "report": (1060, 1000, "light"),
    "report-dark": (1060, 1000, "dark"),
    "report-phone": (390, 844, "light"),
}


def take(browser: Browser, name: str) -> None:
    """Write a screenshot of the top of the page as an optimised PNG."""
    width, height, scheme = PICTURES[name]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(PAGE.as_uri())
    path = DOCS / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)


def main() -> None:
    """Take all screenshots."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in PICTURES:
            take(browser, name)


if __name__ == "__main__":
    main()
