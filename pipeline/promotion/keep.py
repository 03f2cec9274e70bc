"""Keep: carry out a decision in an order in which no step is taken without those before it. Every step may be repeated."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_value, sha256_of_file, write_json
from pipeline.promotion.journal import CHAMPIONS, JOURNAL, Entry, append, champion, champion_dir, now, read_journal, reigns, stamp

if TYPE_CHECKING:
    from pipeline.tracking.registry import Registration

DECISIONS = Path("decisions")  # the page that shows the journal, and the latest entry as JSON
_BEGUN = Path(".cache/promotion/begun.json")  # the entry whose steps are not all done
_FILES = ("params.yaml", "dvc.lock", "metrics", f":(glob){CHAMPIONS}/*.dvc", f"{CHAMPIONS}/.gitignore")  # git's pathspecs
_HOOK_SECONDS = 600.0


@dataclass(frozen=True)
class Options:
    """What was asked for. `skips_ci`: commits say `[skip ci]`; `pushes`: also to git's upstream; `hook`: the command of params.yaml."""

    skips_ci: bool = False
    pushes: bool = False
    hook: str | None = None


@dataclass
class Keeping:
    """What is to be kept.

    `entry`: the decision, None if there is none to enter, and only what is left of earlier ones is done; `stores`: whether
    models/<entry.model> becomes a folder of champions/; `commits`: whether the outs are pushed, and params.yaml, dvc.lock and metrics
    committed; `title`: of the commits.
    """

    entry: Entry | None
    title: str
    options: Options = field(default_factory=Options)
    stores: bool = False
    commits: bool = True


@dataclass(frozen=True)
class Kept:
    """What came of it: sentences about what was done now, and about what is undone; and whether the entry is in the journal."""

    done: Sequence[str]
    undone: Sequence[str]
    is_entered: bool


def keep(work: Keeping) -> Kept:
    """Take all steps that are not done yet. A fault stops the later ones and is reported, never raised.

    A process that is killed at any point leaves a state from which the same command reaches the same end.
    """
    done: list[str] = []
    for number, (_, step) in enumerate(STEPS):
        try:
            done += step(work)
        except (PipelineError, OSError) as error:
            later = [name for name, _ in STEPS[number + 1 :]]
            undone = [str(error), *([f"so these were left: {', '.join(later)}"] if later else [])]
            return Kept(done, undone, work.entry is not None and _is_entered(work.entry))
    _BEGUN.unlink(missing_ok=True)
    return Kept(done, [], work.entry is not None)


def begun() -> Entry | None:
    """The entry of the journal whose steps were interrupted or are not all done; None if there is none."""
    facts = read_value(_BEGUN, "entry")
    return next((entry for entry in reversed(read_journal()) if facts == asdict(entry)), None)


def aliases(entries: Sequence[Entry]) -> dict[str, str | None]:
    """MLflow's aliases by the journal: the sha256 of the champion, of the model that was judged last, and of the champion before."""
    reigning = [entry.sha256 for entry in reigns(entries)]
    judged = next((entry.sha256 for entry in reversed(entries) if entry.judgement is not None), None)
    first, second = ([None, None, *reigning])[-2:]
    return {"champion": second, "challenger": judged, "previous": first}


def registrations(entries: Sequence[Entry]) -> list["Registration"]:
    """What MLflow's registry should contain: one version per model of the journal, with its latest verdict."""
    from pipeline.tracking.registry import Registration

    latest = {entry.sha256: entry for entry in entries}
    committed = {entry.sha256: entry for entry in entries if entry.commit or entry.lock_sha256}
    found = []
    for sha256, entry in latest.items():
        source = committed.get(sha256, entry)
        facts = {"sha256": sha256, "commit": source.commit, "lock_sha256": source.lock_sha256}
        facts |= {"decision": entry.verdict, "decision_reason": entry.reason}
        tags = {key: value for key, value in facts.items() if value}
        decision = DECISIONS if entry is entries[-1] and DECISIONS.is_dir() else None
        found.append(Registration(sha256=sha256, name=entry.model, folder=_folder(entry), tags=tags, decision=decision))
    return found


