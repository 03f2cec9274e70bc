"""Agreement of machines that write to one MLflow at the same time: of equal runs that each of them creates, all keep the same one.

MLflow has no lock that machines share, and the times of its runs are of the clocks of its clients, so that a look at the runs does not
show which one was first. But it never changes a param: of two machines that log a param with different values, the second one fails.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.tracking.internals import write_beside_others

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

# Params of a run that no machine changes: whether it is the kept one of the runs of equal contents, or of those that are logged from a
# stored model; and the id of its logged model.
KEPT = "pipeline.kept"
STORED = "pipeline.stored"
LOGGED = "pipeline.logged_model"
DECIDED = (KEPT, STORED, LOGGED)
YES, NO = "yes", "no"

_PATIENCE_SECONDS = 30.0  # for which a run is left to the machine that writes it
_PAUSE_SECONDS = 0.5


def agree_on_run(client: "MlflowClient", name: str, find: Callable[[], Sequence["Run"]], create: Callable[[], "Run"]) -> tuple["Run", bool]:
    """The run that all machines keep, of those that `find` finds or one that `create` creates; and whether it was created here.

    `find` must find what `create` creates, on each machine. `name`: of the param that says which run is kept. A run that was created here
    and is not kept is deleted, unless somebody wrote to it.
    """
    created: dict[str, Run] = {}
    while (kept := _decide(client, name, find)) is None:
        run = create()
        created[run.info.run_id] = run
    for run_id in created.keys() - {kept.info.run_id}:
        if is_unwritten(client, found := client.get_run(run_id)) and found.data.tags == created[run_id].data.tags:
            client.delete_run(run_id)
    return kept, kept.info.run_id in created


def _decide(client: "MlflowClient", name: str, find: Callable[[], Sequence["Run"]]) -> "Run | None":
    """The run that is kept; None if there is none that could be.

    Before a run is kept, all others that are found are given up. Of two runs, whoever keeps the one that was visible later finds both.
    So two are never kept. Every machine decides for all runs, because the one that created a run may be dead.
    """
    while True:
        runs = sorted(find(), key=lambda run: (run.info.start_time, run.info.run_id))
        if kept := [run for run in runs if run.data.params.get(name) == YES]:
            return kept[0]
        undecided = [run for run in runs if name not in run.data.params]
        if not undecided:
            return None
        first, *others = undecided
        if all(_claim(client, run, name, NO) for run in others) and _claim(client, first, name, YES):
            return first


def _claim(client: "MlflowClient", run: "Run", name: str, value: str) -> bool:
    """Log a param, and return whether the run has it with this value."""
    from mlflow.exceptions import MlflowException

    try:
        write_beside_others(client.log_param, run.info.run_id, name, value)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":  # which stands for another value, and for a deleted run
            raise
        return False
    return True


def is_unwritten(client: "MlflowClient", run: "Run") -> bool:
    """Whether the run has nothing but tags and perhaps the decision against it."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    decisions = {name: value for name, value in run.data.params.items() if name in DECIDED and value == NO}
    return run.data.params == decisions and not (run.data.metrics or inputs or client.list_artifacts(run.info.run_id))


def agree_on_model(client: "MlflowClient", run: "Run", models: Sequence["LoggedModel"]) -> "LoggedModel | None":
    """The one of the complete logged models of a run that all machines keep. If somebody deleted that, the first one."""
    ready = sorted((logged for logged in models if logged.status == "READY"), key=lambda each: (each.creation_timestamp, each.model_id))
    if not ready:
        return None
    name = client.get_run(run.info.run_id).data.params.get(LOGGED)
    if name is None:
        _claim(client, run, LOGGED, ready[0].model_id)
        name = client.get_run(run.info.run_id).data.params.get(LOGGED)
    return next((logged for logged in ready if logged.model_id == name), ready[0])


def wait_for_writer(client: "MlflowClient", run: "Run") -> "Run":
    """The run as the machine that writes it leaves it. If that takes long, it may be dead, and the run is as it is now."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while run.info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        run = client.get_run(run.info.run_id)
    return run
