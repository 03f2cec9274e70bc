"""What each endpoint promises, asked over a real connection."""

import base64
import json
import time

import pytest

from pipeline.networks.artifact import read_facts
from pipeline.server import documents
from pipeline.serving.predictor import open_model
from tests.server.running import form, picture, request, running

RED, BLUE = picture("red"), picture("blue", (30, 20), "JPEG")
BROKEN = b"no picture"


@pytest.fixture(scope="module")
def seen():
    """What an observer was given."""
    return []


@pytest.fixture(scope="module")
def server(model_folder, seen):
    with running(model_folder, observers=[seen.append]) as listening:
        yield listening


@pytest.fixture(scope="module")
def expected(model_folder):
    """The probabilities of RED and BLUE by the model itself."""
    return open_model(model_folder, 1).predict([RED, BLUE])


def row(probs):
    names = ["ants", "bees", "Käfer"]
    rounded = [round(float(prob), 6) for prob in probs]
    return {"predicted": names[int(probs.argmax())], "probability": max(rounded), "probs": dict(zip(names, rounded, strict=True))}


def test_a_picture_is_answered_as_the_model_answers_it(server, expected):
    status, _, answer = server.ask("POST", "/predict", RED, content_type="image/png")
    assert (status, answer["predictions"]) == (200, [row(expected[0])])
    documents.Predictions.model_validate(answer)


def test_a_form_of_several_pictures_has_a_row_for_each_in_order_and_a_broken_one_has_its_fault(server, expected):
    body, kind = form(BLUE, BROKEN, RED)
    status, _, answer = server.ask("POST", "/predict", body, content_type=kind)
    assert (status, answer["predictions"]) == (200, [row(expected[1]), {"fault": "not a picture"}, row(expected[0])])
    documents.Predictions.model_validate(answer)


def test_every_answer_says_which_model_and_which_request(server, model_folder):
    sha256 = read_facts(model_folder)["model_sha256"]
    for method, path, body in (("POST", "/predict", RED), ("POST", "/predict", BROKEN), ("GET", "/metadata", b""), ("GET", "/none", b"")):
        _, headers, answer = server.ask(method, path, body, X_Request_ID="my-id.7")
        assert answer["model"] == {"name": "small", "sha256": sha256, "version": "7"}
        assert (headers["x-model-sha256"], headers["x-model-version"]) == (sha256, "7")
        assert headers["x-request-id"] == answer["request_id"] == "my-id.7"


@pytest.mark.parametrize("given", ["", "a b", "<script>", "x" * 129, "ä"])
def test_a_request_id_that_is_not_sane_is_replaced(server, given):
    _, headers, answer = server.ask("POST", "/predict", RED, X_Request_ID=given)
    assert headers["x-request-id"] == answer["request_id"]
    assert len(answer["request_id"]) == 32
    assert answer["request_id"].isalnum()


def test_metadata_describes_the_model(server, model_folder):
    status, _, answer = server.ask("GET", "/metadata")
    assert status == 200
    assert answer["class_names"] == ["ants", "bees", "Käfer"]
    assert answer["preprocessing"]["image_size"] == 8
    assert answer["limits"] == {"body_bytes": 200_000, "pictures": 8, "pixels": 1_000_000}
    documents.Metadata.model_validate(answer)


def test_live_and_ready_answer_and_ready_says_when_the_server_ends(server):
    assert [server.ask("GET", path)[0] for path in ("/live", "/ready")] == [200, 200]
    server.app.state.service.is_ready = False
    assert [server.ask("GET", path)[0] for path in ("/live", "/ready")] == [200, 503]
    server.app.state.service.is_ready = True


