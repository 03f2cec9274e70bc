"""Retraining: what is judged, what was decided before, which exit code that has; and the decisions of a person."""

import json
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.promotion import by_hand
from pipeline.promotion.journal import JOURNAL, Entry, champion, read_journal
from pipeline.promotion.keep import Options
from pipeline.promotion.retraining import Outcome, age_days, open_request, outcome_of, read_gate, retrain, spent
from tests.promotions import TESTED, install, set_clock, write_candidate, write_gate


class Dvc:
    """What DVC answers: whether something changed, which stages run, and whether the last of them fails."""

    def __init__(self):
        self.status, self.stages, self.code = "{}", [], 0

    def __call__(self, *arguments, **_):
        import subprocess

        printed = self.status if arguments[0] == "status" else "".join(f"Running stage '{name}':\n" for name in self.stages)
        return subprocess.CompletedProcess(arguments, self.code if arguments[0] == "repro" else 0, printed, "")

    def will_run(self, *stages, code=0):
        self.status, self.stages, self.code = json.dumps({name: [] for name in stages}), list(stages), code


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    """A project without git, whose challenger is `small`; its DVC is a fake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    install(monkeypatch)
    answers = Dvc()
    monkeypatch.setattr("pipeline.core.dvc.run_dvc", answers)
    write_gate()
    write_candidate("small", b"one")
    return answers


def again(verdict="PROMOTE", content=None, publish=lambda: None, refresh=lambda: ("0", "0")):
    if content:
        write_candidate("small", content)
    Path("verdict").write_text(verdict)
    return retrain(refresh, publish, Options())


def outcome_by_hand(decided):
    decision, kept = decided
    return outcome_of(decision, kept.undone)


def verdicts():
    return [entry.verdict for entry in read_journal()]


def test_the_first_champion_is_promoted_and_the_next_run_finds_nothing_changed(dvc):
    facts, outcome = again()
    assert (outcome, facts["decision"], facts["model"]) == (Outcome.DONE, "PROMOTE", "small")
    assert facts["reasons"] == ["as the file says, look 1", "a note"]
    assert facts["figures"]["values"]["challenger"] == {"value": 0.9, "low": 0.8, "high": 0.95}
    facts, outcome = again("REJECT")
    assert (outcome, facts["summary"], facts["reasons"]) == (Outcome.DONE, "nothing changed", ["small is the champion already"])
    assert verdicts() == ["PROMOTE"]


@pytest.mark.parametrize(("verdict", "expected"), [("HOLD", Outcome.HELD), ("REJECT", Outcome.REJECTED), ("PENDING", Outcome.PENDING)])
def test_each_decision_has_its_exit_code_is_entered_once_and_spends_one_look(dvc, verdict, expected):
    again()
    dvc.will_run("train@small")
    facts, outcome = again(verdict, b"two")
    assert (outcome, facts["exit_code"], facts["ran"]) == (expected, int(expected), ["train@small"])
    dvc.status = "{}"
    facts, outcome = again("PROMOTE")
    assert (outcome, verdicts()) == (Outcome.PENDING if verdict == "PENDING" else Outcome.DONE, ["PROMOTE", verdict])
    assert facts["reasons"] == [f"judged on {read_journal()[1].time}, {verdict}: as the file says, look 1"]
    assert spent(read_journal(), TESTED) == 1
    assert again("HOLD", b"three")[0]["reasons"][0] == "as the file says, look 2"


def test_what_a_shadow_showed_since_is_said_with_the_older_decision(dvc):
    again()
    again("PENDING", b"two")
    Path("shadow").write_text("in shadow, it agreed on 90 of 100 pictures")
    facts, outcome = again("PENDING")
    assert facts["reasons"][1:] == ["in shadow, it agreed on 90 of 100 pictures"]
    assert (outcome, len(read_journal())) == (Outcome.PENDING, 2)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["download"], Outcome.DATA_FAULT),
        (["download", "split"], Outcome.DATA_FAULT),
        (["split", "embed"], Outcome.FAILURE),
        ([], Outcome.FAILURE),
    ],
)
def test_the_stage_that_fails_decides_whether_it_is_a_fault_of_the_data(dvc, stages, expected):
    dvc.will_run(*stages, code=255)
    dvc.status = '{"split": []}'
    facts, outcome = again()
    assert (outcome, facts["decision"], facts["ran"]) == (expected, None, stages)
    assert facts["reasons"][0].endswith("failed, see above; fix it and run `pipeline retrain` again")
    assert not JOURNAL.exists()


def fault(text="it is away"):
    raise PipelineError(text)


def test_a_source_that_cannot_be_read_is_a_data_fault(dvc):
    facts, outcome = again(refresh=fault)
    assert (outcome, facts["reasons"], facts["exit_code"]) == (Outcome.DATA_FAULT, ["it is away"], 14)


def test_a_disk_that_is_full_is_a_failure_with_its_line(dvc, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["pipeline.promotion.judging"], "prepare", fail)
    facts, outcome = again()
    assert (outcome, facts["reasons"]) == (Outcome.FAILURE, ["[Errno 28] No space left on device"])
    assert not JOURNAL.exists()


def test_a_reason_of_any_bytes_and_characters_is_kept_and_read(dvc, monkeypatch, capsys):
    from pipeline.__main__ import main

    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    main(["promote", "small", "--force", "--reason", " a\udcff\x1b[31m\u2028\nb "])
    assert read_journal()[-1].reason == "a\ufffd\x1b[31m\u2028\nb"
    assert "\x1b" not in capsys.readouterr().out


def test_an_mlflow_that_is_away_is_unfinished_though_held_and_the_next_run_makes_up_for_it(dvc):
    again()
    Path("mlflow_away").touch()
    facts, outcome = again("HOLD", b"two", publish=fault)
    assert (outcome, facts["decision"], facts["published"]) == (Outcome.UNFINISHED, "HOLD", False)
    assert facts["undone"] == ["it is away", "MLflow: cannot be reached; start the server"]
    assert len(read_json(Path("registry.json"))["versions"]) == 1
    Path("mlflow_away").unlink()
    facts, outcome = again("HOLD")
    assert (outcome, facts["undone"], facts["summary"]) == (Outcome.DONE, [], "nothing changed")
    assert len(read_json(Path("registry.json"))["versions"]) == 2
    assert verdicts() == ["PROMOTE", "HOLD"]


def test_a_champion_whose_files_cannot_be_had_leaves_the_judgement_for_the_next_run(dvc):
    again()
    Path("champions").rename("elsewhere")
    facts, outcome = again("PROMOTE", b"two")
    assert (outcome, verdicts()) == (Outcome.UNFINISHED, ["PROMOTE"])
    assert facts["reasons"][0].endswith("is not here; run `dvc pull`")
    Path("elsewhere").rename("champions")
    assert (again("PROMOTE")[1], verdicts()) == (Outcome.DONE, ["PROMOTE", "PROMOTE"])


def test_while_another_one_runs_it_is_busy_and_changes_nothing(dvc):
    Path(".cache/locks").mkdir(parents=True)
    with FileLock(".cache/locks/retrain.lock"):
        facts, outcome = again(refresh=fault)
    assert (outcome, facts["outcome"], facts["decision"]) == (Outcome.BUSY, "BUSY", None)
    assert facts["reasons"] == [".cache/locks/retrain.lock: another `pipeline retrain` is running; wait until it ends"]


def test_a_project_without_a_gate_is_told_what_to_add(dvc):
    Path("params.yaml").write_text("seed: 1\n")
    facts, outcome = again()
    assert (outcome, facts["reasons"]) == (
        Outcome.FAILURE, ["params.yaml: gate: is missing; add it, docs/promotion.md lists its keys"],
    )  # fmt: skip


def test_a_champion_that_has_become_stale_is_judged_again(dvc, monkeypatch):
    again()
    again("HOLD", b"two")
    set_clock(monkeypatch.setattr, "2026-08-28T03:00:00Z")
    assert age_days(read_journal()) == 179
    assert again("PROMOTE")[0]["decision"] == "HOLD"
    set_clock(monkeypatch.setattr, "2026-08-30T03:00:00Z")
    assert again("PROMOTE")[0]["decision"] == "PROMOTE"
    assert verdicts() == ["PROMOTE", "HOLD", "PROMOTE"]


def ticking(monkeypatch):
    """A clock that shows the next day to each command."""
    for day in range(3, 29):
        set_clock(monkeypatch.setattr, f"2026-03-{day:02d}T03:00:00Z")
        yield day


def test_a_model_that_was_rolled_back_returns_by_force_alone(dvc, monkeypatch):
    days = ticking(monkeypatch)
    contents = (b"one", b"two", b"three")
    shas = [write_candidate("small", content) for content in contents]
    for content in contents:
        next(days)
        again("PROMOTE", content)
    next(days)
    decision, kept = by_hand.rollback(shas[0][:8], "worse in the field", Options())
    assert (decision.verdict, kept.undone) == ("ROLLBACK", [])
    assert read_json(Path("registry.json"))["aliases"] == {"champion": shas[0], "challenger": shas[2], "previous": shas[2]}
    next(days)
    facts, outcome = again("PROMOTE")
    assert (outcome, facts["reasons"]) == (
        Outcome.DONE, ["small was rolled back on 2026-03-06T03:00:00Z; `pipeline promote small --force --reason TEXT` brings it back"],
    )  # fmt: skip
    next(days)
    assert outcome_by_hand(by_hand.promote("small", "it was the camera", Options())) is Outcome.DONE
    assert champion(read_journal()).sha256 == shas[2]
    assert [entry.reason for entry in read_journal()[-2:]] == ["worse in the field", "it was the camera"]


def test_a_rollback_goes_to_the_champion_before_never_to_one_that_was_rolled_back_and_says_where_it_cannot(dvc, monkeypatch):
    days = ticking(monkeypatch)
    with pytest.raises(PipelineError, match="no model was promoted yet"):
        by_hand.rollback(None, None, Options())
    next(days)
    again()
    first = champion(read_journal())
    with pytest.raises(PipelineError, match="no champion before small"):
        by_hand.rollback(None, None, Options())
    next(days)
    again("PROMOTE", b"two")
    second = champion(read_journal())
    for to, cure in ((second.sha256, "is the champion"), ("zz", "was ever the champion")):
        with pytest.raises(PipelineError, match=cure):
            by_hand.rollback(to, None, Options())
    next(days)
    assert by_hand.rollback(None, None, Options())[0].entry.sha256 == first.sha256
    assert (champion(read_journal()).sha256, verdicts()) == (first.sha256, ["PROMOTE", "PROMOTE", "ROLLBACK"])
    next(days)
    with pytest.raises(PipelineError, match="no champion before small is left"):
        by_hand.rollback(None, None, Options())


def test_a_rollback_whose_mlflow_was_away_is_finished_by_the_same_command(dvc, monkeypatch):
    days = ticking(monkeypatch)
    for content in (b"one", b"two"):
        next(days)
        again("PROMOTE", content)
    first = read_journal()[0].sha256
    next(days)
    Path("mlflow_away").touch()
    assert outcome_by_hand(by_hand.rollback(None, None, Options())) is Outcome.UNFINISHED
    Path("mlflow_away").unlink()
    decision, kept = by_hand.rollback(None, None, Options())
    assert (decision.reasons, kept.undone) == (["the rollback of 2026-03-05T03:00:00Z is finished"], [])
    assert (read_json(Path("registry.json"))["aliases"]["champion"], len(read_journal())) == (first, 3)


def test_a_rollback_needs_not_wait_for_a_training(dvc, monkeypatch):
    days = ticking(monkeypatch)
    for content in (b"one", b"two"):
        next(days)
        again("PROMOTE", content)
    next(days)
    with FileLock(".cache/locks/retrain.lock"):
        assert outcome_by_hand(by_hand.rollback(None, None, Options())) is Outcome.DONE


def test_an_approval_promotes_and_gives_the_look_back(dvc, monkeypatch):
    days = ticking(monkeypatch)
    with pytest.raises(PipelineError, match="nothing waits for an approval"):
        by_hand.approve(None, Options())
    next(days)
    again()
    next(days)
    again("PENDING", b"two")
    pending = read_journal()[-1]
    assert (champion(read_journal()).sha256 != pending.sha256, spent(read_journal(), TESTED)) == (True, 1)
    next(days)
    decision, kept = by_hand.approve("looked at it", Options())
    assert (decision.entry.key, kept.undone) == (pending.key, [])
    assert (champion(read_journal()).sha256, spent(read_journal(), TESTED)) == (pending.sha256, 0)
    with pytest.raises(PipelineError, match="nothing waits for an approval"):
        by_hand.approve(None, Options())


def line(number, verdict, sha256, is_judged=True):
    return Entry(f"t{number}", verdict, "", "m", sha256, None, f"key {number}", {} if is_judged else None)


def test_a_request_is_overtaken_by_a_promotion_and_by_another_judgement_of_its_model():
    request = line(1, "PENDING", "a")
    assert open_request([request]) == request
    assert open_request([request, line(2, "HOLD", "b")]) == request
    assert open_request([request, line(2, "PENDING", "b")]).sha256 == "b"
    for later in (line(2, "HOLD", "a"), line(2, "PROMOTE", "b"), line(2, "ROLLBACK", "c", is_judged=False)):
        assert open_request([request, later]) is None
    assert open_request([]) is None


def test_promote_without_force_judges_now(dvc):
    Path("verdict").write_text("HOLD")
    assert outcome_by_hand(by_hand.promote(None, None, Options())) is Outcome.HELD
    assert verdicts() == ["HOLD"]


def test_the_hook_of_params_hears_of_a_retraining(dvc, monkeypatch):
    heard = []
    monkeypatch.setattr("pipeline.promotion.keep.call_hook", lambda command, entry: heard.append((command, entry.verdict)))
    write_gate(hook="tell everybody")
    again()
    again()
    assert heard == [("tell everybody", "PROMOTE")]
    assert read_gate().hook == "tell everybody"
