"""The shape of pipeline/: imports go one way between its rooms, and no file or function grows too long to read."""

import ast
import re
from functools import cache
from pathlib import Path

import pipeline

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "pipeline").rglob("*.py"))
ROOMS = re.findall(r"^    (\w+)  +\S", pipeline.__doc__, re.MULTILINE)  # a room imports from those before it in this list
ORDER = [*ROOMS, "stages", "model", "commands", "__main__", "__init__"]  # model is a file
WORKBENCH = {"search", "stock"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


@cache
def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: a relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("pipeline.")}


def test_every_room_of_the_tree_is_in_the_list_and_no_other():
    folders = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert sorted(folders) == sorted({*ROOMS, "stages", "commands"})


def test_a_file_imports_from_its_own_room_and_those_before_it():
    pairs = [(path, room) for path in FILES for room in imported_rooms(path)]
    assert [(name_of(path), room) for path, room in pairs if ORDER.index(room) > ORDER.index(room_of(path))] == []


def test_nothing_imports_a_stage():
    assert [name_of(path) for path in FILES if "stages" in imported_rooms(path)] == []


def test_no_stage_imports_the_workbench():
    assert [name_of(path) for path in FILES if room_of(path) == "stages" and imported_rooms(path) & WORKBENCH] == []


def test_training_and_evaluation_do_not_import_each_other():
    pairs = {(room_of(path), room) for path in FILES for room in imported_rooms(path)}
    assert pairs & {("training", "evaluation"), ("evaluation", "training")} == set()


def test_there_are_at_most_135_modules():
    assert len(FILES) <= 135  # a new subject is a module; part of one is not


def test_no_file_has_more_than_400_lines_and_no_function_more_than_45():
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}
    functions = [(name, node) for name, text in texts.items() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [name for name, text in texts.items() if len(text.splitlines()) > 400] == []
    assert [(name, node.name) for name, node in functions if (node.end_lineno or 0) - node.lineno >= 45] == []
