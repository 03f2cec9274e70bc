"""`pipeline audit`: every finding by its kind, with what became of it."""

import pytest

from pipeline.commands.show import audit_lines
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json


@pytest.fixture
def show(tmp_path):
    """The lines that are printed of some findings, each (kind, sentence)."""

    def show(*findings, shown=None):
        facts = [dict(zip(("kind", "sentence"), finding, strict=True)) for finding in findings]
        kinds = {"broken": {"title": "Broken", "fate": "left out"}, "near_duplicate": {"title": "Alike", "fate": "kept in one split"}}
        write_json(tmp_path / "audit.json", {"pictures": 7, "quarantined": 2, "kinds": kinds, "findings": facts})
        return "\n".join(audit_lines(tmp_path / "audit.json", shown))

    return show


def test_pictures_are_counted(show):
    assert show() == "7 pictures are used, 2 left out."


def test_findings_stand_below_their_kind_and_its_fate(show):
    assert show(("near_duplicate", "'a', 'b': the two look alike"), ("broken", "'c\\nd': not a picture")) == (
        "7 pictures are used, 2 left out.\n"
        "\nBroken: 1, left out\n  'c\\nd': not a picture\n"
        "\nAlike: 1, kept in one split\n  'a', 'b': the two look alike"
    )


def test_what_is_not_shown_is_counted(show):
    assert show(*[("broken", "'a': not a picture")] * 3, shown=2).endswith(
        "  'a': not a picture\n  'a': not a picture\n  and 1 more (--all)"
    )


def test_without_an_audit_it_says_what_to_run(tmp_path):
    with pytest.raises(PipelineError) as caught:
        list(audit_lines(tmp_path / "audit.json", None))
    assert str(caught.value) == f"{tmp_path / 'audit.json'}: does not exist; run `dvc repro`"
