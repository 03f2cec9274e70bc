"""The forms of requests and answers: as OpenAPI states them, and the rows of an answer."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.server.engine import Answer

_BINARY = {"type": "string", "format": "binary"}
_CELLS = {"type": "array", "items": {"type": "array", "items": {"type": "string", "format": "byte"}}}
_RECORDS = {"type": "array", "items": {"type": "object", "properties": {"picture": {"type": "string", "format": "byte"}}}}


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Model(_Form):
    """The model that answered. `version`: in MLflow's registry, null if it is not known."""

    name: str
    sha256: str
    version: str | None


class Status(_Form):
    """The state of the server."""

    status: str


class Row(_Form):
    """The answer to a picture. `unfamiliarity`: above 1 is unfamiliar, if the model says so."""

    predicted: str
    probability: float
    probs: dict[str, float]
    unfamiliarity: float | None = None
    unfamiliar: bool | None = None


class Fault(_Form):
    """Why a picture cannot be read."""

    fault: str


class Predictions(_Form):
    """A row per picture, in the order of the request."""

    predictions: list[Row | Fault]
    model: Model
    request_id: str


class InvocationRow(_Form):
    """The answer to a picture in the form of MLflow's model."""

    predicted: str | None
    probability: float | None
    probabilities: list[float] | None
    unfamiliar: bool | None
    fault: str | None


class Invocations(_Form):
    """A row per picture, in the order of the request."""

    predictions: list[InvocationRow]
    model: Model
    request_id: str


class Error(BaseModel):
    """Why a request was not answered, in one sentence."""

    error: str
    request_id: str
    model: Model


class Metadata(_Form):
    """The served model and the limits of the server. `unfamiliar`: how its outputs of that name were made, null if it has none.

    `following`, `shadow`, `log`: what the server does beside answering; a key is missing if it does not.
    """

    model: Model
    class_names: list[str]
    preprocessing: dict[str, Any]
    unfamiliar: dict[str, Any] | None
    params: dict[str, Any]
    limits: dict[str, int]
    request_id: str
    following: dict[str, Any] | None = None
    shadow: dict[str, Any] | None = None
    log: dict[str, Any] | None = None


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The body has another form"},
    401: {"model": Error, "description": "The token is missing or wrong"},
    408: {"model": Error, "description": "The body arrived too slowly"},
    413: {"model": Error, "description": "Too many bytes or pictures"},
    415: {"model": Error, "description": "The content type is not read here"},
    503: {"model": Error, "description": "The queue is full, or the answer took too long; Retry-After says when to try again"},
}
PREDICT_DOCUMENT: dict[str, Any] = {
    "response_model": Predictions,
    "responses": {**_ERRORS, 422: {"model": Error, "description": "No picture can be read"}},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": {"picture": {"type": "array", "items": _BINARY}}}},
                "image/*": {"schema": _BINARY},
                "application/octet-stream": {"schema": _BINARY},
            },
        }
    },
}
INVOCATIONS_DOCUMENT: dict[str, Any] = {
    "response_model": Invocations,
    "responses": _ERRORS,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "dataframe_split": {"type": "object", "properties": {"columns": {"type": "array"}, "data": _CELLS}},
                            "dataframe_records": _RECORDS,
                        },
                    }
                }
            },
        }
    },
}


def row_of(answer: Answer | str) -> dict[str, Any]:
    """An answer as JSON: `predicted`, `probability`, `probs` by class, and `unfamiliarity` and `unfamiliar` if the model has them.

    A text is the fault of a picture that cannot be read.
    """
    if isinstance(answer, str):
        return {"fault": answer}
    names, probs = answer.model.predictor.facts["class_names"], [round(prob, 6) for prob in answer.probs.tolist()]
    best = int(answer.probs.argmax())
    row: dict[str, Any] = {"predicted": names[best], "probability": probs[best], "probs": dict(zip(names, probs, strict=True))}
    if answer.unfamiliarity is not None:
        row |= {"unfamiliarity": round(answer.unfamiliarity, 6), "unfamiliar": answer.unfamiliarity > 1}
    return row


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
