"""The false-alarm rate over the looks at one reference."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.drift.looking import enter_look, looks_path, plan_look


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def look(pictures, looks=3, alpha=0.06, reference="model"):
    found = plan_look(reference, pictures, alpha, looks)
    enter_look(reference, pictures, found, alpha, {"p": 0.5, "verdict": "ok"})
    return found


def test_the_levels_of_a_period_sum_to_the_rate_and_then_a_new_one_begins():
    found = [look(str(number)) for number in range(7)]
    assert [each.number for each in found] == [1, 2, 3, 1, 2, 3, 1]
    assert [each.level for each in found] == pytest.approx([0.02] * 7)
    assert found[2].spent == pytest.approx(0.06)


def test_the_same_pictures_spend_nothing_the_second_time():
    first, _, again, third = look("monday"), look("tuesday"), look("monday"), look("wednesday")
    assert (again.is_known, again.number) == (True, first.number)
    assert third.number == 3


def test_another_reference_has_looks_of_its_own():
    look("monday")
    assert look("monday", reference="next").number == 1


def test_a_look_that_takes_the_whole_rate_leaves_none_for_this_period():
    assert look("monday", looks=1).level == pytest.approx(0.06)
    assert look("tuesday", looks=3).number == 1


def test_a_damaged_file_is_named():
    look("monday")
    looks_path().write_text("{")
    with pytest.raises(PipelineError, match="is damaged; remove it"):
        look("tuesday")
