"""Take the screenshot of the drift page: `PYTHONPATH=. python docs/drift_pictures.py`, after `dvc repro`. Needs playwright and Chromium.

The new pictures are digits of scikit-learn that are turned a little and have a grey background, as another scanner might give them.
The look is entered into .cache/drift/looks.json as any other, and not into MLflow.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

from pipeline.core.params import read_threads
from pipeline.drift.looking import Options, look

DOCS = Path(__file__).parent
WINDOW = (1060, 1000)  # pixels
DIGITS = range(100, 220)  # which of them are the new pictures
LEAST, DEGREES = 60, 10  # the grey of the background, and how far the digits are turned


def write_new_pictures(folder: Path) -> None:
    """Write the new pictures into an existing folder."""
    drawn = load_digits().images
    for number in DIGITS:
        pixels = np.rint(LEAST + drawn[number] * (255 - LEAST) / 16).astype(np.uint8)
        Image.fromarray(pixels).rotate(DEGREES, fillcolor=LEAST).save(folder / f"{number}.png")


def main() -> None:
    """Compare the new pictures with the test pictures of the champion, and write docs/drift.png."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        (folder / "new-pictures").mkdir()
        write_new_pictures(folder / "new-pictures")
        look(Options("new-pictures", folder, None, None, 0.05, 30, 50, folder / "drift", read_threads()))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.goto((folder / "drift/index.html").as_uri())
        page.screenshot(path=DOCS / "drift.png")
        browser.close()
    with Image.open(DOCS / "drift.png") as image:
        image.convert("RGB").save(DOCS / "drift.png", optimize=True)


if __name__ == "__main__":
    main()
