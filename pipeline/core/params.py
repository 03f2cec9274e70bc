"""params.yaml: read strictly, as DVC reads it (YAML 1.2), and edited without changing any other byte."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_file

SHARED = ("seed", "threads")
SECTIONS = ("download", "split", "backbone", "embed", "train_baseline", "recipe", "models", "tune", "evaluate")


class Section(BaseModel):
    """A stage's section of params.yaml. A field `seed` or `threads` takes the value of that name at the top level."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="forbid")
    overridable: ClassVar[tuple[str, ...]] = ()  # the shared keys that the section may set itself; null is the top-level value


_DEFAULTS = {"models": "recipe"}  # where an entry of a section takes what it leaves open
SectionType = TypeVar("SectionType", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `1e-3` is a number, `on` and `yes` are words, `010` is ten."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if keys.count(key.value) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {twice[-1].value!r}", twice[-1].start_mark)
        return super().construct_mapping(node, deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)


_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9_]+(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str) -> Any:
    """The value of a YAML 1.2 document, built from plain types alone. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_params(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """All of params.yaml, its top-level keys checked. Raises PipelineError."""
    try:
        params = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: is not there; run in the project's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(params, dict):
        raise PipelineError(f"{path}: holds no keys")
    for key in params:
        if key not in SHARED + SECTIONS:
            raise PipelineError(f"{path}: {key}: unknown key{nearest(str(key), SHARED + SECTIONS)}")
    return params


def model_names(path: Path = Path("params.yaml")) -> list[str]:
    """The entries of `models`, in their order. Raises PipelineError."""
    return list(read_params(path).get("models") or {})


def read_threads(path: Path = Path("params.yaml")) -> int:
    """The number of threads. Raises PipelineError."""
    threads = read_params(path).get("threads")
    if type(threads) is not int or threads < 1:
        raise PipelineError(f"{path}: threads: {threads!r} is not a whole number above 0")
    return threads


def read_section(name: str, section_class: type[SectionType], path: Path = Path("params.yaml")) -> SectionType:
    """The section of params.yaml at a dotted name, as its class. Raises PipelineError naming the first fault.

    What an entry of `models` does not say, the section `recipe` says.
    """
    params = read_params(path)
    own = section_class.overridable
    section = {key: value for key, value in _at(name, params, path, own).items() if value is not None or key not in own}
    default = _DEFAULTS.get(name.partition(".")[0])
    defaults = _at(default, params, path) if default else {}
    top_level = [key for key in SHARED if key not in section]
    shared = {key: params[key] for key in top_level if key in section_class.model_fields and key in params}
    try:
        return section_class.model_validate({**defaults, **section, **shared})
    except ValidationError as error:
        first = str(_foremost(error.errors())["loc"][0])
        stands_in = name if default is None or first in section else default
        raise PipelineError(f"{path}: {_sentence(stands_in, error.errors(), section_class, top_level)}") from None


def _at(name: str, params: Mapping[str, Any], path: Path, own: Sequence[str] = ()) -> Mapping[str, Any]:
    section: Any = params
    for key in name.split("."):
        if not isinstance(section, dict) or key not in section:
            raise PipelineError(f"{path}: {name}: is missing")
        section = section[key]
    if not isinstance(section, dict):
        raise PipelineError(f"{path}: {name}: {section!r} is not a set of keys")
    for key in SHARED:
        if key in section and key not in own:
            raise PipelineError(f"{path}: {name}.{key}: belongs at the top level; move it there")
    return section


def _foremost(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fault to tell of: an unknown key, else what was found first."""
    return min(errors, key=lambda fault: fault["type"] != "extra_forbidden")


def _sentence(section: str, errors: Sequence[Mapping[str, Any]], section_class: type[Section], top_level: Sequence[str]) -> str:
    """`split.test: 1.4 is not below 1` for pydantic's errors."""
    first = _foremost(errors)
    below = [fault for fault in errors if fault["loc"][0] == first["loc"][0]]  # of a union's members, the one that fits best fails deepest
    error = max(below, key=lambda fault: (len(fault["loc"]), fault["type"] == "extra_forbidden"))
    keys = [str(part) for part in error["loc"]]
    where = keys[0] if keys[0] in top_level else ".".join([section, *_path(keys)])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{nearest(keys[-1], tuple(_section_at(_path(keys)[:-1], section_class).model_fields))}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    faults = [_fault(error)]
    if error["type"] == "literal_error":  # one way to say it of several
        faults += [_fault(other) for other in errors if other is not error and other["loc"][: len(_path(keys))] == tuple(_path(keys))]
    return f"{where}: {_as_yaml(error['input'])} {' and '.join(faults)}"


def _fault(error: Mapping[str, Any]) -> str:
    context, kind = error.get("ctx", {}), str(error["type"])
    words = {
        "less_than": "below {lt:g}",
        "less_than_equal": "at most {le:g}",
        "greater_than": "above {gt:g}",
        "greater_than_equal": "at least {ge:g}",
        "literal_error": "{expected}",
        "string_pattern_mismatch": "of the form {pattern}",
        "int_type": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "bool_type": "true or false",
        "list_type": "a list",
    }
    return f"is not {words[kind].format(**context)}" if kind in words else f"is refused: {error['msg']}"


def _as_yaml(value: Any) -> str:
    """A value as params.yaml spells it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)


def _path(keys: list[str]) -> list[str]:
    """The keys of params.yaml in a location of pydantic, which adds the name of a union's member."""
    return [key for key in keys if not re.fullmatch(r"(float|int|str|constrained-\w+|literal\[.*|function-.*|[A-Z]\w*)", key)]


def _section_at(keys: list[str], section_class: type[Section]) -> type[Section]:
    """The class of the section below `section_class` at these keys."""
    for key in keys:
        annotation = section_class.model_fields[key].annotation
        classes = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Section)]
        section_class = classes[0]
    return section_class


def nearest(key: str, known: Sequence[str]) -> str:
    """How a fault of an unknown key ends: the known one that is like it, or all of them."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


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
