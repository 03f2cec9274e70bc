"""Retrain: whatever changed is fetched, reproduced, published, judged, and promoted or kept, in one idempotent command."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_value
from pipeline.promotion.gate import Params
from pipeline.promotion.journal import CHAMPIONS, Entry, Verdict, champion, now, promotions, read_journal, stamp
from pipeline.promotion.keep import Keeping, Kept, Options, check_journal, keep

_RETRAIN = Path(".cache/locks/retrain.lock")
_KEEP = Path(".cache/locks/keep.lock")
_KEEP_SECONDS = 900.0  # longer than a hook may take
_DATA_STAGES = ("download", "split")
_HEADLINE_METRICS = ("top1_accuracy", "top1_accuracy_low", "top1_accuracy_high", "log_loss")


class Outcome(IntEnum):
    """The exit codes of `pipeline retrain`, which a scheduler can tell apart. 2 is wrong usage.

    A fault comes first, then UNFINISHED, and only then the decision: HELD, REJECTED and PENDING say that all else is done.
    """

    DONE = 0  # nothing to do, or promoted
    FAILURE = 1
    HELD = 10
    REJECTED = 11
    PENDING = 12  # `pipeline approve` promotes
    BUSY = 13  # another retraining is running
    DATA_FAULT = 14  # the source, or what is in it
    UNFINISHED = 15  # the DVC remote, git or MLflow was away; the next run makes up for it


class Stopped(PipelineError):  # noqa: N818 - what it was is in `outcome`
    """A fault, with the exit code that it leads to."""

    def __init__(self, text: str, outcome: Outcome) -> None:
        super().__init__(text)
        self.outcome = outcome


@dataclass(frozen=True)
class Decision:
    """What was decided. `entry`: to be entered into the journal; None if the same was decided before, or nothing had to be judged.

    `is_champion`: whether the challenger is the champion itself.
    """

    verdict: Verdict
    model: str
    reasons: Sequence[str]
    judgement: Mapping[str, Any] | None = None
    entry: Entry | None = None
    is_champion: bool = False


@dataclass
class _Facts:
    """What the line of JSON says."""

    changed: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    published: bool = False
    notes: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)


def retrain(
    refresh: Callable[[], tuple[str | None, str]], publish: Callable[[], object], options: Options
) -> tuple[dict[str, Any], Outcome]:
    """Run the stages whose source, params or code changed, publish, judge the result, and keep what was decided.

    `refresh`: pins the digest of the source, and returns that before and after; `publish`: brings the runs to MLflow. Returns what a
    scheduler wants to know, and the exit code. Every fault that can be expected is an outcome. The same call again makes up for what is
    undone, and else does nothing.
    """
    facts, decision = _Facts(), None
    try:
        params = read_gate()
        with locked_stages():
            _reproduce(facts, refresh)
            _publish(facts, publish)
            with locked_journal():
                decision, kept = judge_and_keep(params, replace(options, hook=params.hook))
        facts.done += kept.done
        facts.undone += kept.undone
        outcome = outcome_of(decision, facts.undone, bool(facts.ran) or kept.is_entered)
        reasons = decision.reasons
    except (PipelineError, OSError) as error:  # as a disk that is full
        outcome = error.outcome if isinstance(error, Stopped) else Outcome.FAILURE
        reasons = [str(error)]
    shown = {key: getattr(facts, key) for key in ("changed", "ran", "models", "before", "published")}
    nothing = not facts.ran and outcome is Outcome.DONE and not (decision and decision.entry)
    notes = ["nothing changed"] if nothing else [f"{len(facts.ran)} stages ran", *facts.notes]
    summary = "; ".join(notes) if decision else reasons[0]
    facts_of_decision = _describe_decision(decision, outcome, reasons)
    return {**shown, "summary": summary, **facts_of_decision, "done": facts.done, "undone": facts.undone}, outcome


def _describe_decision(decision: Decision | None, outcome: Outcome, reasons: Sequence[str]) -> dict[str, Any]:
    judgement = (decision and decision.judgement) or {}
    return {
        "decision": decision.verdict if decision else None,
        "model": decision.model if decision else None,
        "outcome": outcome.name,
        "exit_code": int(outcome),
        "reasons": list(reasons),
        "figures": {key: judgement[key] for key in ("values", "checks", "test", "look", "looks") if key in judgement},
    }


def read_gate() -> Params:
    """The section `gate` of params.yaml. Raises PipelineError."""
    from pipeline.core.params import PARAMS, read_params
    from pipeline.core.sections import read_section

    if "gate" not in read_params():
        raise PipelineError(f"{PARAMS}: gate: is missing; add it, docs/promotion.md lists its keys")
    return read_section("gate", Params)


def locked_stages() -> AbstractContextManager[None]:
    """Hold the lock under which stages run and models/ may change. Raises Stopped if another process holds it."""
    return _locked(_RETRAIN, "pipeline retrain", 0)


@contextmanager
def locked_journal() -> Iterator[None]:
    """Hold the lock under which the journal changes: another one, so that a rollback does not wait for a training.

    Raises Stopped if another process holds it, and PipelineError if the journal has lost lines.
    """
    with _locked(_KEEP, "command that promotes", _KEEP_SECONDS):
        check_journal()
        yield


@contextmanager
def _locked(path: Path, what: str, seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise Stopped(f"{path}: another `{what}` is running; wait until it ends", Outcome.BUSY) from None
    try:
        yield
    finally:
        lock.release()


def _reproduce(facts: _Facts, refresh: Callable[[], tuple[str | None, str]]) -> None:
    """Mend, refresh, and run what DVC finds changed. Raises Stopped."""
    import json

    from pipeline.core.dvc import mend
    from pipeline.evaluation.comparison import other_test_set

    for line in mend():
        print(line, file=sys.stderr)
    try:
        before, after = refresh()
    except PipelineError as error:
        raise Stopped(str(error), Outcome.DATA_FAULT) from None
    facts.changed = {"download.digest": [before, after]} if before != after else {}
    facts.before, tested_before = _last_comparison()
    facts.models = facts.before
    if any(not name.startswith(f"{CHAMPIONS}/") for name in json.loads(_dvc("status", facts, "--json"))):
        facts.ran = _stages(_dvc("repro", facts))
        facts.models, tested = _last_comparison()
        facts.notes = other_test_set(tested_before, tested)


def _publish(facts: _Facts, publish: Callable[[], object]) -> None:
    try:
        publish()
        facts.published = True
    except PipelineError as error:
        facts.undone.append(str(error))


def _last_comparison() -> tuple[dict[str, dict[str, float]], str | None]:
    """The headline metrics of each model in the last comparison, and the sha256 of its test pictures."""
    path = Path("metrics/comparison.json")
    comparison = read_json(path) if path.is_file() else {"models": {}}
    scores = {name: {key: facts[key] for key in _HEADLINE_METRICS} for name, facts in comparison["models"].items()}
    return scores, comparison.get("test_sha256")


def _stages(output: str) -> list[str]:
    return re.findall(r"^Running stage '(.+)':", output, re.MULTILINE)


def _dvc(command: str, facts: _Facts, *arguments: str) -> str:
    """Run DVC and return its stdout, which for `repro` is also printed on stderr. Raises Stopped if DVC fails."""
    import subprocess

    from pipeline.core.dvc import run_dvc

    result = run_dvc(command, *arguments, stdout=subprocess.PIPE)
    if command == "repro":
        print(result.stdout, file=sys.stderr, end="")
    if result.returncode:
        facts.ran = _stages(result.stdout)
        last = facts.ran[-1] if facts.ran else ""
        fault = Outcome.DATA_FAULT if last in _DATA_STAGES else Outcome.FAILURE
        where = f"dvc {command}: {last}" if last else f"dvc {command}"
        raise Stopped(f"{where}: failed, see above; fix it and run `pipeline retrain` again", fault)
    return result.stdout


def judge_and_keep(params: Params, options: Options, model: str | None = None) -> tuple[Decision, Kept]:
    """Judge the challenger, or a model by name, against the champion, and keep what was decided. Call it under the lock.

    Raises PipelineError if it cannot be judged. What an earlier run left undone is done even then.
    """
    try:
        decision = decide(params, model)
    except PipelineError:
        keep(Keeping(None, "what was made", options))
        raise
    title = f"{decision.verdict} {decision.model}"
    stores = decision.entry is not None and (decision.entry.promotes or decision.verdict == "PENDING")
    return decision, keep(Keeping(decision.entry, title, options, stores))


def decide(params: Params, model: str | None = None) -> Decision:
    """Judge the challenger of `params`, or a model by name, against the journal's champion. Changes nothing. Raises PipelineError."""
    from pipeline.networks.artifact import read_facts
    from pipeline.promotion.judging import choose_challenger, judgement_key, shadow_sentence

    entries = read_journal()
    name = model or choose_challenger(params)
    sha256 = str(read_facts(Path("models") / name)["model_sha256"])
    present = champion(entries)
    if present and present.sha256 == sha256:
        return Decision("HOLD", name, [f"{name} is the champion already"], is_champion=True)
    if withdrawal := withdrawal_of(entries, sha256):
        reason = f"{name} was rolled back on {withdrawal.time}; `pipeline promote {name} --force --reason TEXT` brings it back"
        return Decision("HOLD", name, [reason])
    age = age_days(entries)
    is_stale = age is not None and params.max_age_days is not None and age > params.max_age_days
    tested = read_value(Path("results") / name / "scores.json", "test_sha256")
    if tested is None:
        raise PipelineError(f"results/{name}/scores.json: names no test pictures; run `dvc repro`")
    key = judgement_key(sha256, present.sha256 if present else None, tested, params, is_stale)
    if known := next((entry for entry in reversed(entries) if entry.key == key and entry.judgement is not None), None):
        return _decided_before(entries, known, name, shadow_sentence(present.sha256, sha256) if present else "")
    return _judge(entries, name, sha256, key, age, params)


