"""Where the class folders begin in a set of files, and which splits they come with."""

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
    """A file of a class: its name in the archive, its class, its path in the class, the folder above the class."""

    name: str
    label: str
    inner_path: str
    folder: str | None


@dataclass(frozen=True)
class Layout:
    """The files that lie in classes, and those that do not. `folders`: the split folders by their names."""

    entries: list[ClassFile]
    outside: list[str]
    folders: list[str] = field(default_factory=list)


def find_layout(names: Iterable[str], title: str) -> Layout:
    """Find the classes: below a lone folder or several, with or without folders named like splits above them.

    Raises PipelineError where there are none, or where what looks like classes are splits.
    """
    root, below, outside = _descend(sorted(names))
    if not below:
        raise PipelineError(f"{title}: holds no pictures in folders; make one folder for each class")
    split_like = [name for name in below if name.lower() in _SPLIT_NAMES]
    if not split_like:
        return Layout(_entries(root, below, None), outside)
    others = sorted(set(below) - set(split_like))
    flat = [name for name in split_like if not any("/" in inner for inner in below[name])]
    if others or flat:
        classes = f"the classes would be {', '.join(map(repr, sorted(below)))}"
        raise PipelineError(f"{title}: {root or 'its root'}: {classes}: those are splits; name the folder that holds the classes")
    entries = []
    for folder in split_like:
        outside += [f"{root}{folder}/{inner}" for inner in below[folder] if "/" not in inner]
        classes_below = _group([inner for inner in below[folder] if "/" in inner])
        entries += _entries(f"{root}{folder}/", classes_below, folder)
    return Layout(entries, outside, split_like)


def split_of(folder: str) -> str:
    """The split that a folder's name stands for: train, val or test."""
    return _SPLIT_NAMES[folder.lower()]


def choose_folders(layout: Layout, val: float | str, test: float | str) -> tuple[str | None, str | None]:
    """The archive's folders that are the test split and the val split, where it has them.

    With a train and a val folder alone, val is what its publisher held out: it is the test split.
    """
    for name, folder in (("val", val), ("test", test)):
        if isinstance(folder, str) and folder not in layout.folders:
            there = ", ".join(layout.folders) or "none"
            raise PipelineError(f"params.yaml: split.{name}: {folder!r} is no split folder of the pictures; there: {there}")
    if val == test and isinstance(val, str):
        raise PipelineError(f"params.yaml: split: val and test both name the folder {val!r}; name another for one")
    by_split: dict[str, str] = {}
    for folder in layout.folders:
        if folder in (val, test):
            continue
        if split_of(folder) in by_split and split_of(folder) != "train":
            raise PipelineError(
                f"data/raw.zip: holds {by_split[split_of(folder)]!r} and {folder!r}; name one of them in params.yaml: split"
            )
        by_split[split_of(folder)] = folder
    test_folder = test if isinstance(test, str) else by_split.get("test", by_split.get("val"))
    val_folder = val if isinstance(val, str) else by_split.get("val")
    if val_folder == test_folder:
        val_folder = None
    if layout.folders and not set(layout.folders) - {test_folder, val_folder}:
        raise PipelineError(f"data/raw.zip: holds {', '.join(layout.folders)} and no training folder; add train/")
    return test_folder, val_folder


def _descend(names: list[str]) -> tuple[str, dict[str, list[str]], list[str]]:
    """Follow lone folders down to where there are several, or to the last: its path, what is in it, what was passed."""
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
