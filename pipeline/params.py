"""params.yaml, read strictly: YAML 1.2 as DVC reads it, unknown keys and wrong types refused in one line."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import PipelineError

SHARED = ("seed", "threads")
SECTIONS = ("download", "split", "backbone", "embed", "train_baseline", "models", "evaluate")


class Section(BaseModel):
    """A stage's section of params.yaml. A field `seed` or `threads` takes the value of that name at the top level."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="forbid")


SectionType = TypeVar("SectionType", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `1e-3` is a number, `on` and `yes` are words, `010` is ten."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)


_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
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
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(params, dict):
        raise PipelineError(f"{path}: holds no keys")
    for key in params:
        if key not in SHARED + SECTIONS:
            raise PipelineError(f"{path}: {key}: unknown key{_nearest(str(key), SHARED + SECTIONS)}")
    return params


def read_section(name: str, section_class: type[SectionType], path: Path = Path("params.yaml")) -> SectionType:
    """The section of params.yaml at a dotted name, as its class. Raises PipelineError naming the first fault."""
    params = read_params(path)
    section: Any = params
    for key in name.split("."):
        if not isinstance(section, dict) or key not in section:
            raise PipelineError(f"{path}: {name}: is missing")
        section = section[key]
    if not isinstance(section, dict):
        raise PipelineError(f"{path}: {name}: {section!r} is not a set of keys")
    fields = section_class.model_fields
    for key in SHARED:
        if key in section:
            raise PipelineError(f"{path}: {name}.{key}: belongs at the top level; move it there")
    shared = {key: params[key] for key in SHARED if key in fields and key in params}
    try:
        return section_class.model_validate({**section, **shared})
    except ValidationError as error:
        raise PipelineError(f"{path}: {_sentence(name, error.errors()[0], section_class)}") from None


def _sentence(section: str, error: Mapping[str, Any], section_class: type[Section]) -> str:
    """`split.test: 1.4 is not below 1` for an error of pydantic."""
    keys = [str(part) for part in error["loc"]]
    where = keys[0] if keys[0] in SHARED else ".".join([section, *_path(keys)])
    found, context, kind = error["input"], error.get("ctx", {}), error["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key{_nearest(keys[-1], tuple(section_class.model_fields))}"
    if kind == "missing":
        return f"{where}: is missing"
    limits = {
        "less_than": ("below", "lt"),
        "less_than_equal": ("at most", "le"),
        "greater_than": ("above", "gt"),
        "greater_than_equal": ("at least", "ge"),
    }
    if kind in limits:
        word, key = limits[kind]
        return f"{where}: {found!r} is not {word} {context[key]:g}"
    kinds = {"int": "a whole number", "float": "a number", "string": "a text", "bool": "true or false", "list": "a list"}
    if kind.removesuffix("_type") in kinds:
        return f"{where}: {found!r} is not {kinds[kind.removesuffix('_type')]}"
    if kind == "literal_error":
        return f"{where}: {found!r} is not {context['expected']}"
    return f"{where}: {found!r}: {error['msg'].removeprefix('Value error, ')}"


def _path(keys: list[str]) -> list[str]:
    """The keys of params.yaml in a location of pydantic, which adds the name of a union's member."""
    return [key for key in keys if not re.fullmatch(r"(float|int|str|constrained-\w+|literal\[.*|function-.*)", key)]


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