def _folder(entry: Entry) -> Path | None:
    """A folder of this machine with the model of an entry."""
    for folder in (champion_dir(entry.sha256), Path("models") / entry.model):
        if read_value(folder / "model.json", "model_sha256") == entry.sha256 and (folder / "model.onnx").is_file():
            return folder
    return None


def _store(work: Keeping) -> list[str]:
    from pipeline.promotion.champions import store

    if not work.stores or work.entry is None:
        return []
    expected = champion_dir(work.entry.sha256)
    is_new = not expected.is_dir()
    folder = store(work.entry.model)
    if folder != expected:
        raise PipelineError(f"models/{work.entry.model}: changed after it was judged; run the command again")
    return [f"{folder}: keeps the model"] if is_new else []


def _push_outs(work: Keeping) -> list[str]:
    """Push whatever DVC's default remote lacks. Without such a remote there is nothing to do."""
    from pipeline.core.dvc import run_dvc

    named = run_dvc("config", "core.remote", capture_output=True) if work.commits and Path(".dvc").is_dir() else None
    if named is None or named.returncode or not (remote := named.stdout.strip()):
        return []
    if not _not_in_remote(remote):
        return []
    _run_dvc(remote, "push")
    left = _not_in_remote(remote)
    needed = [name for name in left if not name.startswith(f"{CHAMPIONS}/") or (work.entry and name.startswith(_name(work.entry)))]
    if needed:
        raise PipelineError(f"DVC remote {remote}: lacks {needed[0]}, which is not in DVC's cache either; run `dvc repro`, or `dvc pull`")
    lost = [f"DVC remote {remote}: lacks {name}, a champion that is not in DVC's cache either" for name in left]
    return [f"DVC remote {remote}: has all outs", *lost]


def _name(entry: Entry) -> str:
    return champion_dir(entry.sha256).as_posix()


def _not_in_remote(remote: str) -> list[str]:
    """The outs that the remote lacks, as it is now."""
    facts = json.loads(_run_dvc(remote, "data", "status", "--not-in-remote", "--json"))
    return [str(name) for name in facts.get("not_in_remote", [])]


def _run_dvc(remote: str, *arguments: str) -> str:
    from pipeline.core.dvc import run_dvc

    result = run_dvc(*arguments, capture_output=True)
    if result.returncode:
        raise PipelineError(f"DVC remote {remote}: {_last_line(result.stderr)}; the next run pushes again")
    return str(result.stdout)


def _commit_files(work: Keeping) -> list[str]:
    if not work.commits:
        return []
    if not has_git():
        return ["git: this is no repository, so nothing is committed"]
    lines = _commit(_FILES, f"Retrain: {work.title}", work.options)
    if work.entry is not None:
        work.entry = replace(work.entry, commit=_git("log", "-1", "--format=%H", "--", *_FILES).strip() or None)
    return lines


def _write_entry(work: Keeping) -> list[str]:
    """Append the entry, after a note of it: a later process knows by the note what is not done yet."""
    if work.entry is None or _is_entered(work.entry):
        return []
    _run_hook(work)  # for an entry before this one
    if work.commits:
        lock = Path("dvc.lock")
        work.entry = replace(work.entry, lock_sha256=sha256_of_file(lock) if lock.is_file() else None)
    work.entry = replace(work.entry, time=stamp(now()))
    write_json(_BEGUN, {"entry": asdict(work.entry), "has_run_hook": False})
    append(work.entry)
    return [f"{JOURNAL}: {work.entry.verdict} {work.entry.model}"]


def _is_entered(entry: Entry) -> bool:
    return any((other.key, other.verdict, other.sha256) == (entry.key, entry.verdict, entry.sha256) for other in read_journal())


def _commit_journal(work: Keeping) -> list[str]:
    entries = read_journal()
    if not entries or not has_git():
        return []
    return _commit((str(JOURNAL),), f"Journal: {entries[-1].verdict} {entries[-1].model}", work.options)


