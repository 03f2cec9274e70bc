"""Which epoch a stored model is of."""

import json

import pytest

from pipeline.networks.artifact import kept_row


def write(folder, rows, monitor=None):
    (folder / "model.json").write_text(json.dumps({"params": {"monitor": monitor}} if monitor else {}))
    lines = [f"{epoch},{loss},{accuracy}" for epoch, (loss, accuracy) in enumerate(rows)]
    (folder / "history.csv").write_text("\n".join(["epoch,val_loss,val_accuracy", *lines]) + "\n")
    return folder


ROWS = [(0.5, 0.8), (3e-5, 0.9), (0.4, 0.95), (0.4, 0.95)]


@pytest.mark.parametrize(("monitor", "epoch"), [(None, "1"), ("val_loss", "1"), ("val_accuracy", "2")])  # the first of equals
def test_the_stored_epoch_is_that_which_the_recipe_watched_for(monitor, epoch, tmp_path):
    assert kept_row(write(tmp_path, ROWS, monitor))["epoch"] == epoch


def test_values_are_compared_as_numbers(tmp_path):
    assert kept_row(write(tmp_path, [(10, 0), (9, 0)]))["epoch"] == "1"
