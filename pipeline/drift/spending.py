"""How the false-alarm rate is spent over daily looks at one reference.

A period has so many looks, 30 as a rule, and each of them the same share of the rate. So a period in which nothing changed raises a false
alarm with at most that probability. Then the next period begins. Pictures that were looked at before spend nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import cache_dir, read_json, write_json

ALPHA = 0.05
LOOKS = 30
_MOST_LOOKS = 1000  # that are kept of one reference


@dataclass(frozen=True)
class Look:
    """One look. `level`: of its test; `number`: from 1, in its period; `spent`: of the rate; `is_known`: they were seen before."""

    level: float
    number: int
    spent: float
    is_known: bool


def looks_path() -> Path:
    """The file of all looks: `.cache/drift/looks.json`."""
    return cache_dir("drift") / "looks.json"


def plan_look(reference: str, pictures: str, alpha: float, looks: int) -> Look:
    """The next look at a reference. `reference`, `pictures`: digests of what is compared; `alpha`: the rate of a period. Writes nothing.

    Raises PipelineError if the file of looks is damaged.
    """
    level, period = alpha / looks, list[dict[str, Any]]()
    for look in _read().get(reference, []):
        spent = sum(each["level"] for each in period)
        if look["pictures"] == pictures and look["level"] == level:
            return Look(level, len(period) + 1, spent + level, is_known=True)
        period = [look] if _is_over(spent, look["level"], look["alpha"]) else [*period, look]
    spent = sum(each["level"] for each in period)
    if _is_over(spent, level, alpha):
        return Look(level, 1, level, is_known=False)
    return Look(level, len(period) + 1, spent + level, is_known=False)


def enter_look(reference: str, pictures: str, look: Look, alpha: float, facts: dict[str, Any]) -> None:
    """Add a look to the file, unless it is known. `facts`: what else is kept of it."""
    from filelock import FileLock

    if look.is_known:
        return
    path = looks_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        kept = _read()
        kept[reference] = [*kept.get(reference, []), {"pictures": pictures, "level": look.level, "alpha": alpha, **facts}][-_MOST_LOOKS:]
        write_json(path, kept)


def _is_over(spent: float, level: float, alpha: float) -> bool:
    """Whether one more look of that level exceeds the rate, so that it begins a new period."""
    return spent + level > alpha * (1 + 1e-9)


def _read() -> dict[str, list[dict[str, Any]]]:
    path = looks_path()
    if not path.is_file():
        return {}
    try:
        kept = read_json(path)
        assert all(isinstance(each["level"] + each["alpha"], float) for looks in kept.values() for each in looks)  # noqa: S101
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError):
        raise PipelineError(f"{path}: is damaged; remove it, and the looks begin anew") from None
    return dict(kept)
