"""Shards: packed pictures as uncompressed tar files in WebDataset form, so that a new picture changes one file of many.

The shard of a picture is decided by the first bits of the sha256 of its path: a shard of more than 400 pictures splits in two by the next
bit. In a shard a picture is called `<16 hex digits of that sha256>/<path>`. These digits keep members in order, and keep apart what readers
of WebDataset take for one sample, as `1.jpg` beside `1.png`; the folders of the path, the class among them, are in the sample's key.
"""

import io
import shutil
import tarfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pipeline.core.dvc import cached_files
from pipeline.core.errors import PipelineError
from pipeline.core.files import Slice, cache_dir, digest_of_sums, read_json, sha256_of, sha256_of_file, write_json
from pipeline.core.stage import code_digest
from pipeline.sources.layout import LABELS
from pipeline.sources.members import Members

_MOST = 400  # pictures per shard
_DIGITS = 16  # of the sha256 of a path, 4 bits each


class PackedShard(NamedTuple):
    """A shard of the last run in DVC's cache, and the sha256 that it had."""

    path: Path
    sha256: str


def assign_shards(names: Iterable[str]) -> dict[str, list[str]]:
    """`file name of a shard: its pictures`, both in order. The same names give the same shards."""
    members = sorted(map(_member, names))
    return {
        f"pictures{'-' * bool(bits)}{bits}.tar": [member[_DIGITS + 1 :] for member in of_shard] for bits, of_shard in _halves(members, "")
    }


def pack_shards(members: Members, folder: Path, known: Mapping[str, str], earlier: Mapping[str, PackedShard]) -> dict[str, str]:
    """Write members as shards, a table of labels beside them, and return `path: sha256`. The same content gives the same bytes.

    `known`: the sha256 of members, as far as it is known without reading them. Where it is known of all members of a shard, and `earlier`
    has a shard of that content, that is copied.
    """
    sums, note = dict[str, str](), dict[str, list[str]]()
    for shard, names in tqdm(assign_shards(members.keys() - {LABELS}).items(), "pack", disable=None, leave=False):
        expected = {name: known.get(name, "") for name in names}
        before = earlier.get(digest_of_sums(expected))
        if before and sha256_of_file(before.path) == before.sha256:
            shutil.copyfile(before.path, folder / shard)
        else:
            before, expected = None, _write_shard(folder / shard, names, members)
        sums |= expected
        if known:
            note[digest_of_sums(expected)] = [shard, before.sha256 if before else sha256_of_file(folder / shard)]
    if LABELS in members:
        labels = members[LABELS]()
        (folder / LABELS).write_bytes(labels)
        sums[LABELS] = sha256_of(labels)
    if known:
        write_json(_note(), {"code": code_digest(__name__), "shards": note})
    return sums


def shards_of_last_run(raw: Path) -> dict[str, PackedShard]:
    """The shards of `raw` after the last run of the stage `download`, by the digest of their content. None if other code packed them.

    DVC removes `raw` before the stage runs, but keeps it in its cache.
    """
    try:
        note, files = read_json(_note()), cached_files("download", raw)
        if note["code"] != code_digest(__name__):
            return {}
        return {content: PackedShard(files[shard], sha256) for content, (shard, sha256) in note["shards"].items() if shard in files}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # there was no last run, or the note is not ours
        return {}


def read_index(raw: Path) -> dict[str, Slice]:
    """Where each picture of the shards is, by its path, in the order of the shards. Raises PipelineError if one is damaged."""
    index = {}
    for shard in sorted(raw.glob("*.tar")):
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    index[member.name[_DIGITS + 1 :]] = Slice(shard, member.offset_data, member.size)
        except tarfile.TarError as error:
            raise PipelineError(f"{shard}: is damaged: {error}; run `dvc repro --force download`") from None
    return index


def _member(name: str) -> str:
    return f"{sha256_of(name.encode())[:_DIGITS]}/{name}"


def _halves(members: list[str], bits: str) -> Iterator[tuple[str, list[str]]]:
    """The shards below a node of the trie: the bits that lead there, and the members, which are sorted."""
    if len(members) <= _MOST:
        yield bits, members
        return
    middle = bisect_left(members, f"{int(f'{bits}1'.ljust(4 * _DIGITS, '0'), 2):0{_DIGITS}x}")
    yield from _halves(members[:middle], f"{bits}0")
    yield from _halves(members[middle:], f"{bits}1")


def _write_shard(path: Path, names: Iterable[str], members: Members) -> dict[str, str]:
    sums = {}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            content = members[name]()
            info = tarfile.TarInfo(_member(name))  # its time, owner and mode are fixed
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            sums[name] = sha256_of(content)
    return sums


def _note() -> Path:
    return cache_dir("sums") / "packed.json"
