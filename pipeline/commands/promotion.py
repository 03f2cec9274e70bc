"""`pipeline retrain`, `champion`, `history`, `promote`, `approve` and `rollback`: which model is in use, and how that changes."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.show import METRICS, align, interval
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.promotion.journal import Entry
    from pipeline.promotion.keep import Kept, Options
    from pipeline.promotion.retraining import Decision

_DIGITS = 12  # of a sha256 in a table
_REASON_LENGTH = 80
_CODES = """\
exit codes:
  0   nothing to do, or promoted
  1   failure
  2   wrong usage
  10  held: the champion stays
  11  rejected: the challenger is shown to be worse, or breaks a bound
  12  pending: `pipeline approve` promotes
  13  busy: another retraining is running
  14  data fault: the source, or what is in it
  15  unfinished: git, the DVC remote or MLflow was away; the next run makes up for it"""


def add_retrain(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = _add(commands, "retrain", "run the stages that changed, publish, judge, promote what is better; prints one line of JSON")
    parser.add_argument("--drift", metavar="FOLDER|LOG", help="ask `pipeline drift` first; what it says is in the line")
    parser.set_defaults(run=print_retrain, here=Path.cwd())


def print_retrain(parsed: argparse.Namespace) -> None:
    """Ask for drift if wanted, retrain, print the line, and exit with the outcome's code."""
    from pipeline.commands.drift import drift_facts
    from pipeline.commands.upkeep import publish_all, refresh
    from pipeline.promotion.retraining import retrain

    drift = drift_facts(parsed.drift, parsed.here) if parsed.drift else None
    facts, outcome = retrain(refresh, publish_all, _options(parsed, None))
    if drift:
        facts |= {"drift": drift, "summary": f"{facts['summary']}; {drift['sentence']}"}
    if facts["decision"] is None:
        print("\n".join(facts["reasons"]), file=sys.stderr)
    _print_undone(facts["undone"])
    print(json.dumps(facts), flush=True)
    if outcome:
        raise SystemExit(int(outcome))


