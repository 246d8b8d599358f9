"""Several processes as one: who belongs together, and how a process joins and leaves."""

import contextlib
import json
import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moco_jax.parallel import roll_call

_DEAD_AFTER = 30  # seconds without a sign of life; the others end then instead of waiting for ever
_LEAVE_WITHIN = 60  # seconds that a process which has finished waits for the others


class WrongFlags(ValueError):
    """What names the cluster is not whole."""


@contextlib.contextmanager
def joined(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = 300,
) -> Iterator[None]:
    """Runs the block as one of several processes, where there are several; before JAX is used.

    On Cloud TPU, under SLURM and under Open MPI they are found without being named, and in a
    Kubernetes job by `jax[k8s]`. A block that ends with an exception ends the whole process at
    once, with its exit code: a process that waited for the others, which wait for it in the middle
    of a step, would hang with them.

    Args:
      coordinator: host:port of process 0, reachable from all.
      processes: number of processes.
      process: the number of this one.
      timeout: seconds to wait for all to come.

    Raises:
      WrongFlags: if only some of the three are given.
      Missing: if not all processes come in time.
    """
    if coordinator is None and processes is None and process is None:
        found = _find(timeout)
    else:
        found = _checked(coordinator, processes, process)
    if found is None or found[1] == 1:
        yield
        return
    roll_call.meet(*found, timeout)
    # It would catch SIGTERM, which is ours to act on.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        *found,
        local_device_ids=_local_devices(),
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=_DEAD_AFTER,
        shutdown_timeout_seconds=_LEAVE_WITHIN,
    )
    try:
        yield
    except BaseException as error:
        _leave(error)
    jax.distributed.shutdown()


def is_first() -> bool:
    """Returns whether this process is the one that prints and writes logs."""
    return jax.process_index() == 0


def on_first(work: Callable[[], Any]) -> Any:
    """Returns on all processes what `work` returns on process 0, where alone it is called.

    Args:
      work: returns what JSON can hold.

    Raises:
      Exception: on process 0, what `work` raises.
      ValueError: on the others, that it did.
    """
    if jax.process_count() == 1:
        return work()
    if is_first():
        try:
            result = work()
            message = {"result": json.loads(json.dumps(result))}
        except Exception as error:
            _send_to_all({"error": str(error)})
            raise
        _send_to_all(message)
        return result
    answer = _send_to_all(None)
    if "error" in answer:
        raise ValueError(f"process 0 failed: {answer['error']}")
    return answer["result"]


def check_all(what: str, check: Callable[[], str]) -> None:
    """Calls `check` on all processes, each of which returns what is wrong, or "".

    Raises:
      ValueError: on all processes, if something is wrong on any; names the processes.
    """
    problem = check()
    wrong = _gather(bool(problem))
    if problem:
        of = f" (process {jax.process_index()})" if jax.process_count() > 1 else ""
        raise ValueError(f"{what} {problem}{of}")
    if wrong.any():
        numbers = ", ".join(str(number) for number in np.flatnonzero(wrong))
        raise ValueError(f"{what}: process {numbers} tells what is wrong")


def check_alike(what: str, value: str) -> None:
    """Raises a ValueError on all processes unless the value is the same on all."""
    ours = zlib.crc32(value.encode())
    first = int(np.ravel(_gather(ours))[0])
    check_all(f"the {what}", lambda: "" if ours == first else "differs from process 0's")


def _gather(value: int) -> np.ndarray:
    """Returns int64[processes], each process's value."""
    if jax.process_count() == 1:
        return np.asarray([value])
    return multihost_utils.process_allgather(np.asarray(value, np.uint32)).reshape(-1)


def _send_to_all(message: Any) -> Any:
    """Returns process 0's message, which must be JSON, on all processes."""
    text = np.frombuffer(json.dumps(message).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text), np.int32)))
    padded = np.resize(text, length)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))


def _checked(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int]:
    """Returns what was given on the command line, if it is whole."""
    if coordinator is not None and processes is not None and process is not None:
        if re.fullmatch(r".+:\d+", coordinator) and process in range(processes):
            return coordinator, processes, process
    raise WrongFlags(
        "--coordinator=HOST:PORT, --processes=N and --process=I (0 to N-1) belong together; "
        f"got {coordinator}, {processes}, {process}"
    )


def _find(timeout: int) -> tuple[str, int, int] | None:
    """Returns coordinator, number of processes and this one's number, None where it is alone."""
    environment = os.environ.keys()
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in environment
    if in_kubernetes and not environment & {"JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"}:
        return None  # a pod of its own, such as a notebook's
    # JAX tells what it finds to nobody but its own start-up, which does not name the missing.
    from jax._src.clusters import ClusterEnv

    address, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
        coordinator_address=None,
        num_processes=None,
        process_id=None,
        local_device_ids=[],
        cluster_detection_method=None,
        initialization_timeout=timeout,
    )
    if address is None or processes is None or process is None:
        return None
    return address, processes, process


def _local_devices() -> list[int] | None:
    """Returns the one GPU of this task, where several tasks of a machine see all its GPUs."""
    rank = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    apart = (visible[0] and len(visible) == 1) or "SLURM_GPUS_PER_TASK" in os.environ
    if rank is None or apart or _tasks_here() == 1:
        return None
    return [int(rank)]


def _tasks_here() -> int:
    """Returns how many tasks the launcher runs on this machine."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in os.environ:
        return int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"])
    counts = []  # of SLURM, such as 2(x3),1: two on each of three machines, one on the next
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts[min(int(os.environ.get("SLURM_NODEID", 0)), len(counts) - 1)]


def _leave(error: BaseException) -> None:
    """Ends the process as Python would, but without waiting for the other processes."""
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
