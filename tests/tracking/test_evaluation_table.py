"""The table of answers is what pandas reads in the form «split», as MLflow does."""

import pandas as pd

from pipeline.core.files import write_table
from pipeline.tracking.contents import write_evaluation_table

ROWS = [
    {"image_id": "a/1.png", "label": "ant", "predicted": "ant", "prob_ant": "0.750000", "prob_bee": "0.250000"},
    {"image_id": "a/2.png", "label": "ant", "predicted": "bee", "prob_ant": "0.125000", "prob_bee": "0.875000"},
]


def test_each_picture_has_its_answer_its_label_and_how_sure_the_model_was(tmp_path):
    write_table(tmp_path / "predictions.csv", list(ROWS[0]), ROWS)
    write_evaluation_table(tmp_path / "table.json", tmp_path / "predictions.csv")
    table = pd.read_json(tmp_path / "table.json", orient="split")
    assert list(table) == ["image_id", "predicted", "label", "probability", "right"]
    assert table.to_numpy().tolist() == [["a/1.png", "ant", "ant", 0.75, True], ["a/2.png", "bee", "ant", 0.875, False]]
