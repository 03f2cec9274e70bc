"""The logged model answers for bytes alone, row by row, whatever a request contains."""

import io
import json
import os
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import parse_csv_input, predictions_to_json
from PIL import Image

from pipeline.pictures.images import Preprocessing, read_square
from pipeline.serving.pyfunc import PictureModel
from tests.stored import SIZE, write_model


@pytest.fixture
def model(tmp_path):
    """The pyfunc of a small stored model."""
    folder = write_model(tmp_path / "model")
    loaded = PictureModel()
    loaded.load_context(SimpleNamespace(artifacts={"model": str(folder / "model.onnx")}))
    return loaded


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (12, 12), colour).save(file, "PNG")
    return file.getvalue()


def answers(model, cells):
    return model.predict(None, pd.DataFrame({"picture": pd.Series(cells, dtype=object)})).to_dict("records")


def test_a_broken_picture_is_a_row_with_its_fault_and_the_others_have_answers(model):
    whole = [picture("red"), picture("blue")]
    alone = answers(model, whole)
    mixed = answers(model, [whole[0], b"no picture", whole[0][:-30], b"", whole[1]])
    assert [mixed[0], mixed[-1]] == alone
    assert [row["predicted"] is not None and row["fault"] is None for row in alone] == [True, True]
    assert [set(row.items()) - {("fault", row["fault"])} for row in mixed[1:4]] == [
        {("predicted", None), ("probability", None), ("probabilities", None), ("unfamiliar", None)}
    ] * 3
    assert mixed[1]["fault"] == "not a picture"


def test_a_model_that_tells_marks_what_is_unfamiliar(tmp_path):
    red = read_square(picture("red"), Preprocessing(SIZE, 1.0, "bicubic"))
    folder, telling = write_model(tmp_path / "telling", familiar=red[None]), PictureModel()
    telling.load_context(SimpleNamespace(artifacts={"model": str(folder / "model.onnx")}))
    rows = answers(telling, [picture("red"), picture("blue"), b"no picture"])
    assert [row["unfamiliar"] for row in rows] == [False, True, None]


def test_a_model_that_does_not_tell_marks_nothing(model):
    assert [row["unfamiliar"] for row in answers(model, [picture("red")])] == [None]


def test_a_path_in_a_request_is_not_opened(model, tmp_path):
    (tmp_path / "here.png").write_bytes(picture("red"))
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    names = [tmp_path / "here.png", tmp_path / "pipe.png", f"file://{tmp_path}/here.png", "nothing"]
    frame = parse_csv_input(io.StringIO("picture\n" + "\n".join(map(str, names)) + "\n"))
    assert list(model.predict(None, frame)["fault"]) == ["is not the bytes of a picture"] * 4
    assert answers(model, [tmp_path / "here.png", None, 7, float("nan")])[0]["fault"] == "is not the bytes of a picture"


@pytest.mark.parametrize("count", [0, 1, 33])
def test_each_picture_has_a_row_whatever_their_number(model, count):
    assert [row["fault"] for row in answers(model, [picture("red")] * count)] == [None] * count


def test_the_answer_is_json(model):
    written = io.StringIO()
    predictions_to_json(model.predict(None, pd.DataFrame({"picture": [picture("red"), "x"]})), written)
    first, second = json.loads(written.getvalue(), parse_constant=pytest.fail)["predictions"]
    assert sum(first["probabilities"]) == pytest.approx(1)
    assert second == {
        "predicted": None,
        "probability": None,
        "probabilities": None,
        "unfamiliar": None,
        "fault": "is not the bytes of a picture",
    }
