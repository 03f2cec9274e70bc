"""Figures as MLflow's charts take them: each a PNG and a small WebP, whose names say which figure at which step."""

import re
import shutil
import uuid
from pathlib import Path

from PIL import Image

FOLDER = "images"  # MLflow's page looks for them there

_SMALL_PIXELS = 768  # the longer side of what the grid shows


def image_names(figures: Path, start: int) -> dict[Path, str]:
    """Each PNG of a folder, and what MLflow calls it without its ending. `start`: the run's, in milliseconds.

    MLflow's own `log_image` draws a new name at each call; a name that follows from the figure's alone leaves no twins.
    """
    paths = sorted(figures.glob("*.png"))
    return {path: f"{_key(path)}+step+0+timestamp+{start}+{uuid.uuid5(uuid.NAMESPACE_OID, path.stem)}" for path in paths}


def write_images(folder: Path, figures: Path, start: int) -> None:
    """Write the figures, large and small, into a new folder as they are to be logged."""
    folder.mkdir()
    for path, name in image_names(figures, start).items():
        shutil.copyfile(path, folder / f"{name}.png")
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((_SMALL_PIXELS, _SMALL_PIXELS))
        small.save(folder / f"{name}+compressed.webp", quality=85)


def _key(path: Path) -> str:
    return re.sub(r"[^a-zA-Z0-9_. -]", "_", path.stem)  # all that MLflow takes in the name of an image, but for slashes
