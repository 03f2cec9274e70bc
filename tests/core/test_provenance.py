"""The code that a module is made of."""

import pytest

from pipeline.core.stage import code_digest, import_closure


def test_a_module_that_is_misspelt_has_no_sum():
    with pytest.raises(ValueError, match=r"pipeline\.stages\.trian: is no module of this project"):
        code_digest("pipeline.stages.trian")


def test_a_module_without_imports_of_ours_is_made_of_itself():
    assert import_closure("pipeline.core.errors") == ["pipeline/errors.py"]
