"""Download the pictures, or take them from this machine, and pack them into one zip whose content is pinned."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file, sha256_of_file, write_json
from pipeline.sources.archives import digest_of, pack
from pipeline.sources.folders import FolderFile, folder_digest, note_packed, restore_packed
from pipeline.sources.layout import LABELS
from pipeline.sources.members import Limits, Members
from pipeline.sources.source import Source, expect_digest, find_source, open_source
from pipeline.sources.tables import Pictures, Table, label_pictures


class Params(Table, extra="forbid"):  # section `download` of params.yaml, with the keys of a table of labels
    source: Annotated[str, StringConstraints(min_length=1)]  # a dataset's name, a folder, an archive, or a URL
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None  # `pipeline data refresh` writes it
    url_mirrors: list[str] = Field(strict=True)  # tried in order if the source's own URL does not provide what is pinned
    encoding: Annotated[str, StringConstraints(min_length=1)] | None  # of file names that are not marked as UTF-8; null: guess
    limits: Limits  # a source that exceeds them is refused


def describe_source(source: Source, pictures: Pictures, raw: Path, digest: str) -> dict[str, Any]:
    """The content of `data/source.json`: where the pictures are from, their licence and number, and the digest of the zip.

    If a table has the labels, also what it contains and lacks.
    """
    return {
        "source": source.title,
        "licence": source.licence,
        "digest": digest,
        "raw_sha256": sha256_of_file(raw),
        "files": len(pictures.members.keys() - {LABELS}),
        **({"table": dict(pictures.counts)} if pictures.counts else {}),
    }


def write_raw(source: Source, files: Members, pictures: Pictures, digest: str, raw: Path, partial: Path) -> None:
    """Write the zip to `partial`: as `raw` was after the last run, if a folder is still what it was then; else packed anew.

    Raises PipelineError if the files are not what `digest` pins.
    """
    in_folder = {name: file for name, file in files.items() if isinstance(file, FolderFile)}
    folder = source.path if in_folder and source.path else None
    if folder and not pictures.counts and restore_packed(folder, in_folder, digest, raw, partial):
        return
    found = pack(pictures.members, partial)
    if pictures.counts and source.pinned_by_content:  # the digest is that of all files, the table among them
        found = folder_digest(folder, in_folder) if folder else digest_of(files)
    if source.pinned_by_content:
        expect_digest(source, found, digest)


def run(params: Params, raw: Path, source_json: Path) -> None:
    """Pack the source into `raw` and describe it. Raises PipelineError if it is not what `download.digest` pins."""
    source, mirrors = find_source(params.source), tuple(params.url_mirrors)
    if params.digest is None:
        raise PipelineError("params.yaml: download.digest: is not set; run `pipeline data refresh` to pin the pictures")
    with (
        open_source(source, mirrors, params.digest, params.limits, params.encoding) as files,
        label_pictures(files, params, source.title, params.limits) as pictures,
    ):
        with atomic_file(raw) as partial:
            write_raw(source, files, pictures, params.digest, raw, partial)
            facts = describe_source(source, pictures, partial, params.digest)
        write_json(source_json, facts)
        if not pictures.counts and all(isinstance(file, FolderFile) for file in files.values()):
            note_packed(params.digest, facts["raw_sha256"])
    if pictures.counts:
        print(f"{source.title}: {', '.join(f'{count} {kind}' for kind, count in pictures.counts.items())}")


if __name__ == "__main__":
    stage.main("download", Params, run)
