"""The journal, promotions.jsonl: one line per decision, append-only and in git. It alone says who is the champion."""

import json
import re
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
SHORT = 16  # digits of a sha256 in the name of a folder


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


def next_time(time: datetime, entries: Iterable[Entry]) -> str:
    """The time of a new entry: not before any other, since their times are their order, and a clock may be wrong."""
    return max([stamp(time), *(entry.time for entry in entries)])


def read_journal(path: Path = JOURNAL) -> list[Entry]:
    """All entries, in the order of their times; none if there is no journal. Raises PipelineError, which names the line.

    Two clones that were merged by git have their lines one after the other.
    """
    if not path.exists():
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


def champion_dir(sha256: str) -> Path:
    """The folder that keeps a promoted model: a model folder with the results on test in its folder `results`."""
    return CHAMPIONS / sha256[:SHORT]


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise PipelineError(f"{path}: is not text in UTF-8 ({error}); run `git checkout {path}`") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror}); mend that, and run the command again") from None
    # Not splitlines, which also splits at characters that JSON may contain, as U+2028.
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parse(line: str, where: str) -> Entry:
    if re.match(r"(<{7}|={7}|>{7}|\|{7})( |$)", line):
        raise PipelineError(f"{where}: is a mark of a merge conflict; remove the marks, and keep the lines of both sides")
    try:
        facts = json.loads(line)
        known = {field.name for field in fields(Entry)}
        entry = Entry(**{key: value for key, value in facts.items() if key in known})
        json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()  # as `append` writes it
        fault = _fault(entry)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise PipelineError(f"{where}: is not an entry; run `git checkout {JOURNAL}`, or repair it") from None
    if fault:
        raise PipelineError(f"{where}: {fault}; run `git checkout {JOURNAL}`, or repair it")
    return entry


def _fault(entry: Entry) -> str | None:
    """What is wrong with the values of an entry. Raises ValueError or TypeError if a value is of another kind."""
    if entry.verdict not in get_args(Verdict):
        return f"{entry.verdict!r} is not a verdict"
    if stamp(datetime.fromisoformat(entry.time)) != entry.time:
        return f"{entry.time!r} is not a time as 2026-11-27T03:00:00Z"
    for digits in (entry.sha256, entry.champion, entry.commit, entry.lock_sha256):
        if digits is not None and not re.fullmatch(r"[0-9a-f]{40,64}", digits):
            return f"{digits!r} is not a sha256, or not a commit"
    judgement = {} if entry.judgement is None else entry.judgement
    mappings = [judgement, *(judgement.get(key) or {} for key in ("values", "test"))]
    mappings += [row for key in ("checks", "classes") for row in judgement.get(key) or ()]
    are_mappings = all(isinstance(each, Mapping) for each in mappings)
    are_texts = all(isinstance(each, str) for each in (entry.sha256, entry.reason, entry.model, entry.key))
    return None if are_mappings and are_texts else "a value is of another kind than `pipeline history --json` shows"