def _judge(entries: Sequence[Entry], name: str, sha256: str, key: str, age: float | None, params: Params) -> Decision:
    from pipeline.promotion.champions import restore
    from pipeline.promotion.gate import judge
    from pipeline.promotion.judging import prepare

    present = champion(entries)
    if present:
        try:
            restore(present.sha256)
        except PipelineError as error:  # the DVC remote may be away
            raise Stopped(str(error), Outcome.UNFINISHED) from None
    challenger, against, test = prepare(name, present)
    judgement = judge(challenger, against, test, spent(entries, test.sha256), age, params)
    facts = judgement.as_dict()
    entry = Entry(
        stamp(now()), judgement.verdict, judgement.reason, name, sha256, present.sha256 if present else None, key, judgement=facts
    )
    return Decision(judgement.verdict, name, [judgement.reason, *judgement.notes], facts, entry)


def _decided_before(entries: Sequence[Entry], known: Entry, name: str, shadow: str) -> Decision:
    """The decision that the journal has of the same judgement. A PENDING that was overtaken is a HOLD, and so is a lost PROMOTE.

    `shadow`: what a server found out meanwhile, a sentence, or empty.
    """
    verdict = known.verdict
    if verdict == "PROMOTE" or (verdict == "PENDING" and known is not open_request(entries)):
        verdict = "HOLD"
    return Decision(verdict, name, [f"judged on {known.time}, {known.verdict}: {known.reason}", *filter(None, [shadow])], known.judgement)


