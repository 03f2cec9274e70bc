"""`pipeline data refresh`: look at the source and pin what it holds now."""

import argparse
import sys
from typing import Any

from pipeline.commands.rewrite import PARAMS, set_params
from pipeline.data.limits import Limits
from pipeline.data.sources import find_source, measure_digest
from pipeline.errors import PipelineError
from pipeline.params import read_params, read_section


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("data", help="look after the pictures")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("refresh", help="look at download.source and rewrite download.digest")
    action.set_defaults(run=lambda parsed: print(describe(*refresh())))


def describe(before: str | None, after: str) -> str:
    """What a refresh did, in a line."""
    if before == after:
        return f"download.digest {after}: nothing changed"
    return f"download.digest {before} -> {after}: see `git diff params.yaml`, then run `dvc repro`"


def refresh() -> tuple[str | None, str]:
    """Pin the source as it is now in params.yaml, of which no other byte changes; the digest before and after."""
    section = read_params(PARAMS).get("download")
    if not isinstance(section, dict) or not isinstance(section.get("source"), str):
        raise PipelineError(f"{PARAMS}: download.source: is missing")
    if "digest" not in section:
        raise PipelineError(f"{PARAMS}: download.digest: is missing; write `digest: null` below `download`")
    before = section["digest"]
    source = find_source(section["source"])
    limits = read_section("download.limits", Limits, PARAMS)
    after = measure_digest(source, tuple(section.get("url_mirrors") or ()), limits)
    if source.known_digest not in (None, after):
        print(f"{source.title}: was known by the digest {source.known_digest}; look at the pictures before you train", file=sys.stderr)
    if before != after:
        set_params({"download.digest": after})
    return before, after
