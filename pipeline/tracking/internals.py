"""Names and files of MLflow that only its own page and its own code define: all that may break with another version of MLflow."""

import json
import logging
import random
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from PIL import Image

from pipeline.core.files import table_rows

NOTE = "mlflow.note.content"  # the description of a run
PARENT = "mlflow.parentRunId"
GIT_COMMIT = "mlflow.source.git.commit"
SPLIT = "mlflow.data.context"  # of a dataset that is an input
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
IMAGES = "images"  # the folder in which MLflow's page looks for images
TABLE = "predictions_table.json"
PAGE_TAGS = {"mlflow.loggedImages": "True", "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])}

_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)  # columns of MLflow's database with absolute paths
_TABLE_COLUMNS = ("image_id", "predicted", "label", "probability", "right")  # the page groups by the first, compares the second
_COLLISION = re.compile("IntegrityError|UniqueViolation|duplicate|database is locked|deadlock|Giving up after", re.IGNORECASE)
_ATTEMPTS = 6
_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
_SMALL_PIXELS = 768  # a limit of ours, for the grid of images


def open_once() -> None:
    """Make MLflow try once to open a database: its default of ten attempts takes 100 seconds and prints tracebacks."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 1
    logging.getLogger(utils.__name__).setLevel(logging.CRITICAL)


def schema_cure(error: str, uri: str) -> str | None:
    """If an error says that the database at `uri` is of another version of MLflow, what to do about it."""
    found = re.search(r"database schema \(found version (\w+)", error)
    if found is None:
        return None
    import mlflow
    from mlflow.store import db_migrations

    if any((Path(db_migrations.__path__[0]) / "versions").glob(f"{found[1]}_*.py")):
        return f"the database is of an earlier version of MLflow; copy it, run `mlflow db upgrade {uri}`"
    return f"the database is of a later version of MLflow than {mlflow.__version__}; install that version"


@contextmanager
def resume(run_id: str) -> Iterator[None]:
    """The context in which MLflow's fluent functions log to a run. Metrics of the system stay out: they would differ each time.

    A run in which the block succeeds stays RUNNING: MLflow would end it, and other machines would take it for one that nobody writes.
    """
    import mlflow

    mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield
    except BaseException:
        mlflow.end_run("FAILED")
        raise
    mlflow.end_run("RUNNING")


def write_beside_others(call: Callable[_Arguments, _Answer], *arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> _Answer:
    """Call a function of MLflow's client that writes, again if another process wrote the same row at that moment.

    MLflow reads whether a row exists, then inserts or changes it: of two processes that insert it at once, one fails and wrote nothing.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(1, _ATTEMPTS):
        try:
            return call(*arguments, **keywords)
        except MlflowException as error:
            if not _COLLISION.search(str(error)):
                raise
        time.sleep(random.uniform(0, 0.1 * attempt))  # noqa: S311 - no secret
    return call(*arguments, **keywords)


def move_artifact_locations(database: Path, old: str, new: str) -> None:
    """Let what lies below the folder `old` be found below `new`, where the project is now. What is still below `old` alone stays there."""
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            for table, column in _LOCATIONS:
                # The names are constants of ours.
                rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()  # noqa: S608
                below = [(rowid, place) for rowid, place in rows if place and (place == old or place.startswith(f"{old}/"))]
                moved = [(new + place.removeprefix(old), rowid, place) for rowid, place in below]
                kept = [] if table == "experiments" else [each for each in moved if Path(each[2]).exists() and not Path(each[0]).exists()]
                changes = [(place, rowid) for place, rowid, _ in (each for each in moved if each not in kept)]
                connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changes)  # noqa: S608
    except sqlite3.Error as error:
        raise OSError(f"the artifact locations cannot be moved from {old} to {new}: {error}") from None


def image_names(figures: Path, start: int) -> dict[Path, str]:
    """Each PNG of a folder, and its name in MLflow without the extension. `start`: of the run, in milliseconds.

    `MlflowClient.log_image` draws a random name at each call. A name that follows from the file's own makes no second image.
    """
    names = {path: re.sub(r"[^a-zA-Z0-9_. -]", "_", path.stem) for path in sorted(figures.glob("*.png"))}  # what MLflow takes, but for "/"
    return {path: f"{name}+step+0+timestamp+{start}+{uuid.uuid5(uuid.NAMESPACE_OID, path.stem)}" for path, name in names.items()}


def write_images(folder: Path, figures: Path, start: int) -> None:
    """Write each figure into a new folder as MLflow's page reads it: the PNG, and a small copy for the grid."""
    folder.mkdir()
    for path, name in image_names(figures, start).items():
        shutil.copyfile(path, folder / f"{name}.png")
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.thumbnail((_SMALL_PIXELS, _SMALL_PIXELS))
        small.save(folder / f"{name}+compressed.webp", quality=85)


def write_predictions_table(path: Path, predictions: Path) -> None:
    """Write one row per picture, with the probability of the predicted class. `predictions`: predictions.csv.

    The format is that of MLflow's `log_table` (pandas, orient "split"), which appends to a table; this replaces it.
    """
    rows = [
        [row["image_id"], row["predicted"], row["label"], float(row["probability"]), row["predicted"] == row["label"]]
        for row in table_rows(predictions)
    ]
    path.write_text(json.dumps({"columns": _TABLE_COLUMNS, "data": rows}), encoding="utf-8")
