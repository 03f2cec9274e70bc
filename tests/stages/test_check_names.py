"""The stage `check_names`: its out depends on no entry, so that a new one trains no other again."""

from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.sections import read_section
from pipeline.stages.check_names import Params, run


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Write the entries into params.yaml, run the stage, and return its out."""
    monkeypatch.chdir(tmp_path)

    def check_entries(models):
        Path("params.yaml").write_text(f"seed: 1\nrecipe: {{epochs: 3}}\nmodels: {models}\n")
        run(read_section("models", Params), Path("names.txt"))
        return Path("names.txt").read_bytes()

    return check_entries


def test_every_set_of_plain_names_has_the_same_out(check):
    assert check("{a: {regime: frozen}}") == check("{b: {regime: partial, epochs: 1}, seed: {}, threads: {}}") == check("{}")


def test_a_name_that_is_not_plain_leaves_no_out(check):
    with pytest.raises(PipelineError, match="cannot be a name"):
        check("{a.b: {regime: frozen}}")
    assert not Path("names.txt").exists()
