"""Take the screenshot of the server's page: `PYTHONPATH=. python docs/serve_pictures.py [MODEL]`, after `dvc repro`. Needs Chromium.

The pictures are those of scikit-learn: digits, which the default model knows, and a photograph, which it does not.
"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, sync_playwright
from sklearn.datasets import load_digits, load_sample_image

DOCS = Path(__file__).parent
WINDOW = (1060, 1180)  # pixels
DIGIT = 1700  # which of them is shown


def upload(name: str, image: Image.Image) -> FilePayload:
    """A picture as a user chooses it."""
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


@contextmanager
def serving(model: str | None) -> Iterator[str]:
    """The address of `pipeline serve` during the block."""
    command = [sys.executable, "-m", "pipeline", "serve", "--port", "0", *(["--model", model] if model else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            found = re.search(r"http://\S+", server.stdout.readline() if server.stdout else "")
            if found is None:
                raise SystemExit("pipeline serve did not start")
            yield found.group()
        finally:
            server.terminate()


def main() -> None:
    """Show a digit with its activation map and a photograph, and write docs/serve.png."""
    digit = Image.fromarray(np.rint(load_digits().images[DIGIT] * 255 / 16).astype(np.uint8))
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    with serving(next(iter(sys.argv[1:]), None)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.goto(address)
        page.set_input_files("#files", [upload("digit.png", digit), upload("china.png", photograph)])
        page.locator(".card[data-state=answer]").nth(1).wait_for()
        if page.locator(".toggle").first.is_visible():
            page.locator(".toggle").first.click()
            page.locator(".map[src]").wait_for()
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=DOCS / "serve.png")
        browser.close()
    with Image.open(DOCS / "serve.png") as image:
        image.convert("RGB").save(DOCS / "serve.png", optimize=True)


if __name__ == "__main__":
    main()
