"""`pipeline schedule`: print or write what a scheduler needs to run `pipeline retrain`, with the steps that install it as comments."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import PipelineError

_TEMPLATES = Path(__file__).with_name("schedules")
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_TIME = re.compile(r"(?:([A-Za-z,]+) )?([01]?\d|2[0-3]):([0-5]\d)")
_FORMS = {
    "systemd": "a service and a timer",
    "cron": "a line of a crontab",
    "github": "a workflow",
    "kubernetes": "a CronJob and its claim",
}
# What the manager of a user cannot give up, since it has no capabilities. ProtectClock and PrivateDevices would hide GPUs.
_SYSTEM_SANDBOX = """\
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
"""
_NAME_LENGTH = 40  # a CronJob's name has at most 52 characters, those that a user appends included


@dataclass(frozen=True)
class Time:
    """When a schedule fires: an hour and a minute, on some days of the week (0: Sunday) or, if there are none, on each."""

    hour: int
    minute: int
    days: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The time that a user typed, as `03:00` or `Mon,Thu 03:00`. Raises argparse.ArgumentTypeError."""
        match = _TIME.fullmatch(text.strip())
        names = match[1].title().split(",") if match and match[1] else []
        if not match or set(names) - set(_DAYS):
            raise argparse.ArgumentTypeError(f"{text!r} is not a time; write one as 03:00, or as 'Mon,Thu 03:00'")
        return cls(int(match[2]), int(match[3]), tuple(sorted({_DAYS.index(name) for name in names})))

    @property
    def cron(self) -> str:
        """The five fields of a crontab."""
        return f"{self.minute} {self.hour} * * {','.join(map(str, self.days)) or '*'}"

    @property
    def calendar(self) -> str:
        """The value of systemd's OnCalendar."""
        days = f"{','.join(_DAYS[day] for day in self.days)} " if self.days else ""
        return f"{days}*-*-* {self.hour:02}:{self.minute:02}:00"


@dataclass(frozen=True)
class Job:
    """What a schedule runs: the project, its Python, and the user whose rights it has.

    `writable`: folders outside of the project that it writes to; `pushes`: whether commits are pushed with git.
    """

    project: Path
    python: Path
    user: str
    writable: tuple[Path, ...] = ()
    pushes: bool = False

    @property
    def name(self) -> str:
        """`retrain-` and the project's folder, in letters, digits and hyphens."""
        folder = re.sub(r"[^a-z0-9]+", "-", self.project.name.lower())
        return f"retrain-{folder}"[:_NAME_LENGTH].strip("-")


def add_schedule(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("schedule", help="print what systemd, cron, GitHub or Kubernetes need to run `pipeline retrain`")
    form = parser.add_mutually_exclusive_group(required=True)
    for name, words in _FORMS.items():
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=words)
    parser.add_argument("--at", metavar="TIME", type=Time.parse, default=Time(3, 0), help=(
        "as 03:00 (the default), or 'Mon,Thu 03:00'; local time with --systemd and --cron, UTC with the others"))  # fmt: skip
    parser.add_argument("--user", action="store_true", help="with --systemd: units of your user in place of the system's")
    parser.add_argument("--push", action="store_true", help="`pipeline retrain` also pushes its commits with git; with --github always")
    parser.add_argument("--output", metavar="FOLDER", help="write files into this folder, and print their paths")
    parser.set_defaults(run=print_schedule, here=Path.cwd())  # the user's working directory: commands run in the project's root


def print_schedule(parsed: argparse.Namespace) -> None:
    """Print the files of a schedule, or write them. Raises PipelineError."""
    from pipeline.core.files import atomic_file, output_path, writing

    if parsed.user and parsed.form != "systemd":
        raise PipelineError("--user: is for --systemd alone; leave it out")
    files = schedule_files(parsed.form, parsed.at, find_job(parsed.push, parsed.form), parsed.user)
    if parsed.output is None:
        print("\n".join(f"# {name}\n{text}" if len(files) > 1 else text for name, text in files.items()), end="")
        return
    for name, text in files.items():
        path = output_path(parsed.here, f"{parsed.output}/{name}")
        with writing(path), atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
        print(path)


def find_job(pushes: bool = False, form: str = "systemd") -> Job:
    """The project of the working directory, this Python and this user; for systemd also DVC's folders elsewhere."""
    import getpass
    import sys

    project = Path.cwd()
    return Job(project, Path(sys.executable), getpass.getuser(), _dvc_folders(project) if form == "systemd" else (), pushes)


