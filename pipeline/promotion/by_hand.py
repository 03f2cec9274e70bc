"""Decisions of a person: promote without a judgement, approve, roll back. Each is an entry of the journal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_value, sha256_of_json
from pipeline.promotion.gate import Params
from pipeline.promotion.journal import JOURNAL, Entry, Verdict, champion, now, promotions, read_journal, stamp
from pipeline.promotion.keep import Keeping, Kept, Options, begun, keep
from pipeline.promotion.retraining import Decision, judge_and_keep, locked_journal, locked_stages, open_request, read_gate, withdrawal_of


def promote(model: str | None, reason: str | None, options: Options) -> tuple[Decision, Kept]:
    """Judge a model now and keep what was decided; with a `reason`, promote it without a judgement. Raises PipelineError."""
    params = read_gate()
    with locked_stages(), locked_journal():
        return judge_and_keep(params, options, model) if reason is None else _force(model, reason, params, options)


def _force(model: str | None, reason: str, params: Params, options: Options) -> tuple[Decision, Kept]:
    from pipeline.networks.artifact import verify_model
    from pipeline.promotion.judging import choose_challenger

    name = model or choose_challenger(params)
    sha256 = verify_model(Path("models") / name)
    if read_value(Path("results") / name / "scores.json", "model_sha256") != sha256:
        raise PipelineError(f"results/{name}: is not about models/{name}/model.onnx; run `dvc repro`")
    present = champion(read_journal())
    if present and present.sha256 == sha256:
        return _finish("FORCE", name, f"{name} is the champion already", options)
    return _keep_entry(_by_hand("FORCE", reason, name, sha256, present), options, is_new=True)


def rollback(to: str | None, reason: str | None, options: Options) -> tuple[Decision, Kept]:
    """Make an earlier champion the champion again: the one whose sha256 begins with `to`, else the latest that was never rolled back.

    Raises PipelineError if there is none. If a rollback was interrupted, the same command finishes it.
    """
    with locked_journal():
        entries = read_journal()
        last = _unfinished("ROLLBACK", entries)
        if last and (to is None or last.sha256.startswith(to)):
            return _finish("ROLLBACK", last.model, f"the rollback of {last.time} is finished", options)
        target = _find_target(entries, to)
        _restore(target)
        source = next((entry for entry in reversed(entries) if entry.sha256 == target.sha256 and entry.commit), target)
        text = reason or f"back to the champion of {target.time}"
        return _keep_entry(_by_hand("ROLLBACK", text, target.model, target.sha256, champion(entries), source), options)


def _find_target(entries: Sequence[Entry], to: str | None) -> Entry:
    promoted = promotions(entries)
    if not promoted:
        raise PipelineError(f"{JOURNAL}: no model was promoted yet; run `pipeline retrain`")
    earlier = [entry for entry in reversed(promoted) if entry.sha256 != promoted[-1].sha256]
    if to is None:
        if good := [entry for entry in earlier if withdrawal_of(entries, entry.sha256) is None]:
            return good[0]
        raise PipelineError(f"{JOURNAL}: no champion before {promoted[-1].model} is left; `pipeline history` lists all, for --to SHA256")
    if found := [entry for entry in earlier if entry.sha256.startswith(to)]:
        if len({entry.sha256 for entry in found}) > 1:
            raise PipelineError(f"--to {to}: begins more than one sha256; give more digits")
        return found[0]
    if to and promoted[-1].sha256.startswith(to):
        raise PipelineError(f"--to {to}: is the champion; `pipeline history` lists the others")
    raise PipelineError(f"--to {to}: no model with this sha256 was ever the champion; `pipeline history` lists them")


def approve(reason: str | None, options: Options) -> tuple[Decision, Kept]:
    """Promote the model of the latest PENDING. Raises PipelineError if there is none, or if a later decision has overtaken it.

    If an approval was interrupted, the same command finishes it.
    """
    with locked_journal():
        entries = read_journal()
        if last := _unfinished("APPROVE", entries):
            return _finish("APPROVE", last.model, f"the approval of {last.time} is finished", options)
        request = open_request(entries)
        if request is None:
            raise PipelineError(f"{JOURNAL}: nothing waits for an approval; `pipeline history` lists all decisions")
        _restore(request)
        text = reason or f"approved: {request.reason}"
        entry = _by_hand("APPROVE", text, request.model, request.sha256, champion(entries), request)
        return _keep_entry(replace(entry, key=request.key), options)


def _unfinished(verdict: Verdict, entries: Sequence[Entry]) -> Entry | None:
    """The entry that made the present champion, if it has this verdict and its steps are not all done."""
    last = begun()
    return last if last and last.verdict == verdict and last == champion(entries) else None


def _by_hand(verdict: Verdict, reason: str, model: str, sha256: str, present: Entry | None, source: Entry | None = None) -> Entry:
    """An entry without a judgement. `source`: the entry whose commit and lock are those of the model."""
    time, before = stamp(now()), present.sha256 if present else None
    key = sha256_of_json([verdict, sha256, before, now().isoformat()])
    commit, lock_sha256 = (source.commit, source.lock_sha256) if source else (None, None)
    return Entry(time, verdict, reason, model, sha256, before, key, commit=commit, lock_sha256=lock_sha256)


def _keep_entry(entry: Entry, options: Options, is_new: bool = False) -> tuple[Decision, Kept]:
    """`is_new`: whether the model may have no folder of champions/ and no commit yet."""
    work = Keeping(entry, f"{entry.verdict} {entry.model}", options, stores=is_new, commits=is_new)
    return Decision(entry.verdict, entry.model, [entry.reason], entry=entry), keep(work)


def _finish(verdict: Verdict, model: str, reason: str, options: Options) -> tuple[Decision, Kept]:
    """Take the steps that an earlier command left, without another entry."""
    return Decision(verdict, model, [reason]), keep(Keeping(None, f"{verdict} {model}", options, commits=False))


def _restore(entry: Entry) -> None:
    from pipeline.promotion.champions import restore

    restore(entry.sha256)
