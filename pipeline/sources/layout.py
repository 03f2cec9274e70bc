"""The labels of a set of files, and the splits they are already in: by where the class folders begin, or by a packed table."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.core.errors import PipelineError
from pipeline.core.params import spell
from pipeline.sources.members import is_archive

LABELS = ".labels.csv"  # what a table of labels says, beside the shards, see `pipeline.sources.tables`

# `split.folders`: recognised by their names, none, or what each folder is.
Folders = Literal["auto", "none"] | dict[str, Literal["train", "val", "test", "unlabelled"]]

_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test", "holdout": "test",
    "pred": "test", "predict": "test", "prediction": "test",
}  # fmt: skip
_CONTENT = "sets?|data|datasets?|folder|splits?|images?|imgs?|pictures?|pics?|photos?"
_CONTENT_WORD = re.compile(_CONTENT)
_SPLIT_WORD = re.compile(rf"({'|'.join(_SPLIT_WORDS)})(?:{_CONTENT})?")  # also `trainset`
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])")  # also those of `TestImages`
_NO_PICTURE = re.compile(r"\.(txt|csv|tsv|json|xml|ya?ml|md|html?|pdf|docx?|xlsx?|py|ipynb|mat|npy|npz|h5|pth?|db|log)$", re.IGNORECASE)
_PACKED = re.compile(r"\.(7z|rar|gz|bz2|xz|zst|z\d\d|(zip|7z|rar|tar)\.\d{2,3})$", re.IGNORECASE)  # archives that are not opened, and parts
_NAMED_FOLDERS = 8  # in one sentence


@dataclass(frozen=True, slots=True)
class ClassFile:
    """A file in a class folder: its name in the archive, its class, its path in the class folder, and the split folder above."""

    name: str
    label: str
    inner_path: str
    folder: str | None


@dataclass(frozen=True)
class Layout:
    """The files in class folders, and the names of the others.

    `folders`: the split folders, each with its split. `unlabelled`: the split folders without class folders, and how many files
    each has; these are outside, too.
    """

    entries: list[ClassFile]
    outside: list[str]
    folders: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """What `.labels.csv` contains: the layout of the pictures, `image_id: group`, and (finding, image_id, detail) of each fault."""

    layout: Layout
    groups: Mapping[str, str]
    faults: list[tuple[str, str, str]]


def expect_folders(names: Iterable[str], title: str) -> None:
    """Raise PipelineError if files of these names cannot be pictures in class folders, whatever the params."""
    names = sorted(names)
    if not names:
        raise PipelineError(f"{title}: contains no files; name a folder or an archive of pictures")
    archives = [name for name in names if _is_packed(name)]
    pictures = [name for name in names if may_be_picture(name)]
    if archives and not any("/" in name for name in pictures):
        cure = "unpack them into one folder and name that in download.source"
        raise PipelineError(f"{title}: contains archives and no folders of pictures: {listed(archives)}; {cure}")
    if not pictures:
        raise PipelineError(f"{title}: contains no pictures: {listed(names)}; name a folder or an archive of pictures")
    if not any("/" in name for name in names):
        raise PipelineError(f"{title}: contains no folders of pictures; make one folder for each class")


def find_layout(names: Iterable[str], title: str, folders: Folders = "auto") -> Layout:
    """Find the class folders: below any number of single folders, with or without split folders above or below them.

    `title` names the files in messages. Raises PipelineError if there are no folders, or if it is unclear which ones are splits.
    """
    names = sorted(names)
    expect_folders(names, title)
    told = {} if isinstance(folders, str) else _find_folders(folders, names, title)
    unlabelled = {path: [name for name in names if name.startswith(f"{path}/")] for path, split in told.items() if split == "unlabelled"}
    omitted = sorted({name for of_folder in unlabelled.values() for name in of_folder})
    names = sorted(set(names) - set(omitted))
    splits = {path: split for path, split in told.items() if split != "unlabelled"}
    if splits:
        inside = {path: [name.removeprefix(f"{path}/") for name in names if name.startswith(f"{path}/")] for path in splits}
        outside = [name for name in names if not name.startswith(tuple(f"{path}/" for path in splits))]
        layout = _below_splits("", inside, splits, outside, title)
    else:
        layout = _recognise(*_descend(names), title, by_name=folders != "none")
    counts = {path: len(of_folder) for path, of_folder in unlabelled.items()}
    return Layout(layout.entries, layout.outside + omitted, layout.folders, layout.unlabelled | counts)


def read_labels(content: bytes, folders: Folders) -> Labelled:
    """What `.labels.csv` says. `folders`: as `split.folders`, where the values of the split column stand for folders.

    Raises PipelineError if such a value names no split.
    """
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    faults = [(row["finding"], row["image_id"], row["detail"]) for row in rows if row["finding"]]
    rows = [row for row in rows if row["finding"] in ("", "repeated")]
    values = sorted({row["split"] for row in rows if row["split"]})
    splits = {"": "", **(dict.fromkeys(values, "") if folders == "none" else _splits_of(values, folders))}
    root = _shared_folder([row["image_id"] for row in rows])
    entries = []
    for row in rows:
        image_id, value = row["image_id"], row["split"]
        if splits.get(value, "unlabelled") == "unlabelled":
            faults.append(("spare", image_id, f"its split {value!r} is left out according to split.folders"))
        else:
            entries.append(ClassFile(image_id, row["label"], image_id.removeprefix(root), value if splits[value] else None))
    used = {value: split for value, split in splits.items() if value in values and split not in ("", "unlabelled")}
    return Labelled(Layout(entries, [], used), {row["image_id"]: row["group"] for row in rows if row["group"]}, faults)


def choose_folders(layout: Layout, val: float | str, test: float | str) -> dict[str, str]:
    """`folder: split` of the split folders that are used, if the archive has any. `val`, `test`: a fraction, or a folder's name.

    Of train and val alone, val becomes the test split: it is what the publisher held out. A val or test folder in whose place another
    is named is not used, since it was not published to train on. Raises PipelineError.
    """
    for name, folder in (("val", val), ("test", test)):
        if isinstance(folder, str) and folder not in layout.folders:
            there = ", ".join(layout.folders) or "none"
            raise PipelineError(f"params.yaml: split.{name}: {folder!r} is not a split folder of the pictures; they have {there}")
    if val == test and isinstance(val, str):
        raise PipelineError(f"params.yaml: split: val and test both name the folder {val!r}; name different ones")
    unnamed: dict[str, list[str]] = defaultdict(list)
    for folder, split in layout.folders.items():
        if folder not in (val, test):
            unnamed[split].append(folder)
    test_folder = test if isinstance(test, str) else _only(unnamed["test"]) or _only(unnamed["val"])
    val_folder = val if isinstance(val, str) else _only([folder for folder in unnamed["val"] if folder != test_folder])
    if layout.folders and not unnamed["train"]:
        raise PipelineError(f"data/raw: contains {', '.join(layout.folders)} and no training folder; add train/")
    chosen = {folder: split for folder, split in ((test_folder, "test"), (val_folder, "val")) if folder}
    return dict.fromkeys(unnamed["train"], "train") | chosen


def _splits_of(values: list[str], folders: Folders) -> dict[str, str]:
    """`value: split` of the values of the split column, by `split.folders` or by their names."""
    if not isinstance(folders, str):
        if strange := sorted(folders.keys() - set(values)):
            raise PipelineError(f"params.yaml: split.folders: {strange[0]!r} is not in the split column; it has {listed(values) or 'none'}")
        return dict(folders)
    splits = {value: split_named(value) for value in values}
    if unknown := [value for value, split in splits.items() if not split]:
        raise PipelineError(
            f"params.yaml: download.split: the column has {listed(unknown)}, which name no split; "
            f"set split.folders to what each of {listed(values)} is, or to none"
        )
    return splits


def _shared_folder(names: list[str]) -> str:
    """The folder that contains all of these paths, with a slash at its end; empty if there is none."""
    if not names:
        return ""
    first, last = min(names).split("/")[:-1], max(names).split("/")[:-1]
    shared = next((depth for depth, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))
    return "".join(f"{part}/" for part in first[:shared])


def _only(folders: list[str]) -> str | None:
    """The only folder, or None if there is none. Raises PipelineError if there are several."""
    if len(folders) > 1:
        raise PipelineError(f"data/raw: contains {folders[0]!r} and {folders[1]!r}; name one of them in params.yaml: split")
    return folders[0] if folders else None


def _find_folders(folders: Mapping[str, str], names: list[str], title: str) -> dict[str, str]:
    """`path: split` of the keys of `split.folders`. Raises PipelineError if a split would be in another, or is told twice."""
    keys = {key: _find_folder(key, names, title) for key in folders}
    for key, path in keys.items():
        for other, above in keys.items():
            if key != other and (path == above or (path.startswith(f"{above}/") and folders[key] != "unlabelled")):
                raise PipelineError(f"params.yaml: split.folders: {key!r} is {path!r}, which {other!r} contains; write only one of them")
    return {path: folders[key] for key, path in keys.items()}


def _find_folder(wanted: str, names: list[str], title: str) -> str:
    """The path of the one folder that a key of `split.folders` names, by its whole path or the end of it."""
    paths = {name[: match.start()] for name in names for match in re.finditer("/", name)}
    key = wanted.strip("/")
    found = [key] if key in paths else sorted(path for path in paths if path.endswith(f"/{key}"))
    # Of folders inside a folder of the same name, the outer one contains all.
    found = [path for path in found if not any(path.startswith(f"{other}/") for other in found)]
    if len(found) != 1:
        fault = f"names several folders of {title}: {listed(found)}; write a whole path" if found else f"is no folder of {title}"
        raise PipelineError(f"params.yaml: split.folders: {wanted!r} {fault}" + "; write its path there" * (not found))
    return found[0]


def _recognise(root: str, below: dict[str, list[str]], outside: list[str], title: str, by_name: bool) -> Layout:
    """Tell whether the folders at `root` are splits or classes. Raises PipelineError if both are possible."""
    if not by_name:
        return Layout(_entries(root, below, None), outside)
    folders = _of_pictures(below)
    splits = _named_like_splits(folders)
    mentions = {folder: split for folder in folders if (split := _split_in(folder)[0])}
    labelled = [folder for folder in mentions if any("/" in inner for inner in _within(folder, below[folder])[1])]
    if splits and set(splits) == set(folders) and labelled:
        outside = outside + [f"{root}{folder}/{inner}" for folder in below.keys() - set(folders) for inner in below[folder]]
        return _below_splits(root, {folder: below[folder] for folder in splits}, splits, outside, title)
    if splits and set(splits) == set(folders):
        raise _unclear(title, root, list(below), splits, "make one folder for each class in each of them")
    # A flat folder beside flat ones, as `train` beside `bus`, is a class. `test` may be unlabelled pictures.
    is_flat = not any("/" in inner for folder in folders for inner in below[folder])
    if splits and not (is_flat and set(splits.values()) in ({"train"}, {"val"})):
        told = {folder: mentions[folder] if folder in labelled else "unlabelled" for folder in mentions if folder in {*splits, *labelled}}
        raise _unclear(title, root, list(below), told)
    if len(mentions) == len(folders) and len(set(mentions.values())) > 1:
        raise _unclear(title, root, list(below), mentions)
    return _by_class_first(root, below, outside, title) or Layout(_entries(root, below, None), outside)


def _by_class_first(root: str, below: dict[str, list[str]], outside: list[str], title: str) -> Layout | None:
    """The layout `<class>/<split>/…`, or None. Raises PipelineError where only some of the folders have splits in them."""
    parts = {label: _group([inner for inner in below[label] if "/" in inner]) for label in _of_pictures(below)}
    # Of the folders that contain nothing but folders named like splits.
    splits = {
        label: named
        for label, folders in parts.items()
        if len(named := _named_like_splits(folders)) == len(folders) and all("/" in inner for inner in filter(may_be_picture, below[label]))
    }
    found = {folder: split for named in splits.values() for folder, split in named.items()}
    if len(set(found.values())) < 2:
        return None
    if len(splits) < len(parts) or any("/" in path for label in splits for paths in parts[label].values() for path in paths):
        told = {f"{label}/{folder}": split for label, named in splits.items() for folder, split in named.items()}
        raise _unclear(title, root, list(told), told)
    entries = [
        ClassFile(f"{root}{label}/{folder}/{path}", label, path, folder)
        for label, folders in parts.items()
        for folder, paths in folders.items()
        for path in sorted(paths)
    ]
    rest = {f"{root}{label}/{inner}" for label, inners in below.items() for inner in inners} - {entry.name for entry in entries}
    return Layout(entries, outside + sorted(rest), found)


def _below_splits(root: str, inside: dict[str, list[str]], splits: Mapping[str, str], outside: list[str], title: str) -> Layout:
    """The classes below split folders. `inside`: the paths in each. A folder without class folders is unlabelled."""
    entries: list[ClassFile] = []
    outside, unlabelled = list(outside), dict[str, int]()
    reached = {folder: _within(folder, inside[folder]) for folder in splits}
    labelled = {folder: reach for folder, reach in reached.items() if any("/" in inner for inner in reach[1])}
    labelled = _descend_together(labelled)
    for folder, split in splits.items():
        if folder not in labelled:
            unlabelled[f"{root}{folder}"] = len(inside[folder])
            if split == "train":
                raise PipelineError(f"{title}: {root}{folder}: contains no folders of pictures; make one folder for each class in it")
            outside += [f"{root}{folder}/{inner}" for inner in inside[folder]]
            continue
        prefix, paths = labelled[folder]
        found = _entries(f"{root}{folder}/{prefix}", _group([path for path in paths if "/" in path]), folder)
        outside += sorted({f"{root}{folder}/{inner}" for inner in inside[folder]} - {entry.name for entry in found})
        entries += found
    if not labelled:
        raise PipelineError(f"{title}: {root}{next(iter(splits))}: contains no folders of pictures; make one folder for each class in it")
    return Layout(entries, outside, {folder: splits[folder] for folder in labelled}, unlabelled)


def _within(folder: str, names: list[str]) -> tuple[str, list[str]]:
    """Descend in a split folder through single folders of a split's name or of none in particular, as `train/train` or `test/images`."""
    prefix = ""
    while True:
        below = _of_pictures(_group([name for name in names if "/" in name]))
        if len(below) != 1 or not (_is_passed(lone := below[0]) or lone == folder.rpartition("/")[2]):
            return prefix, names
        prefix, names = f"{prefix}{lone}/", [name.removeprefix(f"{lone}/") for name in names if name.startswith(f"{lone}/")]


