"""Draw the README's pictures of the report again: `python docs/report_pictures.py`, after `dvc repro`. Needs playwright and Chromium."""

import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
PAGE = DOCS.parent / "report" / "index.html"
# name: width, height and scheme of the window, at the top of the page
PICTURES = {
    "report": (1060, 1000, "light"),
    "report-dark": (1060, 1000, "dark"),
    "report-phone": (390, 844, "light"),
}


def draw(browser: Browser, name: str) -> None:
    """Write one picture, as small as PNG makes it."""
    width, height, scheme = PICTURES[name]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(PAGE.as_uri())
    path = DOCS / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)


def main() -> None:
    """Draw all of them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in PICTURES:
            draw(browser, name)


if __name__ == "__main__":
    main()