def test_metrics_count_answers_confidence_phases_and_refusals(server, expected):
    predicted = row(expected[0])["predicted"]
    before = {name: server.count(name, **{"class": predicted}) for name in ("pipeline_answers_total", "pipeline_confidence_count")}
    phases = {phase: server.count("pipeline_seconds_count", phase=phase) for phase in ("decode", "queue", "infer")}
    refused = server.count("pipeline_refusals_total", reason="broken")
    server.ask("POST", "/predict", RED)
    server.ask("POST", "/predict", BROKEN)
    assert {name: server.count(name, **{"class": predicted}) for name in before} == {name: value + 1 for name, value in before.items()}
    assert {phase: server.count("pipeline_seconds_count", phase=phase) for phase in phases} == {k: v + 1 for k, v in phases.items()}
    assert server.count("pipeline_refusals_total", reason="broken") == refused + 1
    status, headers, text = server.ask("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "pipeline_queue_depth 0.0\n" in text


def test_observers_get_each_answered_picture_with_its_bytes_and_none_that_is_broken(server, seen):
    seen.clear()
    body, kind = form(BLUE, BROKEN)
    server.ask("POST", "/predict", body, content_type=kind, X_Request_ID="one")
    until = time.monotonic() + 5
    while not seen and time.monotonic() < until:
        time.sleep(0.005)
    assert [(observed.request_id, observed.content, observed.picture.size) for observed in seen] == [("one", BLUE, (30, 20))]
    assert (len(seen[0].sha256), seen[0].answer.model.name) == (64, "small")


def test_openapi_describes_what_is_answered(server):
    status, _, document = server.ask("GET", "/openapi.json")
    assert status == 200
    assert {"/predict", "/invocations", "/live", "/ready", "/metadata", "/metrics"} <= set(document["paths"])
    assert "multipart/form-data" in document["paths"]["/predict"]["post"]["requestBody"]["content"]


def test_a_fault_of_the_server_is_one_sentence_without_a_trace(server, monkeypatch):
    monkeypatch.setattr(server.app.state.service, "predict", lambda *_: 1 / 0)
    status, headers, answer = server.ask("POST", "/predict", RED)
    assert (status, answer["error"]) == (500, "the server has a fault; its log has the request id")
    assert headers["x-request-id"] == answer["request_id"]


CELLS = [base64.b64encode(content).decode() for content in (RED, BROKEN)]
FORMS = {
    "dataframe_split": {"columns": ["other", "picture"], "data": [[1, CELLS[0]], [2, CELLS[1]]]},
    "dataframe_records": [{"picture": CELLS[0]}, {"picture": CELLS[1], "other": None}],
}


@pytest.mark.parametrize("name", FORMS)
def test_invocations_answer_as_the_model_in_mlflow_does(server, expected, name):
    body = json.dumps({name: FORMS[name], "params": {}}).encode()
    status, _, answer = server.ask("POST", "/invocations", body, content_type="application/json; charset=utf-8")
    documents.Invocations.model_validate(answer)
    first, second = answer["predictions"]
    assert status == 200
    assert first == {
        "predicted": row(expected[0])["predicted"],
        "probability": float(expected[0].max()),
        "probabilities": expected[0].astype(float).tolist(),
        "unfamiliar": None,  # this model does not tell
        "fault": None,
    }
    assert second == {"predicted": None, "probability": None, "probabilities": None, "unfamiliar": None, "fault": "not a picture"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflows_own_scoring_server_gives_the_same_rows(server, model_folder, tmp_path, monkeypatch):
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.models import ModelSignature
    from mlflow.pyfunc.scoring_server import init
    from mlflow.types import ColSpec, DataType, Schema

    from tests.checkout import ROOT

    monkeypatch.chdir(tmp_path)
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"),
        python_model=str(ROOT / "pipeline/serving/pyfunc.py"),
        artifacts={"model": str(model_folder / "model.onnx")},
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "picture")])),
        pip_requirements=[],
    )
    theirs = TestClient(init(mlflow.pyfunc.load_model(str(tmp_path / "model"))))
    for name, content in FORMS.items():
        body = json.dumps({name: content}).encode()
        answer = theirs.post("/invocations", content=body, headers={"content-type": "application/json"})
        status, _, ours = server.ask("POST", "/invocations", body, content_type="application/json")
        assert (answer.status_code, answer.json()["predictions"]) == (status, ours["predictions"])
    for wrong in (
        {"dataframe_split": {"columns": ["x"], "data": [[1]]}},
        {"dataframe_split": {"data": [[CELLS[0]]]}},
        {"dataframe_records": [{"picture": 7}]},
        {"dataframe_records": [{"picture": "abc"}]},
        {"dataframe_records": {"picture": CELLS[0]}},
        {"dataframe_records": []},
        {"a": 1},
        [],
        7,
    ):
        body = json.dumps(wrong).encode()
        answer = theirs.post("/invocations", content=body, headers={"content-type": "application/json"})
        status, _, ours = server.ask("POST", "/invocations", body, content_type="application/json")
        assert (answer.status_code, status) == (400, 400)
        assert {"error_code", "message"} <= answer.json().keys() & ours.keys()


def test_head_is_answered_as_get_without_the_body(server):
    full, bare = (server.send(request(method, "/live", connection="close", x_request_id="a")) for method in ("GET", "HEAD"))
    assert full.startswith(b"HTTP/1.1 200")
    assert without_date(bare) == without_date(full.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")


def without_date(head):
    return [line for line in head.split(b"\r\n") if not line.startswith(b"date:")]
