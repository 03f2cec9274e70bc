"""`pipeline store`: show what was fetched and what refers to it, and remove what nothing refers to."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.show import align
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.net.store import StoredItem

_STORE = ".cache/store"


def add_store(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("store", help="show what was fetched into .cache/store and what refers to it; --trim: remove the rest")
    parser.add_argument("--trim", action="store_true", help="remove what nothing refers to, after a question")
    parser.add_argument("--yes", action="store_true", help="with --trim: do not ask")
    parser.set_defaults(run=print_store)


def print_store(parsed: argparse.Namespace) -> None:
    """Print a line per file. With --trim, ask and remove what nothing refers to. Raises PipelineError."""
    from pipeline.net.store import list_items

    items, references = list_items(), find_references()
    referred = {item.name: referring(item, references) for item in items}
    unused = [item for item in items if not referred[item.name]]
    if not items:
        print(f"{_STORE}: is empty")
        return
    if not parsed.trim:
        rows = [("sha256", "size", "last used", "what refers to it"), *(_row(item, referred[item.name]) for item in items)]
        print("\n".join([*align(rows, ["size"]), ""]))
        print(f"{_STORE}: {_amount(items)}; nothing refers to {_amount(unused)}" + "; `pipeline store --trim` removes that" * bool(unused))
        return
    if not unused:
        print(f"{_STORE}: {_amount(items)}; something refers to each, nothing to remove")
        return
    print("\n".join(align([("sha256", "size", "last used"), *(_row(item, [])[:3] for item in unused)], ["size"])))
    if not (parsed.yes or _agreed(f"Remove {_amount(unused)}?")):
        raise PipelineError(f"{_STORE}: {_amount(unused)} would be removed, nothing was; add --yes to remove them")
    print(f"removed {_amount(trim({item.name for item in unused}))}")


def trim(names: set[str]) -> list["StoredItem"]:
    """Remove those items that nothing refers to, and return them. Raises PipelineError if another process uses the store."""
    from pipeline.core.files import writing
    from pipeline.net.store import alone, list_items

    with alone() as is_alone:
        if not is_alone:
            raise PipelineError(f"{_STORE}: another process is using it; run the command again when that has ended")
        references = find_references()  # anew: params.yaml may have changed since the question
        unused = [item for item in list_items() if item.name in names and not referring(item, references)]
        with writing(_STORE):
            for item in unused:
                item.remove()
    return unused


def find_references() -> dict[str, list[str]]:
    """`key: what refers to it`, of keys of the store or their first digits: the params, those of the last run, and what it wrote.

    Raises PipelineError if that cannot be read: then nothing is known to be unused.
    """
    from pipeline.core.dvc import locked_params
    from pipeline.core.files import read_value
    from pipeline.core.params import read_params

    found = defaultdict(list)
    last_run = {"download": locked_params("download").get("download"), "backbone": locked_params("backbone").get("backbone")}
    for section, keys in _keys(read_params()):
        for key in keys:
            found[key].append(f"params.yaml: {section}")
    with suppress(PipelineError):  # the packages of today may not know the last run's network; then no stage can fetch it again
        for section, keys in _keys(last_run):
            for key in keys:
                found[key].append(f"dvc.lock: {section}")
    for path, keys_in_it in ((Path("data/source.json"), ["digest"]), (Path("models/backbone/backbone.json"), ["weights", "sha256"])):
        if digest := _text(read_value(path, *keys_in_it)):
            found[digest].append(str(path))
    return dict(found)


def referring(item: "StoredItem", references: Mapping[str, list[str]]) -> list[str]:
    """What refers to an item, each once."""
    matching = [key for key in references if any(own.startswith(key) for own in item.keys)]
    return list(dict.fromkeys(where for key in matching for where in references[key]))


def _keys(params: Mapping[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """The sections that name something to fetch, each with its keys in the store."""
    from pipeline.networks import weights
    from pipeline.sources import source

    download, backbone = params.get("download"), params.get("backbone")
    if isinstance(download, dict):
        mirrors = download.get("url_mirrors")
        urls = [str(mirror) for mirror in mirrors] if isinstance(mirrors, list) else []
        yield "download", source.store_keys(str(download.get("source")), urls, _text(download.get("digest")))
    if isinstance(backbone, dict):
        yield "backbone", weights.store_keys(str(backbone.get("name")), str(backbone.get("weights")), _text(backbone.get("digest")))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _agreed(question: str) -> bool:
    """Whether the user at the terminal agrees; False if there is none."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _row(item: "StoredItem", referred: list[str]) -> tuple[str, ...]:
    name = item.name[:12] if item.is_complete else "unfinished"
    used = datetime.fromtimestamp(item.used, UTC).strftime("%Y-%m-%d %H:%M")
    return name, _size(item.size), used, ", ".join(referred) or "nothing"


def _amount(items: list["StoredItem"]) -> str:
    return f"{len(items)} file{'s' * (len(items) != 1)}, {_size(sum(item.size for item in items))}"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
