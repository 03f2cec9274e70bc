"""The page of the decisions: who is champion and why, the figures of the gate, and the history. Its source is the journal alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.files import atomic_file, write_json
from pipeline.report import charts
from pipeline.report.page import FIGURES, templates

Facts = Mapping[str, Any]
_MOST_ROWS = 100  # of a table, and of the notes
_MOST_LETTERS = 300  # of a reason in the table of all decisions
_WIDE, _NARROW = 780, charts.WIDTH
_LARGEST = 1e12  # no figure is larger; anything else is not a number
_METRICS = ("top1_accuracy", "balanced_accuracy")
_TITLES = {**{name: title for name, (title, _) in FIGURES.items()}, "recall": "Recall of the classes", "latency": "Latency", "size": "Size"}
# What a judgement of an older version may lack
_JUDGEMENT: Facts = {"values": {}, "checks": (), "classes": (), "notes": (), "test": {}, "old": None, "counts": False,
              "look": None, "looks": None, "alpha": None}  # fmt: skip
_CHECK = dict.fromkeys(("name", "challenger", "champion", "difference", "low", "high", "bound", "passed", "text"))
_CLASS = dict.fromkeys(("class", "pictures", "challenger", "champion", "p", "passed", "text"))


class Sign(NamedTuple):
    """How a verdict is shown. `shape`: of its mark in the chart; `promotes`: whether the model is the champion from then on."""

    symbol: str
    word: str
    shape: str
    promotes: bool = False


SIGNS = {
    "PROMOTE": Sign("▲", "promoted", "up", promotes=True),
    "APPROVE": Sign("▲", "approved", "up", promotes=True),
    "FORCE": Sign("▲", "promoted by force", "up", promotes=True),
    "ROLLBACK": Sign("▼", "rolled back", "down", promotes=True),
    "PENDING": Sign("◇", "waits for approval", "diamond"),
    "REJECT": Sign("✕", "rejected", "cross"),
    "HOLD": Sign("○", "held", "circle"),
}


@dataclass(frozen=True)
class Decision:
    """An entry of the journal. `number`: from 1, the oldest first; `judgement`: with every key, None if nothing was judged."""

    number: int
    entry: Facts
    judgement: Facts | None

    @property
    def sign(self) -> Sign:
        """How its verdict is shown."""
        return SIGNS.get(self.entry["verdict"]) or Sign("•", str(self.entry["verdict"]), "circle")

    @property
    def seconds(self) -> float | None:
        """Its time since 1970; None if its time is not one."""
        time = _read_time(self.entry["time"])
        return time.timestamp() if time else None

    @property
    def metric(self) -> str | None:
        """The primary metric of its judgement."""
        checks = self.judgement["checks"] if self.judgement else ()
        return next((check["name"] for check in checks if check["name"] in _METRICS), None)

    def figure(self, side: str) -> dict[str, float | None]:
        """The metric of `challenger` or `champion` with its interval; None for what was not judged."""
        return _figure(self.judgement["values"].get(side) if self.judgement else None)

    @property
    def looks_left(self) -> int | None:
        """How many more looks there are at these test pictures. A look that promotes gives its share back."""
        if not self.judgement or not self.judgement["looks"] or self.judgement["look"] is None:
            return None
        spends = self.judgement["counts"] and not self.sign.promotes
        return max(0, int(self.judgement["looks"] - self.judgement["look"] + (not spends)))

    @property
    def old(self) -> Facts | None:
        """The comparison on the champion's own test pictures, as a line of the gate's table."""
        old = self.judgement["old"] if self.judgement else None
        if not old:
            return None
        sides = {side: _figure(old.get(side))["value"] for side in ("challenger", "champion")}
        return {**_CHECK, "pictures": None, **old, **sides}


def write_decisions(folder: Path, entries: Sequence[Facts]) -> None:
    """Write `index.html`, one page without a script, and `decision.json`, the latest entry or null. Other files of the folder stay.

    `entries`: of the journal as mappings, oldest first. What a judgement of another version lacks is left out. All text is escaped.
    """
    decisions = [Decision(number, entry, _complete(entry.get("judgement"))) for number, entry in enumerate(entries, 1)]
    with atomic_file(folder / "index.html") as partial:
        partial.write_text(_render(decisions), encoding="utf-8")
    latest = json.dumps(entries[-1] if entries else None)
    write_json(folder / "decision.json", json.loads(latest, parse_constant=lambda _: None))  # JSON has no NaN


def _render(decisions: Sequence[Decision]) -> str:
    judged = next((each for each in reversed(decisions) if each.judgement), None)
    champion = _champion(decisions)
    moments = _moments(decisions, judged.metric if judged else None)
    environment = templates()
    environment.filters |= {"time": _time, "number": _number_text, "signed": _signed, "title": lambda name: _TITLES.get(name, name)}
    sides = [judged.figure(side) for side in ("challenger", "champion")] if judged else []
    return environment.get_template("decisions.html").render(
        decisions=decisions, champion=champion, latest=decisions[-1] if decisions else None, judged=judged,
        classes=_weakest_first(judged.judgement["classes"]) if judged and judged.judgement else [],
        names={each.entry["sha256"]: each.entry["model"] for each in decisions}, signs=SIGNS, shapes=charts.SHAPES,
        charts=charts, drawings=[charts.timeline(moments, width) for width in (_WIDE, _NARROW) if moments],
        undrawn=len(decisions) - len(moments), start=charts.whisker_scale(side["low"] for side in sides), along=charts.percent_along,
        most_rows=_MOST_ROWS, most_letters=_MOST_LETTERS,
    )  # fmt: skip


def _complete(judgement: Any) -> Facts | None:
    """A judgement with every key that the page shows; None if there is none."""
    if not isinstance(judgement, Mapping):
        return None
    given = {**_JUDGEMENT, **{key: value for key, value in judgement.items() if value is not None}}
    return {
        **given,
        "checks": [{**_CHECK, **check} for check in given["checks"]],
        "classes": [{**_CLASS, **row} for row in given["classes"]],
    }


def _champion(decisions: Sequence[Decision]) -> Decision | None:
    """The decision since which the present champion is champion; None if there is none yet."""
    reign: Decision | None = None
    for each in decisions:
        if each.sign.promotes and (reign is None or reign.entry["sha256"] != each.entry["sha256"]):
            reign = each
    return reign


def _moments(decisions: Sequence[Decision], metric: str | None) -> list[charts.Moment]:
    """The history of one metric: what was judged by it, and what made a champion."""
    known: dict[str | None, float | None] = {}
    champion, moments = None, []
    for each in decisions:
        champion = each.entry["sha256"] if each.sign.promotes else champion
        drawn = each.judgement is not None and each.metric == metric
        if drawn:
            known |= {each.entry["champion"]: each.figure("champion")["value"], each.entry["sha256"]: each.figure("challenger")["value"]}
        if each.seconds is not None and (drawn or each.sign.promotes):
            figure = each.figure("challenger") if drawn else _figure(None)
            label = f"#{each.number}" if each.sign.promotes else ""
            title = f"#{each.number}, {_time(each.entry['time'])}: {each.entry['model']} {each.sign.word}"
            moments.append(charts.Moment(each.seconds, known.get(champion), each.sign.shape, label, title, **figure))
    return sorted(moments, key=lambda moment: moment.seconds)


def _weakest_first(rows: Sequence[Facts]) -> list[Facts]:
    """The classes that failed, then the others, each by the challenger's recall. Classes without one are last."""

    def order(row: Facts) -> tuple[bool, bool, float]:
        recall = _number(row["challenger"])
        return row["passed"] is not False, recall is None, recall or 0.0

    return sorted(rows, key=order)


