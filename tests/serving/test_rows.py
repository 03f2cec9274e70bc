"""Rows that any reader of CSV or JSON takes back as they were meant; and where they go."""

import csv
import io
import json

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import output_path, row_stream, writing
from pipeline.serving.answers import Prediction, row_line, rows_header

NAMES = ["ants", "bees", "wasps"]
ANSWER = Prediction("in/a.png", "bees", 0.7, {"ants": 0.1, "bees": 0.7, "wasps": 0.2})
ABSTAINED = Prediction("in/a.png", None, 0.7, {"ants": 0.1, "bees": 0.7, "wasps": 0.2})
HARD = ["a,b.png", 'a "b".png', "a\nb.png", "a\rb.png", "-a.png", "🐝 Käfer.png", " a ", "\u2028.png", "\udcff.png"]


def test_csv_has_a_column_for_each_class():
    text = rows_header("csv", NAMES, None) + row_line(ANSWER, "csv", None)
    assert text == "path,predicted,probability,prob_ants,prob_bees,prob_wasps\nin/a.png,bees,0.700000,0.100000,0.700000,0.200000\n"


def test_csv_of_the_most_probable_has_their_classes_and_probabilities():
    text = rows_header("csv", NAMES, 2) + row_line(ANSWER, "csv", 2)
    assert text == ("path,predicted,probability,top_1,top_1_prob,top_2,top_2_prob\nin/a.png,bees,0.700000,bees,0.700000,wasps,0.200000\n")


def test_there_are_no_more_of_the_most_probable_than_classes():
    text = rows_header("csv", NAMES, 9) + row_line(ANSWER, "csv", 9)
    rows = list(csv.reader(io.StringIO(text)))
    assert (rows[0][-1], rows[1][-2:]) == ("top_3_prob", ["ants", "0.100000"])


def test_equals_stand_in_the_order_of_the_classes():
    equals = Prediction("a", "ants", 0.4, {"ants": 0.4, "bees": 0.2, "wasps": 0.4})
    assert row_line(equals, "csv", 2) == "a,ants,0.400000,ants,0.400000,wasps,0.400000\n"


def test_in_csv_an_abstention_is_an_empty_cell():
    assert row_line(ABSTAINED, "csv", 1) == "in/a.png,,0.700000,bees,0.700000\n"


def test_a_json_line_has_its_four_keys():
    assert row_line(ANSWER, "jsonl", None) == (
        '{"path": "in/a.png", "predicted": "bees", "probability": 0.7, "probs": {"ants": 0.1, "bees": 0.7, "wasps": 0.2}}\n'
    )


def test_a_json_line_of_the_most_probable_begins_with_the_likeliest():
    assert list(json.loads(row_line(ANSWER, "jsonl", 2))["probs"].items()) == [("bees", 0.7), ("wasps", 0.2)]


def test_in_json_an_abstention_is_null():
    assert json.loads(row_line(ABSTAINED, "jsonl", None))["predicted"] is None


def test_json_lines_have_no_header():
    assert rows_header("jsonl", NAMES, None) == ""


@pytest.mark.parametrize("path", HARD)
def test_a_hard_name_survives_csv_in_a_file(path, tmp_path):
    with row_stream(tmp_path / "a.csv") as stream:
        stream.write(row_line(Prediction(path, "bees", 1.0, {"bees": 1.0}), "csv", None))
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [[path, "bees", "1.000000", "1.000000"]]


@pytest.mark.parametrize("path", HARD)
def test_a_hard_name_survives_json_in_one_line_of_ascii(path):
    text = row_line(Prediction(path, "bees", 1.0, {"bees": 1.0}), "jsonl", None)
    assert text.isascii()
    assert len(text.splitlines()) == 1
    assert json.loads(text)["path"] == path


def test_a_name_that_is_no_utf8_keeps_its_bytes_in_csv(capfdbinary):
    with row_stream(None) as stream:
        stream.write(row_line(Prediction("\udcff.png", "bees", 1.0, {"bees": 1.0}), "csv", None))
    assert capfdbinary.readouterr().out == b"\xff.png,bees,1.000000,1.000000\n"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.csv").write_text("before")
    with pytest.raises(ZeroDivisionError), row_stream(tmp_path / "a.csv") as stream:
        stream.write("half")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.csv", "before")]


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(PipelineError) as error, row_stream(tmp_path / "a.csv"):
        raise OSError(28, "No space left on device")
    assert str(error.value) == f"{tmp_path}/a.csv: No space left on device; see to it and ask again"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_left_is_no_fault_of_the_target():
    with pytest.raises(BrokenPipeError), writing("stdout"):
        raise BrokenPipeError


@pytest.mark.parametrize("named", ["folder", "/dev/null"])
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path, named):
    (tmp_path / "folder").mkdir()
    with pytest.raises(PipelineError) as error:
        output_path(tmp_path, named)
    assert str(error.value) == f"{named}: is no ordinary file; name another"


def test_a_file_is_written_where_the_user_stands(tmp_path):
    assert output_path(tmp_path, "new/a.csv") == tmp_path / "new" / "a.csv"
