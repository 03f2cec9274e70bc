"""Values set in params.yaml, of which no other byte changes."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError
from pipeline.files import atomic_file
from pipeline.params import parse_yaml

PARAMS = Path("params.yaml")


def set_params(values: Mapping[str, Any]) -> None:
    """Set each value at its dotted name: in the place of the old one, or as a new key behind the last one of its section.

    Raises PipelineError, and changes nothing, where the section is not there or is written in a way that this cannot edit.
    """
    text = PARAMS.read_bytes().decode()
    edited, wanted = text, parse_yaml(text)
    try:
        for name, value in values.items():
            keys = name.split(".")
            edited, wanted = _with_value(edited, keys, value), _replaced(wanted, keys, value)
        is_as_wanted = parse_yaml(edited) == wanted
    except yaml.YAMLError:
        is_as_wanted = False
    if not is_as_wanted:  # where something stands behind an alias, or over several lines
        raise PipelineError(f"{PARAMS}: {', '.join(values)}: cannot be set without changing more; write it by hand")
    with atomic_file(PARAMS) as partial:
        partial.write_bytes(edited.encode())


def spell(value: Any) -> str:
    """A value as every reader of YAML understands it: `1.0e-05`, `true`, `null`, `adamw`, `{regime: partial}`."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {spell(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, str) and re.fullmatch(r"\w+", value) and parse_yaml(value) == value:
        return value
    return json.dumps(value)


def _with_value(text: str, keys: list[str], value: Any) -> str:
    """The document with one value set."""
    *section, key = keys
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in section:
        node = _child(node, name)
    if not isinstance(node, yaml.MappingNode):
        raise PipelineError(f"{PARAMS}: {'.'.join(section)}: is missing")
    if (old := _child(node, key)) is not None:
        before, after = text[: old.start_mark.index], text[old.end_mark.index :]
        return f"{before}{' ' * before.endswith(':')}{spell(value)}{after}"  # where `key:` had nothing behind it
    return _with_key(text, node, f"{key}: {spell(value)}")


def _with_key(text: str, section: yaml.MappingNode, pair: str) -> str:
    """The document with one pair more in a section: within its braces, or on a line of its own."""
    end = _end(section.value[-1][1]) if section.value else section.start_mark.index + 1
    if section.flow_style:
        return f"{text[:end]}{', ' * bool(section.value)}{pair}{text[end:]}"
    at = end + len(re.split(r"[\r\n]", text[end:], maxsplit=1)[0])
    line_break = "\r\n" if "\r\n" in text else "\n"
    return f"{text[:at]}{line_break}{' ' * section.start_mark.column}{pair}{text[at:]}"


def _end(node: yaml.Node) -> int:
    """Where a value ends: of what is written in lines that is where its last part does, not where the next key begins."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node.end_mark.index


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """The value of a key as a node of the document, which knows where it stands."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _replaced(params: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """The params with one value set; what an alias shared is shared no more."""
    first, *rest = keys
    return {**params, first: _replaced(params[first], rest, value) if rest else value}