def _run_hook(work: Keeping) -> list[str]:
    """Run the hook for the entry that was begun, if it has not run yet. What goes wrong with it is one line on stderr."""
    entry = begun()
    if entry is None or read_value(_BEGUN, "has_run_hook"):
        return []
    fault = call_hook(work.options.hook, entry) if work.options.hook else None
    if fault:
        print(f"gate.hook: {fault}", file=sys.stderr)
    write_json(_BEGUN, {"entry": asdict(entry), "has_run_hook": True})
    return []


def call_hook(command: str, entry: Entry, seconds: float = _HOOK_SECONDS) -> str | None:
    """Run a command, without a shell, with the entry as JSON on stdin. Its output goes to stderr. Returns what went wrong, or None."""
    try:
        words = shlex.split(command)
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=2, text=True, encoding="utf-8", start_new_session=True)
    except (OSError, ValueError, IndexError) as error:
        return f"{command}: cannot be run ({error})"
    try:
        process.communicate(json.dumps(asdict(entry), ensure_ascii=False), timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # also what it started
        process.wait()
        return f"{command}: did not end within {seconds:g} seconds, and was killed"
    return f"{command}: exit code {process.returncode}" if process.returncode else None


def _push_commits(work: Keeping) -> list[str]:
    """Push to the upstream if that was asked for and it lacks a commit."""
    if not work.options.pushes:
        return []
    if not has_git():
        raise PipelineError("git: this is no repository, so nothing can be pushed; run `git init`")
    if _git("rev-list", "--count", "@{upstream}..HEAD").strip() == "0":
        return []
    _git("push", "--quiet")
    return ["git: pushed"]


def _write_page(_: Keeping) -> list[str]:
    from pipeline.report.decisions import write_decisions

    if entries := read_journal():
        write_decisions(DECISIONS, [asdict(entry) for entry in entries])
    return []


def _register(_: Keeping) -> list[str]:
    from pipeline.tracking.registry import update_registry

    entries = read_journal()
    return update_registry(registrations(entries), aliases(entries)) if entries else []


STEPS: tuple[tuple[str, Callable[[Keeping], list[str]]], ...] = (
    ("the copy in champions/", _store),
    ("the DVC remote", _push_outs),
    ("the commit of params.yaml, dvc.lock and metrics", _commit_files),
    (f"the entry in {JOURNAL}", _write_entry),
    (f"the commit of {JOURNAL}", _commit_journal),
    ("the hook", _run_hook),
    ("git's upstream", _push_commits),
    (f"{DECISIONS}/index.html", _write_page),
    ("MLflow's versions and aliases", _register),
)


def has_git() -> bool:
    """Whether the project is in a git repository, and git is installed."""
    try:
        return _git("rev-parse", "--is-inside-work-tree").strip() == "true"
    except PipelineError:
        return False


def _commit(paths: Sequence[str], message: str, options: Options) -> list[str]:
    """Commit what differs below some paths, and nothing else: what the user staged stays staged."""
    listed = _git("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", "--", *paths)
    changed = [f":(top,literal){entry[3:]}" for entry in listed.split("\0") if entry]
    if not changed:
        return []
    _git("add", "--all", "--", *changed)
    _git("commit", "--quiet", "--only", "--message", message + " [skip ci]" * options.skips_ci, "--", *changed)
    return [f"git: {message}"]


def _git(*arguments: str) -> str:
    """Run git, which may not ask for anything, and return its stdout. Raises PipelineError with what git says."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", *arguments]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "encoding": "utf-8", "errors": "surrogateescape", "env": environment}
    try:
        result: subprocess.CompletedProcess[str] = subprocess.run(command, capture_output=True, check=False, **options)
    except FileNotFoundError:
        raise PipelineError("git: is not installed; install it, and run the command again") from None
    if result.returncode:
        fault = _foremost(result.stderr or result.stdout)
        raise PipelineError(f"git {arguments[0]}: {fault}; mend that, and run the command again")
    return result.stdout


def _foremost(text: str) -> str:
    """The line of git's output that states the fault."""
    lines = [line for line in text.splitlines() if line.strip()]
    marks = (" ! ", "fatal:", "error:")
    return next((line.strip() for mark in marks for line in lines if line.startswith(mark)), lines[-1].strip() if lines else "failed")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["failed"])[-1].strip()


