"""The notebook, and the page on Python: their code runs in a fresh clone and shows what is stored and quoted, but for its figures."""

import base64
import doctest
import json
import re
import sys

import pytest

from tests.checkout import ROOT, clone, type_in

NOTEBOOK = ROOT / "docs/notebook.ipynb"
# In the clone, a page's examples as doctest runs them, with # for every number.
EXAMPLES = r"""
import doctest, re, sys
class Numberless(doctest.OutputChecker):
    def check_output(self, want, got, flags):
        want, got = (re.sub(r"[\da-f]{12,}|[-+]?\d+(\.\d+)?(e-?\d+)?", "#", text) for text in (want, got))
        return super().check_output(want, got, flags)
page = open("docs/python.md").read()
runner = doctest.DocTestRunner(Numberless(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
print(runner.run(doctest.DocTestParser().get_doctest(page.replace("```\n", "\n"), {}, "python.md", "docs/python.md", 0)))
"""


def outputs_of(path):
    """The outputs of each code cell that has any, by the first line of its code."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["source"][0].strip(): cell["outputs"] for cell in cells if cell.get("outputs")}


def kinds(outputs):
    """Of each output, its forms, and the columns and row names of a table."""
    found = []
    for output in outputs:
        table = "".join(output.get("data", {}).get("text/html", []))
        found.append((output["output_type"], sorted(output.get("data", {})), re.findall(r"<th>([^<]*)</th>", table)))
    return found


def test_the_stored_outputs_are_small_complete_and_name_no_path_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert re.findall(r"/(?:home|root|tmp|work|Users|mnt)/\S*", text) == []
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [output["data"]["image/png"] for cell in cells for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert [base64.b64decode(picture)[1:4] for picture in pictures] == [b"PNG", b"PNG"]  # the confusion matrix and the explanation


def test_the_page_on_python_has_examples():
    examples = doctest.DocTestParser().get_examples((ROOT / "docs/python.md").read_text(encoding="utf-8"))
    assert {"load_model", "predict", "explain", "features"} <= set(re.findall(r"\w+", "".join(example.source for example in examples)))


@pytest.mark.e2e
@pytest.mark.slow
def test_the_notebook_runs_in_a_fresh_clone_and_shows_what_is_stored(tmp_path):
    clone(tmp_path)
    type_in(tmp_path, sys.executable, "docs/run_notebook.py")
    stored, found = outputs_of(NOTEBOOK), outputs_of(tmp_path / "docs/notebook.ipynb")
    assert {cell: kinds(outputs) for cell, outputs in found.items()} == {cell: kinds(outputs) for cell, outputs in stored.items()}
    right = next("".join(outputs[0]["data"]["text/plain"]) for cell, outputs in found.items() if "are right" in cell)
    assert float(re.search(r"([\d.]+)%", right)[1]) > 80
    assert type_in(tmp_path, sys.executable, "-c", EXAMPLES).splitlines()[-1].startswith("TestResults(failed=0, attempted=1")
