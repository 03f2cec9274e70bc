"""Where the class folders begin in a set of files, and which splits the files are already in."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.core.errors import PipelineError

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class ClassFile:
    """A file in a class folder: its name in the archive, its class, its path in the class folder, and the split folder above."""

    name: str
    label: str
    inner_path: str
    folder: str | None


@dataclass(frozen=True)
class Layout:
    """The files in class folders, and the names of the others. `folders`: the names of the split folders."""

    entries: list[ClassFile]
    outside: list[str]
    folders: list[str] = field(default_factory=list)


def find_layout(names: Iterable[str], title: str) -> Layout:
    """Find the class folders: below any number of single folders, with or without split folders above them.

    `title` names the files in messages. Raises PipelineError if there are no folders, or if the apparent classes are splits.
    """
    root, below, outside = _descend(sorted(names))
    if not below:
        raise PipelineError(f"{title}: contains no folders of pictures; make one folder for each class")
    split_like = [name for name in below if name.lower() in _SPLIT_NAMES]
    if not split_like:
        return Layout(_entries(root, below, None), outside)
    others = sorted(set(below) - set(split_like))
    flat = [name for name in split_like if not any("/" in inner for inner in below[name])]
    if others or flat:
        classes = f"the classes would be {', '.join(map(repr, sorted(below)))}"
        raise PipelineError(f"{title}: {root or 'its root'}: {classes}, which are splits; name the folder of the classes")
    entries = []
    for folder in split_like:
        outside += [f"{root}{folder}/{inner}" for inner in below[folder] if "/" not in inner]
        classes_below = _group([inner for inner in below[folder] if "/" in inner])
        entries += _entries(f"{root}{folder}/", classes_below, folder)
    return Layout(entries, outside, split_like)


def choose_folders(layout: Layout, val: float | str, test: float | str) -> tuple[str | None, str | None]:
    """The folders of the archive that become test and val, if it has any. `val`, `test`: a fraction, or a folder's name.

    In an archive of train and val alone, val becomes the test split: it is what the publisher held out. Raises PipelineError.
    """
    for name, folder in (("val", val), ("test", test)):
        if isinstance(folder, str) and folder not in layout.folders:
            there = ", ".join(layout.folders) or "none"
            raise PipelineError(f"params.yaml: split.{name}: {folder!r} is not a split folder of the pictures; they have {there}")
    if val == test and isinstance(val, str):
        raise PipelineError(f"params.yaml: split: val and test both name the folder {val!r}; name different ones")
    by_split: dict[str, str] = {}
    for folder in layout.folders:
        if folder in (val, test):
            continue
        split = _SPLIT_NAMES[folder.lower()]
        if split in by_split and split != "train":
            raise PipelineError(f"data/raw.zip: contains {by_split[split]!r} and {folder!r}; name one of them in params.yaml: split")
        by_split[split] = folder
    test_folder = test if isinstance(test, str) else by_split.get("test", by_split.get("val"))
    val_folder = val if isinstance(val, str) else by_split.get("val")
    if val_folder == test_folder:
        val_folder = None
    if layout.folders and not set(layout.folders) - {test_folder, val_folder}:
        raise PipelineError(f"data/raw.zip: contains {', '.join(layout.folders)} and no training folder; add train/")
    return test_folder, val_folder


def _descend(names: list[str]) -> tuple[str, dict[str, list[str]], list[str]]:
    """Descend through single folders until there are several, or none below: the path, its contents, the files passed."""
    root, outside = "", []
    while True:
        outside += [root + name for name in names if "/" not in name]
        below = _group([name for name in names if "/" in name])
        if len(below) != 1:
            return root, below, outside
        folder, inner = next(iter(below.items()))
        if not any("/" in name for name in inner):
            return root, below, outside
        root, names = f"{root}{folder}/", inner


def _group(names: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, inner = name.partition("/")
        groups[folder].append(inner)
    return dict(groups)


def _entries(root: str, classes: dict[str, list[str]], folder: str | None) -> list[ClassFile]:
    return [ClassFile(f"{root}{label}/{inner}", label, inner, folder) for label, paths in classes.items() for inner in sorted(paths)]
