"""Compare `pipeline serve` with `mlflow models serve`: the same model, the same requests, one server at a time, driven by wrk on loopback.

    python bench/serving.py                                       the model that is served, 20 s each
    python bench/serving.py --model models/finetuned --seconds 60
    python bench/serving.py --minutes 5 --swap "pipeline promote finetuned --force" --rollback "pipeline rollback"

Run it in the root of a project. One upload in a hundred is broken. Prints the rate, p50 and p99 in milliseconds, the peak of the memory,
the requests without an answer, the HTTP answers by status, and the ratios. With `--minutes`, our server alone is driven for so long, its
memory is printed every tenth of the time, and the commands of `--swap` and `--rollback` run after one and two thirds of it.

The exit code is 1 if a goal is missed, if a request was lost, if there was a 5xx other than 503, or if memory grew by more than a tenth
from the first to the second half.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BROKEN_EVERY, PICTURES, CONNECTIONS = 100, 99, 16
GOAL_RATE, GOAL_MEMORY, MOST_GROWTH = 10, 0.25, 1.1
SCRIPT = """\
local requests, threads, next = {}, {}, 0
local statuses = {}
function setup(thread) table.insert(threads, thread) end
function init(arguments)
  local folder, path, kind = arguments[1], arguments[2], arguments[3]
  for number = 0, tonumber(arguments[4]) - 1 do
    local file = assert(io.open(folder .. "/" .. number, "rb"))
    requests[number] = wrk.format("POST", path, {["Content-Type"] = kind}, file:read("*a"))
    file:close()
  end
  count, answered = tonumber(arguments[4]), ""
end
function request() next = (next + 1) % count; return requests[next] end
function response(status)
  statuses[status] = (statuses[status] or 0) + 1
  local parts = {}
  for each, times in pairs(statuses) do table.insert(parts, each .. "=" .. times) end
  answered = table.concat(parts, ",")
end
function done(summary, latency)
  local all = {}
  for _, thread in ipairs(threads) do table.insert(all, thread:get("answered")) end
  local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %.3f %.3f %d %s\\n", summary.requests, summary.duration, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, lost, table.concat(all, ",")))
