"""The figures of each look are a step of one run per model in MLflow."""

import pytest

from pipeline.tracking.connection import connect
from pipeline.tracking.watching import WATCHED, log_drift


@pytest.mark.slow
def test_each_look_is_a_step_of_the_run_of_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for sha256, p in (("a" * 64, 0.5), ("a" * 64, 0.001), ("b" * 64, 0.7)):
        log_drift(sha256, {"drift_p": p})
    client, experiment = connect()
    runs = {run.data.tags[WATCHED][0]: run.info for run in client.search_runs([experiment])}
    assert sorted(runs) == ["a", "b"]
    history = client.get_metric_history(runs["a"].run_id, "drift_p")
    assert [(each.step, each.value) for each in history] == [(1, 0.5), (2, 0.001)]
    assert runs["a"].status == "FINISHED"