def _figure(value: Any) -> dict[str, float | None]:
    """A share with its interval, from such a mapping or from the share alone; None for what is not a share."""
    given = value if isinstance(value, Mapping) else {"value": value}
    numbers = {key: _number(given.get(key)) for key in ("value", "low", "high")}
    return {key: number if number is not None and 0 <= number <= 1 else None for key, number in numbers.items()}


def _number(value: Any) -> float | None:
    """A finite number; None if it is something else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    return float(value) if fits else None


def _number_text(value: Any) -> str:
    """A figure of the gate: three decimal places below 10, else three digits; a dash if it is undefined."""
    number = _number(value)
    if number is None:
        return "–"
    return f"{number:.3f}" if abs(number) < 10 else f"{number:,.0f}" if abs(number) >= 100 else f"{number:.1f}"


def _signed(value: Any) -> str:
    """A difference with its sign."""
    number = _number(value)
    return "–" if number is None else ("+" if number > 0 else "−" if number < 0 else "±") + _number_text(abs(number))


def _time(text: Any) -> str:
    """`2026-11-27 03:00 UTC`, or the text as it is if it is not a time of the journal."""
    time = _read_time(text)
    return time.strftime("%Y-%m-%d %H:%M UTC") if time else str(text)


def _read_time(text: Any) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None