def _descend_together(reached: dict[str, tuple[str, list[str]]]) -> dict[str, tuple[str, list[str]]]:
    """Descend through a folder that is the only one in every split and has folders in every one."""
    while reached:
        groups = {folder: _group([name for name in names if "/" in name]) for folder, (_, names) in reached.items()}
        lone = {name for below in groups.values() for name in _of_pictures(below)}
        if len(lone) != 1 or not all(any("/" in inner for inner in below[next(iter(lone))]) for below in groups.values()):
            break
        name = next(iter(lone))
        reached = {folder: (f"{prefix}{name}/", groups[folder][name]) for folder, (prefix, _) in reached.items()}
    return reached


def _descend(names: list[str]) -> tuple[str, dict[str, list[str]], list[str]]:
    """Descend through single folders of pictures until there are several, or none below: the path, its contents, the files passed."""
    root, outside = "", []
    while True:
        outside += [root + name for name in names if "/" not in name]
        below = _group([name for name in names if "/" in name])
        folders = _of_pictures(below)
        if len(folders) != 1 or not any("/" in name for name in below[folders[0]]):
            return root, below, outside
        outside += [f"{root}{folder}/{inner}" for folder in below.keys() - set(folders) for inner in below[folder]]
        root, names = f"{root}{folders[0]}/", below[folders[0]]


