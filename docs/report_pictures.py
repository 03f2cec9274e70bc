"""Take the README's screenshots of the report: `python docs/report_pictures.py`, after `dvc repro`. Needs playwright and Chromium."""

import shutil
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
PAGE = DOCS.parent / "report" / "index.html"
# name: width and height of the window in pixels, and its colour scheme
PICTURES: dict[str, tuple[tuple[int, int], Literal["light", "dark"]]] = {
    "report": ((1060, 1000), "light"),
    "report-dark": ((1060, 1000), "dark"),
    "report-phone": ((390, 844), "light"),
}


def take(browser: Browser, name: str, html: Path, size: tuple[int, int], scheme: Literal["light", "dark"]) -> None:
    """Write a screenshot of the top of a page as an optimised PNG."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(html.as_uri())
    path = DOCS / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)


def main() -> None:
    """Take all screenshots."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (size, scheme) in PICTURES.items():
            take(browser, name, PAGE, size, scheme)


if __name__ == "__main__":
    main()
