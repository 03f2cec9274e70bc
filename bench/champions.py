"""Two champions in a project of their own, and the change from one to the other while a server answers.

    python -m bench.champions make MODEL_FOLDER PROJECT    a project without stages that keeps that model, its champion, and a variant
    python -m bench.champions swap PROJECT [ROLLBACK]      an entry of its journal makes the other one the champion
    python -m bench.champions watch MODEL_FOLDER           one client asks while the champion changes; prints what it saw

Under load, in the project that `make` made:

    python bench/serving.py --minutes 5 --swap "python -m bench.champions swap ." --rollback "python -m bench.champions swap . ROLLBACK"
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.files import read_json, sha256_of_file
from pipeline.networks.artifact import GOLDEN, write_facts, write_golden
from pipeline.promotion.journal import CHAMPIONS, JOURNAL, Entry, Verdict, append, champion, champion_dir, next_time, now, read_journal

LOOK_SECONDS = 0.5


def write_variant(folder: Path, to: Path) -> str:
    """Write a model that answers as the one in `folder` does but is another file. Return the sha256 of its model.onnx."""
    import onnx

    to.mkdir(parents=True)
    if (folder / "model.safetensors").is_file():
        shutil.copyfile(folder / "model.safetensors", to / "model.safetensors")
    facts = read_json(folder / "model.json")
    kept = {key: value for key, value in facts.items() if key not in ("model_sha256", "weights_sha256", "data_sha256")}
    write_facts(to, onnx.load(folder / "model.onnx"), {**kept, "variant": True}, [{"epoch": 0}])
    write_golden(to, 1)
    return sha256_of_file(to / "model.onnx")


def make_project(project: Path, folder: Path) -> tuple[str, str]:
    """Make a project without stages that keeps the model of `folder` and a variant of it as champions; the first is the champion.

    Return the sha256 of both.
    """
    first = sha256_of_file(folder / "model.onnx")
    kept = project / champion_dir(first)
    shutil.copytree(folder, kept)
    if not (kept / GOLDEN).is_file():
        write_golden(kept, 1)
    variant = project / "variant"
    second = write_variant(folder, variant)
    variant.rename(project / champion_dir(second))
    (project / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    promote(project, first)
    return first, second


def promote(project: Path, sha256: str, verdict: Verdict = "PROMOTE") -> None:
    """Make a model the champion of a project: append an entry to its journal, whole or not at all, as the commands do."""
    path = project / JOURNAL
    entries = read_journal(path)
    before = champion(entries)
    time_of_entry, key = next_time(now(), entries), f"bench {len(entries)}"
    append(Entry(time_of_entry, verdict, "a benchmark", "bench", sha256, before.sha256 if before else None, key), path)


@contextmanager
def serving(project: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `pipeline serve` in a project, on a free port of loopback; yield its process and its address. It ends by SIGTERM."""
    command = [sys.executable, "-m", "pipeline", "serve", "--port", "0", "--look-every", str(LOOK_SECONDS), *arguments]
    environment = {**os.environ, "DVC_ROOT": str(project), "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if "http://" not in line:
                raise RuntimeError(f"the server did not start: {line!r}")
            yield process, line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def swap_at(project: Path, changes: Sequence[tuple[float, str, Verdict]]) -> threading.Thread:
    """Promote each model that many seconds after now, in a thread, which is returned: `(seconds, sha256, verdict)`, in order."""

    def run() -> None:
        start = time.monotonic()
        for seconds, sha256, verdict in changes:
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            promote(project, sha256, verdict)

    thread = threading.Thread(target=run, name="swaps", daemon=True)
    thread.start()
    return thread


def ask(session: Any, address: str, picture: bytes) -> tuple[int, str]:
    """Status of an answer, and the sha256 of the model that made it."""
    answer = session.post(f"{address}/predict", data=picture, headers={"Content-Type": "application/octet-stream"}, timeout=30)
    return answer.status_code, answer.headers.get("X-Model-SHA256", "")


def watch(folder: Path, swaps: int) -> dict[str, Any]:
    """Ask one picture after the other while the champion changes that many times. Return what was seen."""
    import io

    import requests
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((224, 224), 64).convert("RGB").save(file, "JPEG")
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        names = make_project(project, folder)
        plan = [(2.0 + 2 * number, names[(number + 1) % 2], "ROLLBACK" if number % 2 else "PROMOTE") for number in range(swaps)]
        statuses: dict[int, int] = {}
        seen: list[str] = []
        slowest = 0.0
        with serving(project) as (_, address), requests.Session() as session:
            end = time.monotonic() + plan[-1][0] + 4
            thread = swap_at(project, plan)  # type: ignore[arg-type]
            while time.monotonic() < end:
                start = time.monotonic()
                status, sha256 = ask(session, address, file.getvalue())
                slowest = max(slowest, time.monotonic() - start)
                statuses[status] = statuses.get(status, 0) + 1
                seen += [] if seen and seen[-1] == sha256 else [sha256]
            thread.join()
            following = session.get(f"{address}/metadata", timeout=30).json()["following"]
    return {"statuses": statuses, "models_seen": len(seen), "slowest_ms": round(1000 * slowest, 1), "following": following}


def swap(project: Path, verdict: Verdict) -> str:
    """Make the other one of a project's two champions the champion. Return its sha256."""
    before = champion(read_journal(project / JOURNAL))
    sums = sorted(sha256_of_file(path) for path in (project / CHAMPIONS).glob("*/model.onnx"))
    other = next(sha256 for sha256 in sums if before is None or sha256 != before.sha256)
    promote(project, other, verdict)
    return other


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, folders in {"make": ("folder", "project"), "swap": ("project",), "watch": ("folder",)}.items():
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(folder, type=lambda text: Path(text).resolve())
    commands.choices["swap"].add_argument("verdict", choices=("PROMOTE", "ROLLBACK"), nargs="?", default="PROMOTE")
    commands.choices["watch"].add_argument("--swaps", type=int, default=2)
    given = parser.parse_args()
    if given.command == "make":
        given.project.mkdir(parents=True, exist_ok=True)
        print(*make_project(given.project, given.folder))
    elif given.command == "swap":
        print(swap(given.project, given.verdict))
    else:
        print(json.dumps(watch(given.folder, given.swaps), indent=2))


if __name__ == "__main__":
    main()
