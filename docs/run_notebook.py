"""Run the code cells of docs/notebook.ipynb in order and store their outputs: `python docs/run_notebook.py` in a fresh clone.

The cells edit params.yaml and train. A cell is run as IPython does it, without IPython: the value of a last expression is its result.
"""

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")


def run_cell(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell and return its outputs as a notebook stores them. `names`: the variables, which the cell changes."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)  # noqa: S102 - a file of this project
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append({"data": shown(value), "execution_count": None, "metadata": {}, "output_type": "execute_result"})
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """A value in the forms that a notebook shows: a picture, HTML, text."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if picture := getattr(value, "_repr_png_", lambda: None)():
        return {"image/png": base64.b64encode(picture).decode() + "\n", "text/plain": [f"<{value.size[0]}x{value.size[1]} picture>"]}
    if table := getattr(value, "_repr_html_", lambda: None)():
        return {"text/html": table.splitlines(keepends=True), **data}
    return data


def run_notebook(path: Path) -> None:
    """Run all code cells and write their outputs into the file. A cell that fails ends the run, and the file stays as it is."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        print(f"cell {number} of {len(cells)}", file=sys.stderr, flush=True)
        cell["outputs"] = run_cell("".join(cell["source"]), names)
        cell["execution_count"] = number
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = number
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_notebook(NOTEBOOK.resolve())