def verify_journal() -> list[str]:
    """Follow the champion from the journal to its files, git and MLflow; one line each. Without a journal there is nothing to follow.

    MLflow's versions and aliases are mended. An MLflow that is away is a line. Raises PipelineError for any other difference.
    """
    from pipeline.promotion.champions import champion_model, restore

    entries = read_journal()
    entry = champion(entries)
    if entry is None:
        return [f"{JOURNAL}: no model was promoted yet"] if entries else []
    folder = restore(entry.sha256)
    used, scored = champion_model(), read_value(folder / "results/scores.json", "model_sha256")
    if used is None or sha256_of_file(used / "model.onnx") != entry.sha256:
        raise PipelineError(f"{used}: `pipeline predict` would use it, but {JOURNAL} names {entry.sha256}; run `dvc pull`")
    if scored != entry.sha256:
        raise PipelineError(f"{folder}/results/scores.json: is about {scored}, not {entry.sha256}; run `dvc checkout --force {folder}.dvc`")
    lines = [f"{entry.sha256}  {folder}/model.onnx: the champion since {reigns(entries)[-1].time}, which `pipeline predict` uses"]
    return [*lines, *_verify_git(entries, entry), *_verify_registry(entries)]


def _verify_git(entries: Sequence[Entry], entry: Entry) -> list[str]:
    """Check that git has the champion and the journal, and that the commit has the dvc.lock that the journal names."""
    if not has_git():
        return ["git: this is no repository; what was decided is in this folder alone"]
    kept = f"{champion_dir(entry.sha256)}.dvc"
    if left := _git("status", "--porcelain=v1", "--untracked-files=all", "--", kept, str(JOURNAL)).split("\n")[0]:
        raise PipelineError(f"{left[3:]}: is not committed as it is; run `pipeline retrain`, or `git add` and `git commit`")
    if not _git("ls-files", "--", kept).strip():
        raise PipelineError(f"{kept}: is not in git; run `dvc add {champion_dir(entry.sha256)}`, and commit it")
    source = next((one for one in reversed(entries) if one.sha256 == entry.sha256 and one.commit and one.lock_sha256), None)
    if source is None:
        return [f"{JOURNAL} and {kept}: in git"]
    return [_verify_lock(str(source.commit), str(source.lock_sha256), kept)]


def _verify_lock(commit: str, lock_sha256: str, kept: str) -> str:
    from pipeline.core.files import sha256_of

    try:
        shown = _git("show", f"{commit}:./dvc.lock")
    except PipelineError:
        return f"{JOURNAL} and {kept}: in git; the commit {commit[:12]} is not in this clone, its dvc.lock was not checked"
    if sha256_of(shown.encode("utf-8", "surrogateescape")) != lock_sha256:
        raise PipelineError(f"{commit[:12]}: its dvc.lock is not the one that {JOURNAL} names; look at `git log promotions.jsonl`")
    return f"{JOURNAL} and {kept}: in git, with the dvc.lock of commit {commit[:12]}"


def _verify_registry(entries: Sequence[Entry]) -> list[str]:
    from pipeline.tracking.registry import check_registry, update_registry

    wanted = aliases(entries)
    try:
        mended = [f"mended: {line}" for line in update_registry(registrations(entries), wanted)]
        fault, others = check_registry({"champion": wanted.pop("champion")}, deep=True), check_registry(wanted)
    except PipelineError as error:
        return [f"{error}; its aliases were not checked"]
    if fault:
        raise PipelineError("; ".join(fault))
    same = "champion" if others else "champion, challenger and previous"  # another clone may have no file of a model that was only judged
    return [*mended, *others, f"MLflow: {same}: as the journal says, and with the champion's model.onnx"]
