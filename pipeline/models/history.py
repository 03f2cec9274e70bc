"""How a stored model came about, epoch by epoch."""

from pathlib import Path

from pipeline.files import read_json, read_table


def kept_row(folder: Path) -> dict[str, str]:
    """The row of history.csv whose weights a model folder stores: that which its param `monitor` ranks first, or the lowest val loss."""
    monitor = read_json(folder / "model.json").get("params", {}).get("monitor", "val_loss")
    sign = 1 if monitor.endswith("loss") else -1
    rows = [row for row in read_table(folder / "history.csv") if row[monitor]]
    return min(rows, key=lambda row: sign * float(row[monitor]))
