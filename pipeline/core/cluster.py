"""The Ray cluster on which predictions and features are computed: connect to it, or start a Ray on this machine."""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pipeline
from pipeline.core.errors import PipelineError
from pipeline.core.hardware import usable_cpus

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "CRITICAL", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_ONE_TRY = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # of 40 seconds, to reach the cluster
_ALONE = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the latter: Ray listens on loopback alone


@contextmanager
def connected(threads: int) -> Iterator[ModuleType]:
    """Yield the module `ray`, connected to the cluster at RAY_ADDRESS, or to a Ray on this machine that has room for that many threads.

    The machines of a cluster need this project's packages; its code is sent to them. The other Ray ends with the block and leaves no
    files. Raises PipelineError if the package is missing, if no cluster answers, or with the reason if the work fails there.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ |= _QUIET | (_ONE_TRY if address else _ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex()})
    try:
        import ray  # it reads these variables when it is imported
    except ImportError:
        raise PipelineError("ray: the package is not installed; run `pip install -e '.[ray]'`") from None

    with ExitStack() as stack:
        if address:
            chosen: dict[str, Any] = {"address": address, "runtime_env": {"py_modules": [str(Path(pipeline.__file__).parent)]}}
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            cpus = max(usable_cpus(), threads)
            chosen = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}
        try:
            ray.init(**chosen, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError):
            if not address:
                raise
            raise PipelineError(f"RAY_ADDRESS: {address}: no Ray cluster answers; start it, or unset the variable") from None
        stack.callback(ray.shutdown)
        where = address or "this machine alone; RAY_ADDRESS names a cluster"
        print(f"ray: {ray.cluster_resources()['CPU']:.0f} CPUs, {where}", file=sys.stderr)
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints what happens to machines, which would be among the rows
        try:
            yield ray
        except ray.exceptions.RayError as error:
            reason = str(error).strip().rpartition("\n")[2].removeprefix(f"{PipelineError.__module__}.{PipelineError.__name__}: ")
            raise PipelineError(f"ray: {reason}") from None
