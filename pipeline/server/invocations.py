"""What clients of MLflow's scoring server send to /invocations for this model, and the answer they expect."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from pipeline.server.engine import Answer
from pipeline.server.uploads import Refused

COLUMN = "picture"
_MOST_SIGNS = 50_000  # that begin a value: small values take many times their bytes in memory
_FORMATS = ("dataframe_split", "dataframe_records")
_EXPECTED = f"a JSON object with {' or '.join(_FORMATS)}, and in it the column `{COLUMN}` with pictures in base64"


def read_cells(content_type: str, body: bytes, most: int) -> list[bytes]:
    """The pictures of a request in the order of its rows. Raises Refused.

    As in MLflow, characters that are not base64 are skipped, other columns are ignored, and `params` are not used. Its forms `instances`
    and `inputs` are refused: it never decodes base64 in them.
    """
    kind, _, options = content_type.partition(";")
    if kind.strip().lower() != "application/json" or options.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise Refused(415, "type", "the content type is not application/json in UTF-8")
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_SIGNS:
        raise Refused(413, "json", f"the JSON has more than {_MOST_SIGNS:,} values; send several requests")
    try:
        request = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "json", "the body is not JSON") from None
    formats = [name for name in (*_FORMATS, "instances", "inputs") if isinstance(request, dict) and name in request]
    if len(formats) != 1 or formats[0] not in _FORMATS:
        raise Refused(400, "json", f"the body is not {_EXPECTED}")
    cells = _column(formats[0], request[formats[0]])
    if len(cells) > most:
        raise Refused(413, "pictures", f"the request contains more than {most} pictures; send several requests")
    return [_bytes_of(cell) for cell in cells]


def invocation_row(answer: Answer | str) -> dict[str, Any]:
    """A row of the answer, as `serving/pyfunc` makes it. A text is the fault of a picture that cannot be read."""
    if isinstance(answer, str):
        return {"predicted": None, "probability": None, "probabilities": None, "unfamiliar": None, "fault": answer}
    names, probs = answer.model.predictor.class_names, answer.probs
    return {
        "predicted": names[int(probs.argmax())],
        "probability": float(probs.max()),
        "probabilities": probs.astype(float).tolist(),
        "unfamiliar": None if answer.unfamiliarity is None else answer.unfamiliarity > 1,
        "fault": None,
    }


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _column(form: str, content: Any) -> Sequence[Any]:
    """The cells of the column of pictures. Raises Refused if there is none."""
    try:
        if form == "dataframe_split":
            place = list(content["columns"]).index(COLUMN)
            return [row[place] for row in _listed(content["data"])]
        return [row[COLUMN] for row in _listed(content) or [{}]]  # without a row there is no column
    except (LookupError, TypeError, ValueError):
        raise Refused(400, "json", f"`{form}` has no column `{COLUMN}`, or another form than pandas gives it") from None


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _bytes_of(cell: Any) -> bytes:
    try:
        return base64.decodebytes(cell.encode("utf-8"))
    except (AttributeError, binascii.Error, UnicodeEncodeError):
        raise Refused(400, "json", f"a cell of the column `{COLUMN}` is not a picture in base64") from None
