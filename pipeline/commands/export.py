"""`pipeline export-folders`: the pictures in folders for other tools, also those of a set that stays in the shards."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError

_SPLITS = ("train", "val", "test")


def add_export(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("export-folders", help="copy the pictures to folders that other tools read, one per split and class")
    parser.add_argument("folder", metavar="FOLDER", help="a new or an empty folder")
    parser.add_argument("--split", choices=_SPLITS, help="only the pictures of this split (default: all)")
    parser.set_defaults(run=lambda parsed: print(export_folders(parsed.folder, parsed.split, parsed.here)), here=Path.cwd())


def export_folders(named: str, split: str | None, here: Path) -> str:
    """Write ImageFolder trees, whole or not at all, and return what was written. Raises PipelineError.

    The files are copies: a tool may change them. Those that torchvision would drop or misread are PNGs.
    """
    from tqdm import tqdm

    from pipeline.core.files import Slice, atomic_dir, writing
    from pipeline.pictures.manifest import read_manifest

    target, data = here / named, Path("data")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise PipelineError(f"{named}: is not an empty folder; name a new one")
    if not (data / "manifest.csv").is_file():
        raise PipelineError(f"{data / 'manifest.csv'}: does not exist; run `dvc repro`")
    pictures = [picture for picture in read_manifest(data / "manifest.csv").pictures if split in (None, picture.split)]
    with writing(named), atomic_dir(target) as partial:
        for picture in tqdm(pictures, "export", disable=None, leave=False):
            source, path = picture.source(data / "splits" / picture.split), partial / picture.split / picture.path
            file = source.path if isinstance(source, Slice) else source
            if not file.is_file():
                raise PipelineError(f"{file}: does not exist; run `dvc repro`")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
    counts = Counter(picture.split for picture in pictures)
    return f"{named}: {', '.join(f'{counts[name]} {name}' for name in _SPLITS if counts[name])} pictures"