def open_request(entries: Sequence[Entry]) -> Entry | None:
    """The latest PENDING, unless a model was promoted since, or the same model was judged again."""
    for entry in reversed(entries):
        if entry.promotes:
            return None
        if entry.verdict == "PENDING":
            later = entries[entries.index(entry) + 1 :]
            return None if any(one.sha256 == entry.sha256 and one.judgement is not None for one in later) else entry
    return None


def spent(entries: Sequence[Entry], test_sha256: str) -> int:
    """The looks at a test set that are used up: those that count and did not promote, at once or by an approval."""
    approved = {entry.key for entry in entries if entry.verdict == "APPROVE"}
    looks = [entry for entry in entries if entry.judgement and not entry.promotes and entry.key not in approved]
    judgements = [entry.judgement or {} for entry in looks]
    return sum(bool(one.get("counts")) and (one.get("test") or {}).get("sha256") == test_sha256 for one in judgements)


def age_days(entries: Sequence[Entry]) -> float | None:
    """For how many days the champion has been so; None if there is none."""
    promoted = promotions(entries)
    return (now() - datetime.fromisoformat(promoted[-1].time)).total_seconds() / 86400 if promoted else None


def withdrawal_of(entries: Sequence[Entry], sha256: str) -> Entry | None:
    """The rollback that last replaced a model as champion; None if something else did, or if nothing did."""
    ended = next((entry for entry in reversed(entries) if entry.promotes and entry.champion == sha256), None)
    return ended if ended and ended.verdict == "ROLLBACK" else None


def outcome_of(decision: Decision, undone: Sequence[str], ran: bool = True) -> Outcome:
    """The exit code of a decision. `undone`: what could not be done; `ran`: whether there was something to do."""
    if undone:
        return Outcome.UNFINISHED
    if decision.verdict == "PENDING":
        return Outcome.PENDING
    if not ran or decision.is_champion:
        return Outcome.DONE
    return {"HOLD": Outcome.HELD, "REJECT": Outcome.REJECTED}.get(decision.verdict, Outcome.DONE)
