"""`pipeline advise`: which network to take, and by which regime to train it, by what was measured on the pictures themselves."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluation.advice import MUCH


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("advise", help="say which network and which regime the pictures speak for")
    parser.add_argument("--write", action="store_true", help="set what it favours in params.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.set_defaults(run=_main)


def _main(parsed: argparse.Namespace) -> None:
    from pipeline.commands.evidence import find_evidence

    facts = find_evidence()
    print(json.dumps(facts, indent=2) if parsed.json else show(facts))


def show(facts: Mapping[str, Any]) -> str:
    """What `find_evidence` found, for people: the data, both tables, and what to write into params.yaml."""
    network, regime, seconds = facts["network"], facts["regime"], facts["seconds"]
    lines = [
        *_data(facts),
        "",
        *_table("network", "log loss of a head", facts["networks"], {}),
        "",
        *_table("regime", "val log loss after two epochs", facts["regimes"], seconds),
        "",
        f"Take {network}, {regime}: {seconds[regime]:.0f} s a training on this machine, unless it stops early. In params.yaml:",
        "",
        f"models: {{{regime}: {{regime: {regime}}}}}",
    ]
    if network != facts["distance"]["network"]:
        lines.append(f"backbone: {{name: {network}, weights: packaged, digest: null}}")
    return "\n".join(lines)


def _data(facts: Mapping[str, Any]) -> list[str]:
    """How much data there is, how far it is from the network's world, and what the sketch says of that."""
    far = facts["distance"]
    much, distant = ("much" if facts["is_much"] else "little"), ("far from" if far["is_far"] else "near to")
    return [
        f"{facts['training_pictures']:,} training pictures, {facts['a_class']:g} of a class (the median): {much} data; {MUCH:,} are much.",
        f"A head errs on {far['errors']:.1%} of them by the features of {far['network']}, on {far['untrained_errors']:.1%} by those of",
        f"the same network with random weights: {far['remaining']:.0%} of the errors remain, {distant} what it was trained on.",
        f"For that the sketch of the courses says: {facts['sketch']}. What was tried:",
    ]


def _table(title: str, figure: str, candidates: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> Iterator[str]:
    """A row a candidate, from the simplest on."""
    rows = [[title, figure, *(["seconds"] if seconds else []), "difference, 95 % interval"]]
    rows += [
        [facts["name"], f"{facts['loss']:.3f}", *([f"{seconds[facts['name']]:.0f}"] if seconds else []), _difference(facts)]
        for facts in candidates
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _difference(facts: Mapping[str, Any]) -> str:
    if facts["rival"] is None:
        return "-"
    if facts["interval"] is None:
        return f"the same as {facts['rival']}"
    low, high = facts["interval"]
    verdict = "better" if facts["is_better"] else "not shown to be better"
    return f"{facts['difference']:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict} than {facts['rival']}"
