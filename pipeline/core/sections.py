"""A stage's section of params.yaml as a class: read, checked, and its first fault put into words."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import PipelineError
from pipeline.core.params import PARAMS, SHARED, nearest, read_params

_DEFAULTS = {"models": "recipe"}  # the section with the keys that an entry of another section leaves out

Rate = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A stage's section of params.yaml. A field with the name of a key in `SHARED` takes the value of that key, at the top level."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="forbid")
    overridable: ClassVar[tuple[str, ...]] = ()  # the shared keys that the section may set itself; null is the top-level value


SectionType = TypeVar("SectionType", bound=Section)


def read_section(name: str, section_class: type[SectionType], path: Path = PARAMS) -> SectionType:
    """The section of params.yaml at a dotted name, as its class. Raises PipelineError, which names the first fault.

    Keys that an entry of `models` leaves out come from the section `recipe`.
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
    """The fault to report: an unknown key if there is one, else the first."""
    return min(errors, key=lambda fault: fault["type"] != "extra_forbidden")


def _sentence(section: str, errors: Sequence[Mapping[str, Any]], section_class: type[Section], top_level: Sequence[str]) -> str:
    """One sentence for pydantic's errors, as `split.test: 1.4 is not below 1`."""
    first = _foremost(errors)
    # Each member of a union reports its own error. The member that was meant fails deepest.
    below = [fault for fault in errors if fault["loc"][0] == first["loc"][0]]
    error = max(below, key=lambda fault: (len(fault["loc"]), fault["type"] == "extra_forbidden"))
    keys = [str(part) for part in error["loc"]]
    where = keys[0] if keys[0] in top_level else ".".join([section, *_path(keys)])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{nearest(keys[-1], tuple(_section_at(_path(keys)[:-1], section_class).model_fields))}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    faults = [_fault(error)]
    if error["type"] == "literal_error":  # a union: report what its other members accept, too
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
        "dict_type": "a mapping",
    }
    return f"is not {words[kind].format(**context)}" if kind in words else f"is refused: {error['msg']}"


def _as_yaml(value: Any) -> str:
    """A value as it is written in params.yaml."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)


def _path(keys: list[str]) -> list[str]:
    """The keys of params.yaml in pydantic's location of an error, which also names the members of unions."""
    return [key for key in keys if not re.fullmatch(r"(float|int|str|constrained-\w+|literal\[.*|dict\[.*|function-.*|[A-Z]\w*)", key)]


def _section_at(keys: list[str], section_class: type[Section]) -> type[Section]:
    """The class of the section at these keys below `section_class`."""
    for key in keys:
        annotation = section_class.model_fields[key].annotation
        classes = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Section)]
        section_class = classes[0]
    return section_class
