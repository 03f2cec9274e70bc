"""Download the pictures, or take them from this machine, and pack them into shards whose content is pinned."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_dir, digest_of_sums, sha256_of, write_json
from pipeline.sources.folders import FolderFile, folder_sums
from pipeline.sources.layout import LABELS
from pipeline.sources.members import Limits, Members
from pipeline.sources.shards import pack_shards, shards_of_last_run
from pipeline.sources.source import Source, expect_digest, find_source, open_source
from pipeline.sources.tables import Pictures, Table, label_pictures


class Params(Table, extra="forbid"):  # section `download` of params.yaml, with the keys of a table of labels
    source: Annotated[str, StringConstraints(min_length=1)]  # a dataset's name, a folder, an archive, or a URL
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None  # `pipeline data refresh` writes it
    url_mirrors: list[str] = Field(strict=True)  # tried in order if the source's own URL does not provide what is pinned
    encoding: Annotated[str, StringConstraints(min_length=1)] | None  # of file names that are not marked as UTF-8; null: guess
    limits: Limits  # a source that exceeds them is refused


def describe_source(source: Source, pictures: Pictures, packed: str, digest: str) -> dict[str, Any]:
    """The content of `data/source.json`: where the pictures are from, their licence and number, and the digest of what was packed.

    If a table has the labels, also what it contains and lacks.
    """
    return {
        "source": source.title,
        "licence": source.licence,
        "digest": digest,
        "raw_digest": packed,
        "files": len(pictures.members.keys() - {LABELS}),
        **({"table": dict(pictures.counts)} if pictures.counts else {}),
    }


def write_raw(source: Source, files: Members, pictures: Pictures, digest: str, raw: Path, partial: Path) -> str:
    """Write the shards to the folder `partial` and return the digest of their content.

    Of a folder, only files of shards that changed since the last run are read, see `folder_sums`. Raises PipelineError if the files are not
    what `digest` pins.
    """
    in_folder = {name: file for name, file in files.items() if isinstance(file, FolderFile)}
    known = folder_sums(source.path, in_folder) if source.path and source.path.is_dir() else {}
    packed = pack_shards(pictures.members, partial, known, shards_of_last_run(raw) if known else {})
    if source.pinned_by_content:
        # The digest is that of all files, those that are not packed among them, as a table.
        found = {name: packed.get(name) or known.get(name) or sha256_of(read()) for name, read in files.items()}
        expect_digest(source, digest_of_sums(found), digest)
    return digest_of_sums(packed)


def run(params: Params, raw: Path, source_json: Path) -> None:
    """Pack the source into `raw` and describe it. Raises PipelineError if it is not what `download.digest` pins."""
    source, mirrors = find_source(params.source), tuple(params.url_mirrors)
    if params.digest is None:
        raise PipelineError("params.yaml: download.digest: is not set; run `pipeline data refresh` to pin the pictures")
    with (
        open_source(source, mirrors, params.digest, params.limits, params.encoding) as files,
        label_pictures(files, params, source.title, params.limits) as pictures,
    ):
        with atomic_dir(raw) as partial:
            packed = write_raw(source, files, pictures, params.digest, raw, partial)
        write_json(source_json, describe_source(source, pictures, packed, params.digest))
    if pictures.counts:
        print(f"{source.title}: {', '.join(f'{count} {kind}' for kind, count in pictures.counts.items())}")


if __name__ == "__main__":
    stage.main("download", Params, run)
