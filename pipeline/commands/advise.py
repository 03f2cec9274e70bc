"""`pipeline advise`: which network to take, and by which regime to train it, by what was measured on the pictures themselves."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commands.columns import align
from pipeline.commands.rewrite import PARAMS, set_params, spell
from pipeline.evaluation.advice import MUCH
from pipeline.params import model_names, read_section
from pipeline.training.settings import Settings


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("advise", help="say which network and which regime the pictures speak for")
    parser.add_argument("--write", action="store_true", help="set what it favours in params.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.set_defaults(run=_main)


def _main(parsed: argparse.Namespace) -> None:
    from pipeline.commands.evidence import find_evidence

    regimes = {name: read_section(f"models.{name}", Settings).regime for name in model_names()}
    facts = find_evidence()
    values = to_set(facts, regimes)
    print(json.dumps({**facts, "params": nested(values)}, indent=2) if parsed.json else show(facts, values))
    if parsed.write and values:
        set_params(values)
        print(f"Written: see `git diff {PARAMS}`.", file=sys.stderr)


def to_set(facts: Mapping[str, Any], regimes: Mapping[str, str]) -> dict[str, Any]:
    """What makes params.yaml follow the advice, by dotted name: an entry of that regime, where `models` has none; the network.

    `regimes`: those of the entries that are there, by their names.
    """
    network, regime, values = facts["network"], facts["regime"], dict[str, Any]()
    if regime not in regimes.values():
        values[f"models.{f'advised_{regime}' if regime in regimes else regime}"] = {"regime": regime}
    if network != facts["distance"]["network"]:
        values |= {"backbone.name": network, "backbone.weights": "packaged", "backbone.digest": None}
    return values


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"a.b": 1}` as `{a: {b: 1}}`, as params.yaml holds it."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def _lines(keys: Mapping[str, Any]) -> list[str]:
    return [f"  {key}: {spell(value)}" for key, value in keys.items()]


def show(facts: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What `find_evidence` found, for people: the data, both tables, and what to set in params.yaml."""
    regime, seconds = facts["regime"], facts["seconds"]
    return "\n".join(
        [
            *_data(facts),
            "",
            *_table("network", "log loss of a head", facts["networks"], {}),
            "",
            *_table("regime", "val log loss", facts["regimes"], seconds),
            "",
            f"Take {facts['network']}, {regime}: about {seconds[regime]:.0f} s a training on this machine.",
            *(["", f"To set in {PARAMS}, by hand or by --write:"] if values else [f"{PARAMS} has it already."]),
            *(line for section, keys in nested(values).items() for line in (f"{section}:", *_lines(keys))),
        ]
    )


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


def _table(title: str, figure: str, candidates: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> list[str]:
    """A row a candidate, from the simplest on."""
    rows = [[title, figure, *(["seconds"] if seconds else []), "difference, 95 % interval"]]
    rows += [
        [facts["name"], f"{facts['loss']:.3f}", *([f"{seconds[facts['name']]:.0f}"] if seconds else []), _difference(facts)]
        for facts in candidates
    ]
    return align(rows)


def _difference(facts: Mapping[str, Any]) -> str:
    if facts["rival"] is None:
        return "-"
    if facts["interval"] is None:
        return f"the same as {facts['rival']}"
    low, high = facts["interval"]
    verdict = "better" if facts["is_better"] else "not shown to be better"
    return f"{facts['difference']:+.3f} [{low:+.3f}, {high:+.3f}]: {verdict} than {facts['rival']}"
