"""Tables of answers: a row a picture, and the labels that the answers speak against."""

import numpy as np
import pytest

from pipeline.evaluation.scores import most_doubted, write_predictions
from pipeline.pictures.manifest import Picture


def make_picture(image_id, label):
    return Picture(image_id, image_id, "0" * 64, label, "val", image_id, 8, 8)


def make_row(image_id, label, **probs):
    return {"image_id": image_id, "label": label, "predicted": max(probs, key=probs.get), **{f"prob_{k}": f"{p}" for k, p in probs.items()}}


ROWS = [
    make_row("sure and right", "ants", ants=0.9, bees=0.1),
    make_row("wrong by little", "ants", ants=0.4, bees=0.6),
    make_row("wrong by much", "bees", ants=0.99, bees=0.01),
    make_row("b, wrong by much", "bees", ants=0.99, bees=0.01),
]


def test_predictions_have_a_row_a_picture(tmp_path):
    pictures = [make_picture("bees/1.png", "bees"), make_picture("a,b.png", "ants")]
    write_predictions(tmp_path / "predictions.csv", pictures, np.array([[0.25, 0.75], [1 / 3, 2 / 3]]), ["ants", "bees"])
    assert (tmp_path / "predictions.csv").read_text() == (
        'image_id,label,predicted,prob_ants,prob_bees\nbees/1.png,bees,bees,0.250000,0.750000\n"a,b.png",ants,bees,0.333333,0.666667\n'
    )


def test_the_least_likely_labels_are_doubted_most():
    assert [row["image_id"] for row in most_doubted(ROWS, 9)] == ["b, wrong by much", "wrong by much", "wrong by little"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_more_doubts_are_named_than_asked_for(count):
    assert len(most_doubted(ROWS, count)) == count