end
"""


@dataclass(frozen=True)
class Load:
    """What a server did under load: answers per second, milliseconds, megabytes, requests without an answer, answers by status."""

    name: str
    rate: float
    p50: float
    p99: float
    megabytes: float
    lost: int
    statuses: dict[str, int]

    def line(self) -> str:
        """A row of the table."""
        answers = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        return f"{self.name:<24}{self.rate:>9.1f}{self.p50:>9.1f}{self.p99:>9.1f}{self.megabytes:>9.0f}{self.lost:>6}  {answers}"


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    with contextlib.suppress(OSError):
        children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
        return [pid, *(one for child in children for one in family(child))]
    return []


def megabytes(pid: int, what: str) -> float:
    """`VmHWM`, the peak, or `VmRSS`, of a process and all that it started."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            found = re.search(rf"^{what}:\s+(\d+)", Path(f"/proc/{one}/status").read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total / 1024


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def server(command: list[str], port: int, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server and wait until it answers; end it and what it started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                    break
                if process.poll() is not None:
                    break
                time.sleep(0.2)
            else:
                process.kill()
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"{' '.join(command)}: does not start:\n{log.read().decode(errors='replace')[-2000:]}")
            yield process
        finally:
            started = family(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            for one in started:
                with contextlib.suppress(OSError):
                    os.kill(one, 9)


def ours(model: Path, port: int) -> list[str]:
    """The command of our server."""
    return [sys.executable, "-m", "pipeline", "serve", "--model", str(model.resolve()), "--port", str(port)]


def save_for_mlflow(model: Path, folder: Path) -> list[str]:
    """Save the model as `publish` logs it, and return MLflow's command without the port."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(ROOT / "pipeline/serving/pyfunc.py"),
        artifacts={"model": str(model / "model.onnx")},
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "picture")])),
        pip_requirements=[],
    )
    return ["mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local", "-h", "127.0.0.1", "-p"]


def write_bodies(pictures: list[bytes], folder: Path) -> None:
    """Write the bodies of requests: `raw/N` for /predict, `json/N` for /invocations; the last one is broken."""
    bodies = [pictures[number % len(pictures)] for number in range(PICTURES)]
    bodies.append(bodies[0][: len(bodies[0]) // 2])
    for name in ("raw", "json"):
        (folder / name).mkdir()
    for number, body in enumerate(bodies):
        (folder / "raw" / str(number)).write_bytes(body)
        record = {"dataframe_split": {"columns": ["picture"], "data": [[base64.b64encode(body).decode()]]}}
        (folder / "json" / str(number)).write_text(json.dumps(record))


def drive(name: str, process: subprocess.Popen[bytes], port: int, bodies: Path, path: str, seconds: int) -> Load:
    """Drive a server with wrk for so many seconds."""
    script = bodies / "load.lua"
    script.write_text(SCRIPT)
    folder, kind = ("raw", "application/octet-stream") if path == "/predict" else ("json", "application/json")
    arguments = [str(bodies / folder), path, kind, str(BROKEN_EVERY)]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), f"http://127.0.0.1:{port}"]
    done = subprocess.run([*command, "--", *arguments], capture_output=True, text=True, timeout=seconds + 60, check=True)
    found = re.search(r"^RESULT (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+) (.*)$", done.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(f"wrk: prints no result:\n{done.stdout}{done.stderr}")
    statuses = {status: int(count) for status, count in (pair.split("=") for pair in found[6].split(",") if pair)}
    rate = int(found[1]) / (int(found[2]) / 1e6)
    return Load(name, rate, float(found[3]), float(found[4]), megabytes(process.pid, "VmHWM"), int(found[5]), statuses)


def compare(model: Path, bodies: Path, seconds: int) -> bool:
    """Drive both servers in turn and print the table. Returns whether the goals are met."""
    command, loads = save_for_mlflow(model, bodies / "mlflow"), []
    for name, paths in (("pipeline serve", ("/predict", "/invocations")), ("mlflow models serve", ("/invocations",))):
        port = free_port()
        start, health = (ours(model, port), "/ready") if name == "pipeline serve" else ([*command, str(port)], "/ping")
        with server(start, port, health) as process:
            drive(name, process, port, bodies, paths[0], 3)  # warm
            for path in paths:
                loads.append(drive(f"{name.split()[0]} {path}", process, port, bodies, path, seconds))
                print(loads[-1].line(), flush=True)
    first, same, theirs = loads
    print(f"rate: {first.rate / theirs.rate:.1f} times MLflow's; at /invocations {same.rate / theirs.rate:.1f} times; goal {GOAL_RATE}")
    print(f"memory: {first.megabytes / theirs.megabytes:.2f} of MLflow's; goal {GOAL_MEMORY}")
    return first.rate >= GOAL_RATE * theirs.rate and first.megabytes <= GOAL_MEMORY * theirs.megabytes


def run_long(model: Path | None, bodies: Path, seconds: int, commands: list[str | None]) -> bool:
    """Drive our server for long, and change its model meanwhile. Returns whether nothing was lost and memory did not grow."""
    port = free_port()
    start = [word for word in ours(model or Path(), port) if model or word not in ("--model", str(Path().resolve()))]
    with server(start, port, "/ready") as process:
        drive("warm", process, port, bodies, "/predict", 3)
        grown: list[float] = []
        ended = threading.Event()

        def watch() -> None:
            for tenth in range(1, 10):
                if ended.wait(seconds / 10):
                    return
                grown.append(megabytes(process.pid, "VmRSS"))
                print(f"after {seconds * tenth / 10:.0f} s: {grown[-1]:.0f} MB", flush=True)
                command = commands[0] if tenth == 3 else commands[1] if tenth == 6 else None
                if command:
                    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - the user's own
                    print(f"$ {command}\n{done.stdout}{done.stderr}", end="", flush=True)

        watcher = threading.Thread(target=watch)
        watcher.start()
        load = drive("pipeline /predict", process, port, bodies, "/predict", seconds)
        ended.set()
        watcher.join()
    print(load.line())
    faults = {status: count for status, count in load.statuses.items() if status.startswith("5") and status != "503"}
    half = len(grown) // 2
    growth = max(grown[half:], default=0.0) / max(grown[:half], default=1.0)
    print(f"lost: {load.lost}; 5xx without 503: {sum(faults.values())}; memory of the second half: {growth:.2f} of the first")
    return not (load.lost or faults) and growth <= MOST_GROWTH


def main(arguments: argparse.Namespace) -> int:
    """Run the comparison or the long run."""
    if not shutil.which("wrk"):
        print("wrk is not on PATH; run `apt-get install wrk`", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from pipeline.promotion.champions import find_served

    model = find_served(arguments.model, Path.cwd())[1]
    suffixes = (".png", ".jpg", ".jpeg")
    files = sorted(path for path in arguments.pictures.rglob("*") if path.suffix.lower() in suffixes)
    if not files:
        print(f"{arguments.pictures}: contains no pictures; name a folder with --pictures", file=sys.stderr)
        return 2
    pictures = [path.read_bytes() for path in files[:: max(1, len(files) // PICTURES)]]
    with tempfile.TemporaryDirectory() as folder:
        bodies = Path(folder)
        write_bodies(pictures, bodies)
        print(f"{'server':<24}{'rate/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'peak MB':>9}{'lost':>6}  answers")
        if arguments.minutes:
            commands = [arguments.swap, arguments.rollback]
            return 0 if run_long(model if arguments.model else None, bodies, round(60 * arguments.minutes), commands) else 1
        return 0 if compare(model, bodies, arguments.seconds) else 1


def parse() -> Any:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name in models/, or a model folder (default: the one that is served)")
    parser.add_argument("--pictures", type=Path, default=Path("data/splits/test"), help="(default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=20, help="per server (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="drive our server alone for so long")
    parser.add_argument("--swap", help="a command that changes the champion, after a third of --minutes")
    parser.add_argument("--rollback", help="a command that changes it back, after two thirds")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parse()))