def add_promote(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = _add(commands, "promote", "judge a model now; --force: make it the champion without a judgement")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name in models/ (default: as `gate.challenger` in params.yaml says)")
    parser.add_argument("--force", action="store_true", help="promote it whatever the gate would say; needs --reason")
    parser.add_argument("--reason", type=_reason, metavar="TEXT", help="why; promotions.jsonl keeps it")
    parser.set_defaults(run=lambda parsed: _promote(parser, parsed))


def _promote(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    from pipeline.promotion.by_hand import promote

    if parsed.force != bool(parsed.reason):
        parser.error("--force and --reason TEXT belong together")
    _print_decision(lambda: promote(parsed.model, parsed.reason, _options(parsed, _hook())))


def add_approve(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = _add(commands, "approve", "promote the model that waits for an approval")
    parser.add_argument("--reason", type=_reason, metavar="TEXT", help="why; promotions.jsonl keeps it")
    parser.set_defaults(run=print_approve)


def print_approve(parsed: argparse.Namespace) -> None:
    """Approve and print what was decided."""
    from pipeline.promotion.by_hand import approve

    _print_decision(lambda: approve(parsed.reason, _options(parsed, _hook())))


def add_rollback(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = _add(commands, "rollback", "make an earlier champion the champion again")
    parser.add_argument("--to", metavar="SHA256", help="the first digits of its sha256 (default: the latest that was never rolled back)")
    parser.add_argument("--reason", type=_reason, metavar="TEXT", help="why; promotions.jsonl keeps it")
    parser.set_defaults(run=print_rollback)


def print_rollback(parsed: argparse.Namespace) -> None:
    """Roll back and print what was decided."""
    from pipeline.promotion.by_hand import rollback

    _print_decision(lambda: rollback(parsed.to, parsed.reason, _options(parsed, _hook())))


def _add(commands: "argparse._SubParsersAction[Any]", name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, epilog=_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skip-ci", action="store_true", help="the messages of its commits end with [skip ci]")
    parser.add_argument("--push", action="store_true", help="push its commits to git's upstream")
    return parser


def _options(parsed: argparse.Namespace, hook: str | None) -> "Options":
    from pipeline.promotion.keep import Options

    return Options(parsed.skip_ci, parsed.push, hook)


def _reason(typed: str) -> str:
    """What was typed, without bytes that are not UTF-8, and without white space at its ends."""
    return typed.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def _hook() -> str | None:
    """The hook of params.yaml, which an older project lacks."""
    from pipeline.core.params import read_params
    from pipeline.promotion.retraining import read_gate

    return read_gate().hook if "gate" in read_params() else None


def _print_decision(decide: "Callable[[], tuple[Decision, Kept]]") -> None:
    """Print what was decided and done, on stderr what is undone, and exit with the outcome's code."""
    from pipeline.promotion.retraining import Stopped, outcome_of

    try:
        decision, kept = decide()
    except Stopped as error:
        print(error, file=sys.stderr)
        raise SystemExit(int(error.outcome)) from None
    sha256 = f" ({decision.entry.sha256[:_DIGITS]})" if decision.entry else ""
    lines = [f"{decision.verdict} {decision.model}{sha256}: {decision.reasons[0]}", *decision.reasons[1:], *kept.done]
    print("\n".join(map(_one_line, lines)), flush=True)
    _print_undone(kept.undone)
    if outcome := outcome_of(decision, kept.undone):
        raise SystemExit(int(outcome))


def _print_undone(undone: Sequence[str]) -> None:
    print("".join(f"undone: {line}\n" for line in undone), end="", file=sys.stderr)


def add_champion(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("champion", help="print which model is in use, since when, and why")
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    parser.set_defaults(run=print_champion)


def print_champion(parsed: argparse.Namespace) -> None:
    """Print the champion with its test figures. Raises PipelineError if there is none."""
    from pipeline.core.files import read_value
    from pipeline.promotion.journal import champion, champion_dir, promotions, read_journal

    entries = read_journal()
    entry = champion(entries)
    if entry is None:
        raise PipelineError("promotions.jsonl: no model was promoted yet; run `pipeline retrain`")
    folder, since = champion_dir(entry.sha256), promotions(entries)[-1].time
    figures = read_value(folder / "results/scores.json", "figures") or {}
    if parsed.json:
        facts = {key: getattr(entry, key) for key in ("model", "sha256", "verdict", "reason", "commit", "lock_sha256")}
        print(json.dumps({**facts, "since": since, "folder": str(folder), "figures": figures}, ensure_ascii=False))
        return
    commit = f"; git commit {entry.commit[:_DIGITS]}" if entry.commit else ""
    print(f"{entry.model} {entry.sha256}\nchampion since {since}, {entry.verdict}: {_one_line(entry.reason)}\n{folder}{commit}")
    lines = [f"{title}: {_interval(figures[name])}" for name, title in METRICS.items() if name in figures]
    print("\n".join(lines or [f"{folder}: is not here; run `dvc pull`"]))


def _interval(facts: Mapping[str, Any]) -> str:
    return interval(*(facts.get(key) for key in ("value", "low", "high")))


def add_history(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("history", help="print every decision about which model is in use, the oldest first")
    parser.add_argument("--json", action="store_true", help="one line of JSON per decision, with all figures")
    parser.set_defaults(run=print_history)


def print_history(parsed: argparse.Namespace) -> None:
    """Print the journal as a table; a star marks the entry that made the present champion."""
    from pipeline.promotion.journal import champion, read_journal

    entries = read_journal()
    if parsed.json:
        print("".join(f"{json.dumps(asdict(entry), ensure_ascii=False)}\n" for entry in entries), end="")
        return
    if not entries:
        print("promotions.jsonl: no decision yet")
        return
    present = champion(entries)
    rows: list[tuple[str, ...]] = [("", "time", "verdict", "model", "sha256", "accuracy", "reason")]
    rows += [_row(entry, entry is present) for entry in entries]
    print("\n".join(align(rows)))


def _row(entry: "Entry", is_champion: bool) -> tuple[str, ...]:
    values = (entry.judgement or {}).get("values") or {}
    reason = _one_line(entry.reason)
    short = reason if len(reason) <= _REASON_LENGTH else f"{reason[: _REASON_LENGTH - 1]}…"
    accuracy = _interval(values.get("challenger") or {})
    return "*" * is_champion, entry.time, entry.verdict, entry.model, entry.sha256[:_DIGITS], accuracy, short


def _one_line(text: str) -> str:
    """A reason, which a person may have typed, without line breaks and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def verify_lines() -> list[str]:
    """What `pipeline verify` prints: a line per model, and the way of the champion from the journal to MLflow."""
    from pipeline.commands.show import verify_all
    from pipeline.promotion.journal import JOURNAL
    from pipeline.promotion.keep import check_journal, verify_journal

    lines = verify_all()
    check_journal()
    if not JOURNAL.exists():
        return lines
    return [*lines, *verify_journal()]
