"""`pipeline audit`: what `split` found in the pictures."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json

_SHOWN = 3  # findings of a kind


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("audit", help="print what is wrong or odd with the pictures, and what was left out")
    parser.add_argument("--all", action="store_true", help=f"every finding, not only the first {_SHOWN} of each kind")
    parser.set_defaults(run=lambda parsed: print("\n".join(describe(Path("data/audit.json"), None if parsed.all else _SHOWN))))


def describe(path: Path, shown: int | None) -> Iterator[str]:
    """The lines to print: how many pictures there are, then each kind of finding with the first of them. Raises PipelineError."""
    from pipeline.data.findings import KINDS

    if not path.is_file():
        raise PipelineError(f"{path}: is not there; run `dvc repro`")
    audit = read_json(path)
    yield f"{audit['pictures']} pictures are used, {audit['quarantined']} left out."
    for kind, (title, fate) in KINDS.items():
        findings = [finding for finding in audit["findings"] if finding["kind"] == kind]
        if findings:
            yield f"\n{title}: {len(findings)}, {fate}"
        for finding in findings[:shown]:
            yield f"  {finding['sentence']}"
        if len(findings) > len(findings[:shown]):
            yield f"  and {len(findings) - len(findings[:shown])} more (--all)"
