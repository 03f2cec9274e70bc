"""Try architectures by name, each in a process of its own, and keep the results in docs/zoo.md.

    python bench/zoo.py resnet18 timm/vit_tiny_patch16_224
    python bench/zoo.py --torchvision        # all of torchvision's
    python bench/zoo.py --timm-families      # the smallest of each of timm's families
    python bench/zoo.py --timm               # all of timm's: days

Rows for the same versions are kept: it may be stopped at any time and continues where it was. Weights come from a package if one
contains them, and are random otherwise: the trial shows whether the pipeline works with a network, not how good it is.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from pipeline.core.files import atomic_file
from pipeline.networks import zoo

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "zoo.md"
COLUMNS = ("name", "parameters", "px", "features", "head", "built", "frozen", "in ONNX", "trained", "stored", "Grad-CAM")
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime")
SECONDS, GIGABYTES = 1800, 24  # bounds for one architecture


def head_of_table() -> list[str]:
    """Return the lines above the rows. They name the versions of the trial."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        "# The zoo",
        "",
        "Each network was tried in the pipeline: built, without its own head; frozen, with a new head; exported to ONNX with it, and",
        "compared with torch; trained as a whole for some steps, which lower the loss; stored and loaded again; explained by Grad-CAM. px:",
        "the image size of the trial, the smallest of 64, 96, 128 and the network's own that it accepts. A cell other than `yes` contains",
        "the reason.",
        "",
        "`python bench/zoo.py --torchvision --timm-families` tries all of torchvision's networks and the smallest of each of timm's",
        "families. It keeps rows of the versions below; `--again` replaces them. `python bench/zoo.py NAME` tries one network.",
        "",
        f"Versions: {versions}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
    ]


def read_rows() -> dict[str, list[str]]:
    """Return the rows of the table by name, or none if they are for other versions or of another form."""
    head = head_of_table()
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.is_file() else []
    if lines[: len(head)] != head:
        return {}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[len(head) :]]
    return {row[0]: row for row in rows}


def write_rows(rows: dict[str, list[str]], order: Sequence[str]) -> None:
    """Write the table, torchvision's networks before timm's."""
    known = {name: place for place, name in enumerate(order)}
    lines = [f"| {' | '.join(rows[name])} |" for name in sorted(rows, key=lambda name: (known.get(name, len(known)), name))]
    with atomic_file(TABLE) as partial:
        partial.write_text("\n".join([*head_of_table(), *lines]) + "\n", encoding="utf-8")


def try_apart(name: str) -> list[str]:
    """Return the row of an architecture, tried in a process with bounds on time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--here", folder, name]
        environment = {**os.environ, "DVC_ROOT": folder, "PYTHONPATH": str(ROOT)}
        try:
            ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return _failed(name, f"took more than {SECONDS} s")
    if ended.returncode:
        last_line = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return _failed(name, f"ended with {ended.returncode}: {last_line[:120]}")
    result = json.loads(ended.stdout.splitlines()[-1])
    return [_cell(result.get(column, "-")) for column in COLUMNS]


def smallest_of_families() -> list[str]:
    """Return the network with the fewest parameters of each of timm's modules."""
    import timm
    import torch

    smallest: dict[str, tuple[int, str]] = {}
    for family in tqdm(timm.list_modules(), desc="families", unit="family"):
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                parameters = sum(tensor.numel() for tensor in timm.create_model(name).parameters())
            smallest[family] = min(smallest.get(family, (parameters, name)), (parameters, name))
    return [qualified(name) for _, name in smallest.values()]


def qualified(name: str) -> str:
    """Return a name of timm's as params.yaml spells it: with a prefix if torchvision has the same."""
    return f"timm/{name}" if name in zoo.torchvision_names() else name


def _failed(name: str, reason: str) -> list[str]:
    result = {"name": name, "built": reason}
    return [_cell(result.get(column, "-")) for column in COLUMNS]


def _cell(text: str) -> str:
    return text.replace("|", "¦")


def _try_here(name: str, folder: Path) -> None:
    import torch
    from trial import try_out

    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    torch.set_num_threads(1)
    print(json.dumps(try_out(name, folder)))


def _names(parsed: argparse.Namespace) -> list[str]:
    names = list(parsed.names)
    names += zoo.torchvision_names() if parsed.torchvision else []
    names += smallest_of_families() if parsed.timm_families else []
    names += [qualified(name) for name in zoo.timm_names()] if parsed.timm else []
    return list(dict.fromkeys(names))


def main() -> None:
    parser = argparse.ArgumentParser(description="Try architectures, each in a process of its own; the table is docs/zoo.md.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--torchvision", action="store_true", help="all of torchvision's")
    parser.add_argument("--timm-families", action="store_true", help="the smallest of each of timm's families")
    parser.add_argument("--timm", action="store_true", help="all of timm's")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.here:
        _try_here(parsed.names[0], parsed.here)
        return
    rows = read_rows()
    order = [*zoo.torchvision_names(), *map(qualified, zoo.timm_names())]
    for name in tqdm([name for name in _names(parsed) if parsed.again or name not in rows], unit="network"):
        rows[name] = try_apart(name)
        write_rows(rows, order)


if __name__ == "__main__":
    main()
