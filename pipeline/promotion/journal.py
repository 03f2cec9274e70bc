"""The journal, promotions.jsonl: one line per decision, append-only and in git. It alone says who is the champion."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file

JOURNAL = Path("promotions.jsonl")
CHAMPIONS = Path("champions")  # one model folder per promoted model, by the first digits of its sha256
Verdict = Literal["PROMOTE", "HOLD", "REJECT", "PENDING", "APPROVE", "ROLLBACK", "FORCE"]
PROMOTING = ("PROMOTE", "APPROVE", "ROLLBACK", "FORCE")
_SHORT = 16  # digits of a sha256 in the name of a folder


@dataclass(frozen=True)
class Entry:
    """One decision.

    `time`: in UTC, as 2026-11-27T03:00:00Z; `reason`: in words; `model`: the name of the challenger in params.yaml; `sha256`: of the
    challenger's model.onnx, who is the champion from now on if the verdict promotes; `champion`: the sha256 of the champion before;
    `judgement`: the gate's figures (`Judgement` as a mapping), None of a rollback; `key`: identifies what was judged, so that the same
    judgement is never entered twice; `commit`: the git commit with params.yaml, dvc.lock and metrics; `lock_sha256`: of dvc.lock.
    """

    time: str
    verdict: Verdict
    reason: str
    model: str
    sha256: str
    champion: str | None
    key: str
    judgement: Mapping[str, Any] | None = None
    commit: str | None = None
    lock_sha256: str | None = None

    @property
    def promotes(self) -> bool:
        """Whether its model is the champion from then on."""
        return self.verdict in PROMOTING


def now() -> datetime:
    """The time, in UTC: the only clock of this room."""
    return datetime.now(UTC)


def stamp(time: datetime) -> str:
    """A time as the journal writes it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_journal(path: Path = JOURNAL) -> list[Entry]:
    """All entries, in the order of their times; none if there is no journal. Raises PipelineError, which names the line.

    Two clones that were merged by git have their lines one after the other.
    """
    if not path.is_file():
        return []
    entries = [_parse(line, f"{path}: line {number}") for number, line in _lines(path)]
    unique = {(entry.time, entry.verdict, entry.sha256, entry.key): entry for entry in entries}
    return sorted(unique.values(), key=lambda entry: entry.time)


def append(entry: Entry, path: Path = JOURNAL) -> None:
    """Add an entry as the last line, whole or not at all."""
    before = path.read_bytes() if path.is_file() else b""
    line = json.dumps(asdict(entry), ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as partial:
        partial.write_bytes(before + b"\n" * (before[-1:] not in (b"", b"\n")) + line.encode() + b"\n")


def champion(entries: Sequence[Entry]) -> Entry | None:
    """The entry that made the present champion; None if there is none yet."""
    return next((entry for entry in reversed(entries) if entry.promotes), None)


def promotions(entries: Sequence[Entry]) -> list[Entry]:
    """The promoting entries, in order, without those that promoted who was champion already."""
    found: list[Entry] = []
    for entry in entries:
        if entry.promotes and (not found or found[-1].sha256 != entry.sha256):
            found.append(entry)
    return found


def champion_dir(sha256: str, champions: Path = CHAMPIONS) -> Path:
    """The folder that keeps a promoted model: a model folder with the results on test in its folder `results`."""
    return champions / sha256[:_SHORT]


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise PipelineError(f"{path}: is not text in UTF-8 ({error}); run `git checkout {path}`") from None
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _parse(line: str, where: str) -> Entry:
    try:
        facts = json.loads(line)
        known = {field.name for field in fields(Entry)}
        entry = Entry(**{key: value for key, value in facts.items() if key in known})
    except (ValueError, TypeError, AttributeError):
        raise PipelineError(f"{where}: is not an entry; run `git checkout {JOURNAL}`, or repair it") from None
    if entry.verdict not in get_args(Verdict):
        raise PipelineError(f"{where}: {entry.verdict!r} is not a verdict; run `git checkout {JOURNAL}`, or repair it")
    return entry
