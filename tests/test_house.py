"""Imports go one way: what people type, then what a stage does, then the rooms of one subject, then what all of them stand on."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from those before it in the list, and from itself.
FLOORS = ["ground", "data", "models", "training", "evaluation", "tracking", "serving", "stock", "stages", "commands", "__main__"]
GROUND = {"__init__", "addresses", "errors", "files", "params", "provenance", "stage"}
FILES = sorted((ROOT / "pipeline").rglob("*.py"))


def imported(path):
    """The modules of ours that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pipeline"))


def room(module):
    """The floor of `pipeline.room.file`; the package itself lies on the ground."""
    name = (*module.split("."), "errors")[1]
    return "ground" if name in GROUND else name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_from_its_own_floor_and_those_below(path):
    own = FLOORS.index(room(".".join(path.relative_to(ROOT).with_suffix("").parts)))
    assert [module for module in imported(path) if FLOORS.index(room(module)) > own] == []


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline/stages").glob("*.py")), ids=lambda path: path.name)
def test_a_stage_imports_no_stage(path):
    assert [module for module in imported(path) if room(module) == "stages"] == []