def _dvc_folders(project: Path) -> tuple[Path, ...]:
    """The folders of DVC's remotes and of its cache that are outside of the project."""
    import subprocess

    from pipeline.core.dvc import run_dvc

    listed = run_dvc("config", "--list", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    folders = {Path(path) for path in re.findall(r"^(?:remote\..+\.url|cache\.dir)=(/.*)$", listed, re.MULTILINE)}
    return tuple(sorted(folder for folder in folders if not folder.is_relative_to(project)))


def schedule_files(form: str, at: Time, job: Job, is_user: bool = False) -> dict[str, str]:
    """`name: content` of the files that a scheduler needs. `is_user`: systemd's units of a user, not of the system.

    Raises PipelineError if a path contains what the form cannot quote.
    """
    values = {"name": job.name, "cron": at.cron, "calendar": at.calendar, "push": " --push" * job.pushes, **_codes()}
    if form == "systemd":
        values |= _unit_values(job, is_user)
        return {f"{job.name}.{kind}": _fill(kind, values) for kind in ("service", "timer")}
    if form == "cron":
        quoted = {"directory": _in_crontab(job.project), "python": _in_crontab(job.python)}
        return {f"{job.name}.crontab": _fill("crontab", values | quoted)}
    if form == "github":
        return {"retrain.yml": _fill("github.yml", values)}
    return {f"{job.name}.yaml": _fill("kubernetes.yaml", values)}


def _codes() -> dict[str, str]:
    """The exit codes as the templates name them: those that are decisions, and the words for all."""
    from pipeline.promotion.retraining import Outcome

    decisions = (Outcome.HELD, Outcome.REJECTED, Outcome.PENDING)
    return {
        "decisions": " ".join(str(int(code)) for code in decisions),
        "decision_cases": "|".join(str(int(code)) for code in decisions),
        "outcomes": f"\n{12 * ' '}".join(f"{int(code)}) outcome='{code.name.lower().replace('_', ' ')}' ;;" for code in Outcome),
        "busy": str(int(Outcome.BUSY)),
    }


def _unit_values(job: Job, is_user: bool) -> dict[str, str]:
    """The values of systemd's service."""
    if temporary := [path for path in (job.project, job.python) if path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp")]:  # noqa: S108
        raise PipelineError(f"{temporary[0]}: is in a temporary folder, which a service cannot see; move the project")
    if is_user:
        systemctl, journalctl, units, environment = "systemctl --user", "journalctl --user", "~/.config/systemd/user", "~/.config"
    else:
        systemctl, journalctl, units, environment = "sudo systemctl", "sudo journalctl", "/etc/systemd/system", "/etc"
    linger = "Without `loginctl enable-linger` the timer runs only while you are logged in." if is_user else "It runs with your rights."
    return {
        "systemctl": systemctl,
        "journalctl": journalctl,
        "units": units,
        "environment": f"{environment}/{job.name}.env",
        "sudo": "" if is_user else "sudo ",
        "linger": linger,
        "network": "" if is_user else "Wants=network-online.target\nAfter=network-online.target\n",
        "user": "" if is_user else f"User={job.user}\n",
        "sandbox": "" if is_user else _SYSTEM_SANDBOX,
        "directory": _in_unit(job.project)[1:-1],  # systemd takes the rest of this line as it is
        "python": _in_unit(job.python),
        "writable": " ".join([_in_unit(job.project), *(_in_unit(folder).replace('"', '"-', 1) for folder in job.writable)]),
    }


def _in_unit(path: Path) -> str:
    """A path in a unit of systemd, which expands `%`. Raises PipelineError."""
    text = _expressible(path, "\"'\\$", "a unit of systemd")
    return '"' + text.replace("%", "%%") + '"'


def _in_crontab(path: Path) -> str:
    """A path for the shell in a crontab, in which `%` ends the command. Raises PipelineError."""
    import shlex

    return shlex.quote(_expressible(path, "\\", "a crontab")).replace("%", "\\%")


def _expressible(path: Path, refused: str, where: str) -> str:
    """The path as text. Raises PipelineError if it contains one of these characters, one of control, no UTF-8, or a space at an end."""
    text = str(path)
    found = [sign for sign in text if sign in refused or sign < " " or sign == "\x7f" or "\ud800" <= sign <= "\udfff"]
    if found or text != text.strip():
        raise PipelineError(f"{text!a}: {where} cannot name a path with {found[0] if found else ' '!a} there; move the project")
    return text


def _fill(template: str, values: Mapping[str, str]) -> str:
    """The text of a template, with a value for each `@name@`."""
    return re.sub(r"@([a-z_]+)@", lambda match: values[match[1]], (_TEMPLATES / template).read_text(encoding="utf-8"))
