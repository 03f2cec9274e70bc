"""The code that a module consists of, and its digest."""

import pytest

from pipeline.core import stage
from pipeline.core.stage import code_digest, import_closure

CODE = '''"""What it does."""

import json


class Box:
    """A box."""

    size = 3


def double(value):
    """Twice the value."""
    return 2 * value  # exact
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two modules, of which `pipeline.a` imports `pipeline.b`; write the code of b, get the digest of a."""
    monkeypatch.setattr(stage, "_ROOT", tmp_path)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/a.py").write_text("def run():\n    from pipeline import b\n    return b.double(1)\n")

    def digest(code):
        (tmp_path / "pipeline/b.py").write_text(code, encoding="utf-8")
        return code_digest("pipeline.a")

    return digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# exact", "# it is exact"),
        ("  # exact", ""),
        ('"""Twice the value."""', '"""The value, doubled.\n\n    For any number.\n    """'),
        ('    """Twice the value."""\n', ""),
        ('"""What it does."""', '"""What it is for."""'),
        ('"""A box."""', '"""A box of a size."""'),
        ("2 * value", "(2   *\n        value)"),
        ("\n\n\nclass", "\n\nclass"),
    ],
)
def test_comments_docstrings_and_formatting_do_not_change_the_digest(project, before, after):
    assert before in CODE
    assert project(CODE) == project(CODE.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2 * value", "3 * value"),
        ("2 * value", "value * 2"),
        ("size = 3", 'size = "3"'),
        ("import json", "import os"),
        ("double(value)", "double(value=1)"),
        ("    size = 3", '    "a text that is no docstring" + ""\n    size = 3'),
    ],
)
def test_a_changed_expression_changes_the_digest_of_what_imports_it(project, before, after):
    assert before in CODE
    assert project(CODE) != project(CODE.replace(before, after))


def test_a_function_of_a_docstring_alone_is_as_one_that_passes(project):
    assert project('def run():\n    """Do nothing."""\n') == project("def run():\n    pass\n")


def test_the_path_of_a_file_is_part_of_the_digest(project, tmp_path):
    before = project(CODE)
    (tmp_path / "pipeline/b.py").rename(tmp_path / "pipeline/c.py")
    (tmp_path / "pipeline/a.py").write_text((tmp_path / "pipeline/a.py").read_text().replace("import b", "import c as b"))
    assert code_digest("pipeline.a") != before


def test_imports_count_wherever_they_are_written(project, tmp_path):
    project(CODE)
    (tmp_path / "pipeline/d.py").write_text("if True:\n    import pipeline.a\n")
    assert import_closure("pipeline.d") == ["pipeline/a.py", "pipeline/b.py", "pipeline/d.py"]


def test_a_misspelt_module_has_no_digest():
    with pytest.raises(ValueError, match=r"^pipeline\.stages\.trian: "):
        code_digest("pipeline.stages.trian")


def test_a_module_without_imports_of_the_project_consists_of_itself():
    assert import_closure("pipeline.core.errors") == ["pipeline/core/errors.py"]
