"""Which of our files a module is made of, and one sum over them."""

import ast
from pathlib import Path

from pipeline.files import sha256_of_file, sha256_of_json

_ROOT = Path(__file__).parent.parent


def import_closure(module: str) -> list[str]:
    """The files of ours that a module imports, itself included, directly or not, as sorted paths from the project's root.

    Imports inside functions count. An `__init__.py` is left out: in this project it holds a docstring alone. Raises ValueError
    where there is no such module.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _ROOT / Path(*name.split(".")).with_suffix(".py")
        if name not in found and path.is_file():
            found[name] = path
            waiting += _imports(path)
    if module not in found:
        raise ValueError(f"{module}: is no module of this project")
    return sorted(path.relative_to(_ROOT).as_posix() for path in found.values())


def code_digest(module: str) -> str:
    """One sha256 over the paths and the contents of `import_closure(module)`."""
    return sha256_of_json({path: sha256_of_file(_ROOT / path) for path in import_closure(module)})


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "pipeline"]