def _split_in(folder: str) -> tuple[str, str]:
    """The split that a folder's name mentions ("" if none, or several), and the words beside it that say more than «set» or «images»."""
    words = [word.lower() for word in _WORD.findall(folder)]
    found = [match[1] for word in words if (match := _SPLIT_WORD.fullmatch(word))]
    rest = [word for word in words if not _SPLIT_WORD.fullmatch(word) and not _CONTENT_WORD.fullmatch(word)]
    mentioned = {_SPLIT_WORDS[word] for word in found}
    return mentioned.pop() if len(mentioned) == 1 else "", " ".join(rest)


def split_named(path: str) -> str:
    """The split that the last part of a path mentions, or else a folder above it; "" if none does: `data/train-00000-of-00002.parquet`."""
    return next((split for part in reversed(path.split("/")) if (split := _split_in(part)[0])), "")


def _named_like_splits(folders: Iterable[str]) -> dict[str, str]:
    """`folder: split` of `test_set` and the like, and of `seg_train` beside `seg_test`, but not of `steam_train`."""
    mentions = {folder: _split_in(folder) for folder in folders}
    splits_by_rest = defaultdict[str, set[str]](set)
    for split, rest in mentions.values():
        if split:
            splits_by_rest[rest].add(split)
    return {folder: split for folder, (split, rest) in mentions.items() if split and (not rest or len(splits_by_rest[rest]) > 1)}


