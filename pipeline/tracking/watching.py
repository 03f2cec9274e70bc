"""Log what `pipeline drift` finds: one run per model that is watched, a step per look."""

import time
from collections.abc import Mapping

from pipeline.tracking.connection import connect, creation_lock, mlflow_errors
from pipeline.tracking.internals import write_beside_others

WATCHED = "pipeline.watched"  # the tag with the sha256 of the model.onnx; the run has no other tag of the pipeline


def log_drift(model_sha256: str, metrics: Mapping[str, float]) -> None:
    """Log the figures of one look into the experiment of the models. The step is the number of the look. Raises PipelineError."""
    with mlflow_errors("run `pipeline drift` again"):
        from mlflow.entities import Metric

        client, experiment_id = connect()
        with creation_lock():
            runs = client.search_runs([experiment_id], f"tags.`{WATCHED}` = '{model_sha256}'", order_by=["attributes.start_time ASC"])
            run = runs[0] if runs else client.create_run(experiment_id, tags={WATCHED: model_sha256}, run_name=f"drift {model_sha256[:12]}")
            name = next(iter(metrics))
            step = len(client.get_metric_history(run.info.run_id, name)) + 1
            now = int(time.time() * 1000)
            logged = [Metric(key, value, now, step) for key, value in metrics.items()]
            write_beside_others(client.log_batch, run.info.run_id, metrics=logged)
            write_beside_others(client.set_terminated, run.info.run_id, "FINISHED")
