"""One stage in several processes: torchrun starts them, and they share the work and exchange numbers.

Each process has a rank in the group, from 0 on. The process of rank 0 leads: it alone writes and prints. Stages and the training loop call
the same functions with one process: then a share is the whole, a total is the value itself, and nothing waits.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from signal import SIG_IGN, SIGHUP, SIGTERM, getsignal
from socket import create_server, if_nameindex
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    Array = np.ndarray[Any, Any]

_PATIENCE = timedelta(days=1)  # while one process exports or stores a model, the others wait
_POLL_SECONDS, _GRACE_SECONDS = 1.0, 10.0
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun reads why a process failed
_ENDED = "a process of the group ended; run `dvc repro` again, it continues from there"


@dataclass
class _Group:
    """How many processes the group has, how many of them run on this machine, and the rank of this one."""

    size: int = 1
    here: int = 1
    rank: int = 0


_group = _Group()


# Start and end


def must_launch(count: int) -> bool:
    """Whether `count` processes are wanted, and this is not yet one of them."""
    return count > 1 and "RANK" not in os.environ


def launch(count: int) -> None:
    """Run the command of this process `count` times under torchrun, and wait. If one of these processes fails, all are ended.

    On several machines each runs its part, by torchrun's variables PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT.
    Raises PipelineError with the line of the process that failed first, and SystemExit after a signal.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import static_tcp_rendezvous
    from torch.distributed.run import parse_args, run

    machines = int(os.environ.get("PET_NNODES", "1"))
    if count % machines:
        raise PipelineError(f"params.yaml: processes: {count} is not a multiple of the {machines} machines (PET_NNODES); choose one")
    handled = "SIGTERM,SIGINT,SIGQUIT" if getsignal(SIGHUP) == SIG_IGN else "SIGTERM,SIGINT,SIGQUIT,SIGHUP"  # nohup ignores SIGHUP
    run_id = sha256(" ".join(sys.argv[1:]).encode()).hexdigest()[:8]  # machines that run different stages do not meet
    arguments = ["--nproc-per-node", str(count // machines), "--signals-to-handle", handled, "--rdzv-id", run_id]
    if machines == 1:
        # torchrun would choose a port by itself, but its rendezvous then reads pickles, and its store listens on all interfaces.
        listening = create_server(("127.0.0.1", 0))
        arguments += ["--master-addr", "127.0.0.1", "--master-port", str(listening.getsockname()[1])]
        used = vars(static_tcp_rendezvous)
        used["TCPStore"] = partial(used["TCPStore"], master_listen_fd=listening.detach())
        os.environ.setdefault("GLOO_SOCKET_IFNAME", next(name for _, name in if_nameindex() if name.startswith("lo")))
    logging.disable(logging.ERROR)  # torchrun writes a page about a failure that is one line here
    with TemporaryDirectory() as logs:
        try:
            run(parse_args([*arguments, "--log-dir", logs, "--no-python", sys.executable, *sys.orig_argv[1:]]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            raise PipelineError(_first_reason(error)) from None
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None


def _first_reason(error: "ChildFailedError") -> str:
    """The line that the first process to fail left, or the signal that ended it."""
    for rank, failure in sorted(error.failures.items(), key=lambda item: item[1].timestamp):
        if failure.exitcode < 0:
            return f"the process of rank {rank} was ended by {failure.signal_name()}; run `dvc repro` again, it continues from there"
        if "message" in failure.error_file_data:
            return str(failure.message)
    return _ENDED


def report_fault(line: str) -> None:
    """Print a line on stderr; of several processes the launcher prints it, once for all."""
    if not (path := os.environ.get(_ERROR_FILE)):
        print(line, file=sys.stderr)
    elif line != _ENDED:
        Path(path).write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")


@contextmanager
def joined(count: int) -> Iterator[None]:
    """Belong to a group of `count` processes for the block. RANK, WORLD_SIZE and LOCAL_RANK say which of them this is.

    Only the leading process prints. Raises PipelineError if the environment or the GPUs do not fit, or if another process ends.
    """
    if count == 1:
        yield
        return
    from torch import distributed

    _take_place(count)
    if _ERROR_FILE in os.environ:
        Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    try:
        distributed.init_process_group(timeout=_PATIENCE)
        with _silent_unless(leads()):
            yield
        wait_for_all()
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise PipelineError(_ENDED) from error
        raise
    distributed.destroy_process_group()


def _take_place(count: int) -> None:
    """Read this process's place in the group of `count` from the environment, and choose its GPU. Raises PipelineError."""
    import torch

    size, here, rank = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"))
    if size != count:
        raise PipelineError(f"params.yaml: processes: {count} is not WORLD_SIZE, which is {size}; make them equal")
    gpu, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if 0 < gpus <= gpu:
        raise PipelineError(f"params.yaml: processes: {count} needs a GPU for each, and this machine has {gpus}; choose fewer")
    if gpus:
        torch.cuda.set_device(gpu)
    vars(_group).update(size=size, here=here, rank=rank)


@contextmanager
def _silent_unless(leading: bool) -> Iterator[None]:
    if leading:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _end_after(launcher: int) -> None:
    """End this process in order once its launcher is gone: after a SIGKILL the launcher cannot end it."""
    while os.getppid() == launcher:
        time.sleep(_POLL_SECONDS)
    for _ in range(2):  # the first may find the process in a call that waits for another one; the second kills at once
        os.kill(os.getpid(), SIGTERM)
        time.sleep(_GRACE_SECONDS)


# Work that is shared


def leads() -> bool:
    """Whether this process writes and prints for its group."""
    return _group.rank == 0


def group_size() -> int:
    """How many processes the group has."""
    return _group.size


def processes_here() -> int:
    """How many processes of the group share this machine."""
    return _group.here


def share(count: int) -> slice:
    """The part of `count` items that is this process's. The parts of all processes follow each other; some may be empty."""
    return slice(count * _group.rank // _group.size, count * (_group.rank + 1) // _group.size)


def total(value: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes."""
    if _group.size == 1:
        return value
    from torch import distributed

    value = value.clone()
    distributed.all_reduce(value)
    return value


def gather(rows: "Array") -> "Array":
    """The rows, (own, width), of all processes, one process after the other. A process without any may have the width 0."""
    if _group.size == 1:
        return rows
    import numpy as np
    import torch

    shapes = torch.zeros(_group.size, 2, dtype=torch.int64)
    shapes[_group.rank] = torch.tensor(rows.shape)
    shapes = total(shapes)
    counts, start = shapes[:, 0], int(shapes[: _group.rank, 0].sum())
    whole = np.zeros((int(counts.sum()), int(shapes[:, 1].max())), rows.dtype)
    if len(rows):
        whole[start : start + len(rows)] = rows
    return total(torch.from_numpy(whole)).numpy()  # the others add zeros, which is exact


def own_share(of_leader: list[int]) -> list[int]:
    """This process's share of the whole numbers that the leading process has; the others' lists are not used."""
    if _group.size == 1:
        return of_leader
    import numpy as np

    numbers = gather(np.array(of_leader if leads() else [], np.int64).reshape(-1, 1))[:, 0]
    own: list[int] = numbers[share(len(numbers))].tolist()
    return own


def of_leader(numbers: dict[str, float]) -> dict[str, float]:
    """The leading process's numbers, float64, in place of this one's."""
    if _group.size == 1:
        return numbers
    import torch
    from torch import distributed

    values = torch.tensor(list(numbers.values()), dtype=torch.float64)
    distributed.broadcast(values, 0)
    return dict(zip(numbers, values.tolist(), strict=True))


def wait_for_all() -> None:
    """Return when all processes of the group are here."""
    if _group.size > 1:
        import torch

        total(torch.zeros(1))


def share_norms(model: "nn.Module") -> None:
    """Let BatchNorm that is trained take its statistics over all processes.

    Raises PipelineError without GPUs: torch has it for them alone.
    """
    from torch import cuda, nn

    if _group.size == 1 or not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        return
    if not cuda.is_available():
        raise PipelineError("params.yaml: processes: without GPUs several cannot train BatchNorm; set batchnorm: frozen, or processes: 1")
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]


@contextmanager
def leader_first() -> Iterator[None]:
    """Let the leading process run the block before the others, which find in a cache what it has computed."""
    if not leads():
        wait_for_all()
    yield
    if leads():
        wait_for_all()


def replicate(model: "nn.Module", seed: int, epoch: int) -> "nn.Module":
    """The model for the training passes of an epoch: its backward pass averages the gradients over all processes.

    Call it when it is settled which parameters are trained. The weights become those of the leading process. Each process draws its own
    dropout, MixUp and CutMix, from the seed, the epoch and its rank.
    """
    if _group.size == 1:
        return model
    import numpy as np
    import torch

    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, _group.rank]).generate_state(1)[0]))
    return torch.nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False, static_graph=True)
