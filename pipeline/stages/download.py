"""Download the pictures, or take them from this machine, and pack them into one zip whose content is pinned."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from pipeline.core import stage
from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file, sha256_of_file, write_json
from pipeline.core.params import Section
from pipeline.sources.archives import pack
from pipeline.sources.folders import FolderFile, note_packed, restore_packed
from pipeline.sources.members import Limits, Members
from pipeline.sources.source import Source, expect_digest, find_source, open_source


class Params(Section):  # section `download` of params.yaml
    source: Annotated[str, StringConstraints(min_length=1)]  # a dataset's name, a folder, an archive, or a URL
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None  # `pipeline data refresh` writes it
    url_mirrors: list[str] = Field(strict=True)  # tried in order if the source's own URL does not provide what is pinned
    encoding: Annotated[str, StringConstraints(min_length=1)] | None  # of file names that are not marked as UTF-8; null: guess
    limits: Limits  # a source that exceeds them is refused


def describe_source(source: Source, members: Members, raw: Path, digest: str) -> dict[str, Any]:
    """The content of `data/source.json`: where the pictures are from, their licence and number, and the digest of the zip."""
    return {
        "source": source.title,
        "licence": source.licence,
        "digest": digest,
        "raw_sha256": sha256_of_file(raw),
        "files": len(members),
    }


def run(params: Params, raw: Path, source_json: Path) -> None:
    """Pack the source into `raw` and describe it. Raises PipelineError if it is not what `download.digest` pins."""
    source, mirrors = find_source(params.source), tuple(params.url_mirrors)
    if params.digest is None:
        raise PipelineError("params.yaml: download.digest: is not set; run `pipeline data refresh` to pin the pictures")
    with open_source(source, mirrors, params.digest, params.limits, params.encoding) as members:
        files = {name: file for name, file in members.items() if isinstance(file, FolderFile)}
        with atomic_file(raw) as partial:
            if not (files and source.path and restore_packed(source.path, files, params.digest, raw, partial)):
                content_digest = pack(members, partial)
                if source.pinned_by_content:
                    expect_digest(source, content_digest, params.digest)
            facts = describe_source(source, members, partial, params.digest)
        write_json(source_json, facts)
        if files:
            note_packed(params.digest, facts["raw_sha256"])


if __name__ == "__main__":
    stage.main("download", Params, run)
