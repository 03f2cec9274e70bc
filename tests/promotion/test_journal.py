"""The journal as a file that people, editors and git may change: what is no entry is named by its line, whatever else is read."""

import json
from dataclasses import asdict, replace

import pytest

from pipeline.core.errors import PipelineError
from pipeline.promotion.journal import Entry, append, read_journal

FIRST = Entry("2026-03-02T03:00:00Z", "PROMOTE", "why", "small", "a" * 64, None, "key")


def line(**changes):
    return json.dumps({**asdict(FIRST), **changes}, ensure_ascii=False)


def test_a_reason_may_contain_any_character(tmp_path):
    text = "".join(f"a{chr(code)}" for code in (*range(0x300), 0x2028, 0x2029, 0x1F600))
    append(replace(FIRST, reason=text), tmp_path / "journal")
    append(replace(FIRST, verdict="HOLD"), tmp_path / "journal")
    assert [entry.reason for entry in read_journal(tmp_path / "journal")] == [text, "why"]


@pytest.mark.parametrize("form", ["\ufeff{}\n{}\n", "{}\r\n{}\r\n", "\n{}\n\n{}", "{}\n{}\n{}\n"])
def test_what_editors_and_a_merge_do_to_the_lines_changes_no_entry(tmp_path, form):
    (tmp_path / "journal").write_bytes(form.format(line(), line(sha256="b" * 64), line()).encode())
    assert [entry.sha256 for entry in read_journal(tmp_path / "journal")] == ["a" * 64, "b" * 64]


@pytest.mark.parametrize(
    "changes",
    [
        {"time": 5}, {"time": "yesterday"}, {"time": "2026-03-02T03:00:00"}, {"time": "2026-13-02T03:00:00Z"}, {"sha256": None},
        {"sha256": "../../elsewhere"}, {"champion": "b"}, {"commit": "--output=file"}, {"reason": None}, {"model": ["small"]}, {"key": {}},
        {"verdict": "WIN"}, {"verdict": []}, {"judgement": "x"}, {"judgement": {"test": 5}}, {"judgement": {"values": float("nan")}},
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_named_by_its_line(tmp_path, changes):
    (tmp_path / "journal").write_text(f"{line()}\n{line(**changes)}\n")
    with pytest.raises(PipelineError, match=r"journal: line 2: .*; run `git checkout promotions.jsonl`, or repair it"):
        read_journal(tmp_path / "journal")


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '"text"', '{"reason": "\\ud800",' + line(reason="")[1:].replace('"reason": "", ', "")]
)
def test_a_line_that_is_no_entry_is_named(tmp_path, text):
    (tmp_path / "journal").write_text(f"{line()}\n{text}\n")
    with pytest.raises(PipelineError, match=r"journal: line 2: is not an entry"):
        read_journal(tmp_path / "journal")


@pytest.mark.parametrize("mark", ["<<<<<<< HEAD", "=======", ">>>>>>> other", "||||||| base"])
def test_the_marks_of_a_merge_conflict_are_named(tmp_path, mark):
    (tmp_path / "journal").write_text(f"{line()}\n{mark}\n")
    with pytest.raises(PipelineError, match=r"line 2: is a mark of a merge conflict; remove the marks, and keep the lines of both sides"):
        read_journal(tmp_path / "journal")