def _is_passed(folder: str) -> bool:
    split, rest = _split_in(folder)
    return bool(split) or (not rest and _WORD.search(folder) is not None)


def _of_pictures(below: dict[str, list[str]]) -> list[str]:
    """The folders in which a file may be a picture by its name; all if none has one."""
    return [folder for folder, inner in below.items() if any(map(may_be_picture, inner))] or list(below)


def may_be_picture(name: str) -> bool:
    """Whether a file may be a picture by its suffix."""
    return not (_NO_PICTURE.search(name) or _is_packed(name))


def _is_packed(name: str) -> bool:
    return is_archive(name) or _PACKED.search(name) is not None


def _unclear(title: str, root: str, folders: list[str], splits: Mapping[str, str], cure: str = "") -> PipelineError:
    told = ", ".join(f"{spell(root + folder)}: {split}" for folder, split in list(splits.items())[:_NAMED_FOLDERS])
    return PipelineError(
        f"{title}: {root or 'its root'}: the folders {listed(sorted(folders))} may be classes or splits; if all are classes, "
        f"set split.folders: none in params.yaml; else {cure or f'set there what each is, as {{{told}}}'}"
    )


def listed(names: list[str]) -> str:
    """Names as a sentence lists them: the first eight, and how many more there are."""
    more = len(names) - _NAMED_FOLDERS
    return ", ".join(map(repr, names[:_NAMED_FOLDERS])) + f" and {more} more" * (more > 0)


def _group(names: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, inner = name.partition("/")
        groups[folder].append(inner)
    return dict(groups)


def _entries(root: str, classes: Mapping[str, list[str]], folder: str | None) -> list[ClassFile]:
    return [ClassFile(f"{root}{label}/{inner}", label, inner, folder) for label, paths in classes.items() for inner in sorted(paths)]
