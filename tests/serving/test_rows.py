"""Rows that every reader of CSV or JSON reads back unchanged, and where they are written."""

import csv
import io
import json

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import output_path, row_stream, writing
from pipeline.serving.predictions import Prediction, row_line, rows_header

NAMES = ["ants", "bees", "wasps"]
PREDICTION = Prediction("in/a.png", "bees", 0.7, {"ants": 0.1, "bees": 0.7, "wasps": 0.2})
UNFAMILIAR = Prediction("in/a.png", None, 0.7, {"ants": 0.1, "bees": 0.7, "wasps": 0.2}, 1.25, refused=True)
HARD = ["a,b.png", 'a "b".png', "a\nb.png", "a\rb.png", "-a.png", "🐝 Käfer.png", " a ", "\u2028.png", "\udcff.png"]


def test_there_are_no_more_of_the_most_probable_classes_than_classes():
    text = rows_header("csv", NAMES, 9) + row_line(PREDICTION, "csv", 9)
    rows = list(csv.reader(io.StringIO(text)))
    assert (rows[0][-1], rows[1][-2:]) == ("top_3_prob", ["ants", "0.100000"])


@pytest.mark.parametrize("top", [None, 2])
def test_a_row_ends_with_what_the_model_tells_of_unfamiliarity(top):
    text = rows_header("csv", NAMES, top, tells_unfamiliar=True) + row_line(UNFAMILIAR, "csv", top)
    [row] = csv.DictReader(io.StringIO(text))
    assert list(row)[-2:] == ["unfamiliar", "unfamiliarity"]
    assert (row["predicted"], row["unfamiliar"], row["unfamiliarity"]) == ("", "true", "1.2500")


def test_a_json_line_has_the_keys_of_unfamiliarity_only_if_the_model_tells():
    told, untold = (json.loads(row_line(each, "jsonl", None)) for each in (UNFAMILIAR, PREDICTION))
    assert (told["predicted"], told["unfamiliar"], told["unfamiliarity"]) == (None, True, 1.25)
    assert told.keys() - untold.keys() == {"unfamiliar", "unfamiliarity"}


def test_equally_probable_classes_keep_their_order():
    equals = Prediction("a", "ants", 0.4, {"ants": 0.4, "bees": 0.2, "wasps": 0.4})
    assert row_line(equals, "csv", 2) == "a,ants,0.400000,ants,0.400000,wasps,0.400000\n"


def test_a_json_line_of_the_most_probable_begins_with_the_likeliest():
    assert list(json.loads(row_line(PREDICTION, "jsonl", 2))["probs"].items()) == [("bees", 0.7), ("wasps", 0.2)]


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
    assert str(error.value).startswith(f"{tmp_path}/a.csv: No space left on device; ")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_not_a_fault_of_the_target():
    with pytest.raises(BrokenPipeError), writing("stdout"):
        raise BrokenPipeError


@pytest.mark.parametrize("named", ["folder", "/dev/null"])
def test_a_folder_or_a_device_is_not_replaced(tmp_path, named):
    (tmp_path / "folder").mkdir()
    with pytest.raises(PipelineError, match=rf"^{named}: "):
        output_path(tmp_path, named)


def test_an_output_is_relative_to_the_users_folder(tmp_path):
    assert output_path(tmp_path, "new/a.csv") == tmp_path / "new" / "a.csv"
