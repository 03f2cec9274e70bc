"""Decisions of a person: promote without a judgement, approve, roll back. Each is an entry of the journal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_value, sha256_of_json
from pipeline.promotion.gate import Params
from pipeline.promotion.journal import JOURNAL, Entry, Verdict, champion, now, read_journal, reigns, stamp
from pipeline.promotion.keep import Keeping, Kept, Options, begun, keep
from pipeline.promotion.retraining import (
    Decision,
    Outcome,
    judge_and_keep,
    locked_journal,
    locked_stages,
    open_request,
    outcome_of,
    read_gate,
)


def promote(model: str | None, reason: str | None, options: Options) -> tuple[Decision, Kept, Outcome]:
    """Judge a model now and keep what was decided; with a `reason`, promote it without a judgement. Raises PipelineError."""
    params = read_gate()
    with locked_stages(), locked_journal():
        if reason is None:
            decision, kept = judge_and_keep(params, options, model)
        else:
            decision, kept = _force(model, reason, params, options)
    return decision, kept, outcome_of(decision, kept, True, kept.undone)


def _force(model: str | None, reason: str, params: Params, options: Options) -> tuple[Decision, Kept]:
    from pipeline.networks.artifact import verify_model
    from pipeline.promotion.judging import choose_challenger

    name = model or choose_challenger(params)
    sha256 = verify_model(Path("models") / name)
    if read_value(Path("results") / name / "scores.json", "model_sha256") != sha256:
        raise PipelineError(f"results/{name}: is not about models/{name}/model.onnx; run `dvc repro`")
    present = champion(read_journal())
    if present and present.sha256 == sha256:
        return _keep_by_hand(None, f"{name} is the champion already", name, "FORCE", options)
    entry = _by_hand("FORCE", reason, name, sha256, present)
    return _keep_by_hand(entry, reason, name, "FORCE", options, stores=True, commits=True)


def rollback(to: str | None, reason: str | None, options: Options) -> tuple[Decision, Kept, Outcome]:
    """Make an earlier champion the champion again: the one before, or the one whose sha256 begins with `to`. Raises PipelineError.

    If a rollback was interrupted, the same command finishes it.
    """
    with locked_journal():
        entries = read_journal()
        last = begun()
        if last and last.verdict == "ROLLBACK" and last == champion(entries) and (to is None or last.sha256.startswith(to)):
            decision, kept = _keep_by_hand(None, f"the rollback of {last.time} is finished", last.model, "ROLLBACK", options)
            return decision, kept, outcome_of(decision, kept, True, kept.undone)
        target, present = _find_target(entries, to), champion(entries)
        _restore(target)
        source = next((entry for entry in reversed(entries) if entry.sha256 == target.sha256 and entry.commit), target)
        text = reason or f"back to the champion of {target.time}"
        entry = _by_hand("ROLLBACK", text, target.model, target.sha256, present, source)
        decision, kept = _keep_by_hand(entry, text, target.model, "ROLLBACK", options)
    return decision, kept, outcome_of(decision, kept, True, kept.undone)


def _find_target(entries: Sequence[Entry], to: str | None) -> Entry:
    reigning = reigns(entries)
    if not reigning:
        raise PipelineError(f"{JOURNAL}: no model was promoted yet; run `pipeline retrain`")
    earlier = [entry for entry in reversed(reigning) if entry.sha256 != reigning[-1].sha256]
    if to is None:
        if not earlier:
            raise PipelineError(f"{JOURNAL}: there is no champion before {reigning[-1].model}; `pipeline history` lists all decisions")
        return reigning[-2]
    if found := [entry for entry in earlier if entry.sha256.startswith(to)]:
        if len({entry.sha256 for entry in found}) > 1:
            raise PipelineError(f"--to {to}: begins more than one sha256; give more digits")
        return found[0]
    if to and reigning[-1].sha256.startswith(to):
        raise PipelineError(f"--to {to}: is the champion; `pipeline history` lists the others")
    raise PipelineError(f"--to {to}: no model with this sha256 was ever the champion; `pipeline history` lists them")


def approve(reason: str | None, options: Options) -> tuple[Decision, Kept, Outcome]:
    """Promote the model of the latest PENDING. Raises PipelineError if there is none, or if a later decision has overtaken it."""
    with locked_journal():
        entries = read_journal()
        last = begun()
        if last and last.verdict == "APPROVE" and last == champion(entries):
            decision, kept = _keep_by_hand(None, f"the approval of {last.time} is finished", last.model, "APPROVE", options)
            return decision, kept, outcome_of(decision, kept, True, kept.undone)
        request = open_request(entries)
        if request is None:
            raise PipelineError(f"{JOURNAL}: nothing waits for an approval; `pipeline history` lists all decisions")
        _restore(request)
        text = reason or f"approved: {request.reason}"
        entry = replace(_by_hand("APPROVE", text, request.model, request.sha256, champion(entries), request), key=request.key)
        decision, kept = _keep_by_hand(entry, text, request.model, "APPROVE", options)
    return decision, kept, outcome_of(decision, kept, True, kept.undone)


def _by_hand(verdict: Verdict, reason: str, model: str, sha256: str, present: Entry | None, source: Entry | None = None) -> Entry:
    """An entry without a judgement. `source`: the entry whose commit and lock are those of the model."""
    time, before = stamp(now()), present.sha256 if present else None
    key = sha256_of_json([verdict, sha256, before, now().isoformat()])
    commit, lock_sha256 = (source.commit, source.lock_sha256) if source else (None, None)
    return Entry(time, verdict, reason, model, sha256, before, key, commit=commit, lock_sha256=lock_sha256)


def _keep_by_hand(
    entry: Entry | None, reason: str, model: str, verdict: Verdict, options: Options, stores: bool = False, commits: bool = False
) -> tuple[Decision, Kept]:
    kept = keep(Keeping(entry, f"{verdict} {model}", options, stores, commits))
    return Decision(verdict, model, [reason], entry=entry), kept


def _restore(entry: Entry) -> None:
    from pipeline.promotion.champions import restore

    restore(entry.sha256)
