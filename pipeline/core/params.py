"""params.yaml: read strictly, as DVC reads it (YAML 1.2), and edited without changing any other byte."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file

if TYPE_CHECKING:
    import yaml

PARAMS = Path("params.yaml")
SHARED = ("seed", "threads", "processes", "false_alarm_rate")
BASELINE = "baseline"  # the model that is always there; every entry of `models` is compared with it
SECTIONS = ("download", "split", "backbone", "embed", "train_baseline", "recipe", "models", "tune", "evaluate", "gate")

_OWN_NAMES = (BASELINE, "backbone", "comparison", "champion")  # of folders in models/, files in metrics/, and models on the command line
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")  # also the name of a folder, of a stage and of a key of params.yaml
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")  # readers of YAML 1.1 do not take them for text
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one


class _Constructor(SafeConstructor):
    """Builds plain types alone. A date stays text: params and dvc.lock are written as JSON, too."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """The value of a YAML 1.2 document, built from plain types alone. Raises ValueError, which names the line."""
    reader = YAML(typ="safe", pure=True)  # as DVC reads: YAML 1.2, duplicate keys refused
    reader.Constructor = _Constructor
    try:
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {error.problem}") from None
    except (YAMLError, IndexError, TypeError) as error:  # the latter two of an empty `!!int` and of a key that is a mapping
        raise ValueError(" ".join(str(error).split())) from None


_parse_once = cache(parse_yaml)  # a command asks for its threads, its models and more


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """All of params.yaml, with its top-level keys checked. Raises PipelineError."""
    try:
        params = deepcopy(_parse_once(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PipelineError(f"{path}: does not exist; run in the project's root") from None
    except ValueError as error:  # also of bytes that are not UTF-8
        raise PipelineError(f"{path}: is not YAML: {error}") from None
    if not isinstance(params, dict):
        raise PipelineError(f"{path}: contains no keys")
    for key in params:
        if key not in SHARED + SECTIONS:
            raise PipelineError(f"{path}: {key}: unknown key{nearest(str(key), SHARED + SECTIONS)}")
    _check_models(params.get("models") or {}, path)
    split = params.get("split")
    for name, seed in (("seed", params.get("seed")), ("split.seed", split.get("seed") if isinstance(split, dict) else None)):
        if isinstance(seed, int) and seed > LARGEST_SEED:
            raise PipelineError(f"{path}: {name}: {seed} is above {LARGEST_SEED}; choose a smaller one")
    return params


def _check_models(models: Any, path: Path) -> None:
    """Raise PipelineError if the name of an entry of `models` cannot be that of a folder, a stage and a key everywhere."""
    if not isinstance(models, dict):
        raise PipelineError(f"{path}: models: {models!r} is not a set of keys")
    by_lower_case: dict[str, str] = {}
    for name in models:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _YAML_WORDS:
            raise PipelineError(f"{path}: models: {name!r} cannot be a name; use letters, digits, _ and -, beginning with a letter")
        if name.lower() in _OWN_NAMES:
            raise PipelineError(f"{path}: models.{name}: the pipeline uses this name itself; choose another")
        if other := by_lower_case.get(name.lower()):
            raise PipelineError(f"{path}: models.{name}: differs from {other} in case alone, and many disks ignore that; choose another")
        by_lower_case[name.lower()] = name


def model_names(path: Path = PARAMS) -> list[str]:
    """The names of the entries of `models`, in their order. Raises PipelineError."""
    return list(read_params(path).get("models") or {})


def read_threads(path: Path = PARAMS) -> int:
    """The number of threads. Raises PipelineError."""
    threads = read_params(path).get("threads")
    if type(threads) is not int or threads < 1:
        raise PipelineError(f"{path}: threads: {threads!r} is not a whole number above 0")
    return threads


def nearest(key: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown key: the most similar known key, or all known keys."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def set_params(values: Mapping[str, Any]) -> None:
    """Set each value of params.yaml at its dotted name, in place or as the last key of its section. No other byte changes.

    Raises PipelineError and changes nothing if the section is missing, or is written in a way that cannot be edited so.
    """
    import yaml

    text = PARAMS.read_bytes().decode()
    edited, wanted = text, parse_yaml(text)
    try:
        for name, value in values.items():
            keys = name.split(".")
            edited, wanted = _with_value(edited, keys, value), _replaced(wanted, keys, value)
        is_as_wanted = parse_yaml(edited) == wanted
    except (ValueError, yaml.YAMLError):
        is_as_wanted = False
    if not is_as_wanted:  # a value behind an alias, or one of several lines
        raise PipelineError(f"{PARAMS}: {', '.join(values)}: cannot be set without changing other values; edit the file by hand")
    with atomic_file(PARAMS) as partial:
        partial.write_bytes(edited.encode())


def spell(value: Any) -> str:
    """A value in YAML that readers of 1.1 and 1.2 understand alike: `1.0e-05`, `true`, `null`, `adamw`, `{regime: partial}`."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {spell(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, str) and re.fullmatch(r"\w+", value) and parse_yaml(value) == value:
        return value
    return json.dumps(value)


def _with_value(text: str, keys: list[str], value: Any) -> str:
    """The document with one value set."""
    import yaml

    *section, key = keys
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)  # its marks are exact, also of empty values
    for name in section:
        node = _child(node, name)
    if not isinstance(node, yaml.MappingNode):
        raise PipelineError(f"{PARAMS}: {'.'.join(section)}: is missing")
    if (old := _child(node, key)) is not None:
        before, after = text[: old.start_mark.index], text[old.end_mark.index :]
        return f"{before}{' ' * before.endswith(':')}{spell(value)}{after}"  # a space if the key had no value
    return _with_key(text, node, f"{key}: {spell(value)}")


def _with_key(text: str, section: "yaml.MappingNode", pair: str) -> str:
    """The document with one more pair in a section: within its braces, or on a line of its own."""
    end = _end(section.value[-1][1]) if section.value else section.start_mark.index + 1
    if section.flow_style:
        return f"{text[:end]}{', ' * bool(section.value)}{pair}{text[end:]}"
    at = end + len(re.split(r"[\r\n]", text[end:], maxsplit=1)[0])
    line_break = "\r\n" if "\r\n" in text else "\n"
    return f"{text[:at]}{line_break}{' ' * section.start_mark.column}{pair}{text[at:]}"


def _end(node: "yaml.Node") -> int:
    """Where a value ends. A block ends with its last part; its own end mark is where the next key begins."""
    import yaml

    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return node.end_mark.index


def _child(node: "yaml.Node | None", key: str) -> "yaml.Node | None":
    """The value of a key as a node of the document, which knows its position."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _replaced(params: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """The params with one value set. Other names of the same value (aliases) keep the old one."""
    first, *rest = keys
    return {**params, first: _replaced(params[first], rest, value) if rest else value}
