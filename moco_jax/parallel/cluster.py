"""Runs of several processes: finds them, joins them, and ends a failed process without hanging."""

import contextlib
import functools
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

from moco_jax.parallel import addresses, handshake, roll_call
from moco_jax.parallel.addresses import WrongFlags
from moco_jax.text import message as escaped

_LONGEST_MESSAGE = 64 * 2**20  # bytes that process 0 sends to all at once
_BY_HAND = "correct or unset it, or give --coordinator, --processes and --process"
# Whole numbers that the launchers set.
_NUMBERS = (
    *("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    *("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "JAX_COORDINATOR_PORT",
)

# Prints a text; commands replace it by what fits their terminal.
print_text: Callable[[str], None] = functools.partial(print, flush=True)


@contextlib.contextmanager
def joined(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = 300,
    bind: str | None = None,
) -> Iterator[None]:
    """Joins this process to the others of the run, if there are any, and runs the block.

    Must be entered before JAX is used. Without arguments the processes are detected on Cloud TPU,
    under SLURM, under Open MPI and, with `jax[k8s]`, in a Kubernetes job.

    If the block raises, this process exits at once, with the exit code of the exception. The other
    processes wait for it in the middle of a step; if it waited for them to shut down, all would
    hang.

    Args:
      coordinator: host:port of process 0, reachable from all processes.
      process: number of this process, from 0.
      timeout: seconds to wait until all processes have joined.
      bind: host:port at which process 0 listens; by default the address of `coordinator` where it
        is one of this machine, or else all addresses.

    Raises:
      WrongFlags: if only some of the first three arguments are given, or one is out of range, or a
        variable of the launcher is malformed.
      Missing: if not all processes join in time.
    """
    flags = (coordinator, processes, process)
    if bind is not None:
        addresses.split(bind, "--coordinator_bind_address")
    found = _detected(timeout) if flags == (None, None, None) else _checked(*flags)
    if found is None or found[1] == 1:
        yield
        return
    devices = _local_devices()
    bind = bind or os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or addresses.to_bind(found[0])
    if found[2] == 0:
        _announce(found[1] - 1, bind or f"all addresses, port {found[0].rpartition(':')[2]}")
    roll_call.meet(*found, timeout, bind)
    # JAX's preemption service would catch SIGTERM, which the training loop handles.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        *found,
        local_device_ids=devices,
        coordinator_bind_address=bind,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=30,  # without a heartbeat; then the other processes exit
        shutdown_timeout_seconds=60,  # that a finished process waits for the others
    )
    try:
        yield
    except BaseException as error:
        _exit(error)
    jax.distributed.shutdown()


def _announce(others: int, where: str) -> None:
    known = "with MOCO_JAX_TOKEN" if handshake.token() else "MOCO_JAX_TOKEN is not set"
    print(
        f"process 0 waits at {where} (--coordinator_bind_address) for {others} more; {known}",
        flush=True,
    )


def is_first() -> bool:
    """Returns whether this is process 0, which alone prints and writes logs."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a text on process 0. Output that can't be written, as on a full disk, is lost."""
    if is_first():
        with contextlib.suppress(OSError):
            print_text(escaped(text))


def on_first(work: Callable[[], Any]) -> Any:
    """Calls `work` on process 0 only, and returns its result on all processes.

    JSON must be able to encode the result.

    Raises:
      Exception: on process 0, what `work` raises.
      ValueError: on the other processes, if `work` raised; with its message.
    """
    if jax.process_count() == 1:
        return work()
    if is_first():
        try:
            result = work()
            message = _encoded({"result": result})
        except Exception as error:
            _send_to_all(_encoded({"error": str(error)[:10000]}))
            raise
        _send_to_all(message)
        return result
    answer = json.loads(_send_to_all(b""))
    if "error" in answer:
        raise ValueError(f"process 0 failed: {answer['error']}")
    return answer["result"]


def check_all(what: str, check: Callable[[], str]) -> None:
    """Raises on all processes if a check fails on any of them.

    Args:
      what: what is checked; begins the error message.
      check: called on every process; returns the problem there, or "".

    Raises:
      ValueError: on a process with a problem, the problem; on the others, which processes have one.
    """
    problem = check()
    wrong = _gather(bool(problem))
    if problem:
        where = f" (process {jax.process_index()})" if jax.process_count() > 1 else ""
        raise ValueError(f"{what} {problem}{where}")
    if wrong.any():
        numbers = ", ".join(map(str, np.flatnonzero(wrong)))
        raise ValueError(f"{what}: see the error message of process {numbers}")


def check_alike(what: str, value: str) -> None:
    """Raises a ValueError on all processes unless all have the same `value`."""
    own = zlib.crc32(value.encode())
    first = int(np.ravel(_gather(own))[0])
    check_all(f"the {what}", lambda: "" if own == first else "differs from process 0's")


def largest(value: int) -> int:
    """Returns the largest of the values of all processes."""
    return int(_gather(value).max())


def _gather(value: int) -> np.ndarray:
    """Returns the values of all processes, int64[processes]."""
    if jax.process_count() == 1:
        return np.asarray([value])
    return multihost_utils.process_allgather(np.asarray(value, np.uint32)).reshape(-1)


def _encoded(message: Any) -> bytes:
    """Returns the message as JSON.

    Raises:
      TypeError: if JSON can't encode it.
      ValueError: if it is too long to be sent.
    """
    text = json.dumps(message).encode()
    if len(text) > _LONGEST_MESSAGE:
        raise ValueError(
            f"process 0 has a result of {len(text)} bytes for the other processes; at most "
            f"{_LONGEST_MESSAGE} can be sent"
        )
    return text


def _send_to_all(message: bytes) -> bytes:
    """Returns process 0's message, which is not empty, on all processes."""
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(message), np.int32)))
    padded = np.resize(np.frombuffer(message, np.uint8), length)
    return bytes(multihost_utils.broadcast_one_to_all(padded))


def _checked(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int]:
    """Returns the three flags of the command line if they are complete and in range."""
    if coordinator is None or processes is None or process is None:
        flags = {"coordinator": coordinator, "processes": processes, "process": process}
        given = " ".join(f"--{name}={x}" for name, x in flags.items() if x is not None)
        raise WrongFlags(
            f"--coordinator, --processes and --process must be given together; got {given}"
        )
    addresses.split(coordinator, "--coordinator")
    if process not in range(processes):
        raise WrongFlags(
            "--processes must be at least 1, and --process from 0 to --processes - 1; "
            f"got --processes={processes} --process={process}"
        )
    return coordinator, processes, process


def _detected(timeout: int) -> tuple[str, int, int] | None:
    """Returns coordinator, number of processes and number of this one; None if it is alone."""
    several_pods = os.environ.keys() & {"JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"}
    if "KUBERNETES_SERVICE_HOST" in os.environ and not several_pods:
        return None  # a single pod, such as a notebook
    # Private API: jax.distributed.initialize() detects the same, but its error does not name the
    # missing processes, and the roll call needs the address first.
    from jax._src.clusters import ClusterEnv

    try:
        address, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator_address=None,
            num_processes=None,
            process_id=None,
            local_device_ids=[],
            cluster_detection_method=None,
            initialization_timeout=timeout,
        )
    except Exception as error:  # each kind of cluster has its own
        for name in _NUMBERS:
            _number(name)
        raise WrongFlags(
            f"the cluster can't be detected ({type(error).__name__}: {error}); give --coordinator, "
            "--processes and --process"
        ) from error
    if address is None or processes is None or process is None:
        return None
    addresses.split(address, "the launcher's coordinator")
    if process not in range(processes):
        raise WrongFlags(
            f"the launcher set process {process} of {processes}, which is out of range; give "
            "--coordinator, --processes and --process"
        )
    return address, processes, process


def _number(name: str) -> int | None:
    """Returns the number that a launcher sets in the environment; None if the variable is not set.

    Raises:
      WrongFlags: if it is no whole number.
    """
    value = os.environ.get(name)
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,10}", value):
        raise WrongFlags(
            f"the environment variable {name} must be a whole number; got "
            f"{name}={addresses.shown(value)}; {_BY_HAND}"
        )
    return int(value)


def _local_devices() -> list[int] | None:
    """Returns the GPU of this task if several tasks of a machine all see its GPUs, else None."""
    rank = _number("OMPI_COMM_WORLD_LOCAL_RANK")
    rank = _number("SLURM_LOCALID") if rank is None else rank
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = None if visible is None else [name.strip() for name in visible.split(",")]
    # One GPU is bound to this task; an empty list and -1 hide all.
    bound = (gpus is not None and len(gpus) == 1) or "SLURM_GPUS_PER_TASK" in os.environ
    if rank is None or bound or (tasks := _tasks_here()) == 1:
        return None
    if gpus is not None and rank >= len(gpus):
        raise WrongFlags(
            f"{tasks} tasks run on this machine, but CUDA_VISIBLE_DEVICES="
            f"{addresses.shown(str(visible))} has {len(gpus)} GPUs for them; start one task a "
            "GPU, or one a machine"
        )
    return [rank]


def _tasks_here() -> int:
    """Returns the number of tasks that the launcher runs on this machine."""
    if (tasks := _number("OMPI_COMM_WORLD_LOCAL_SIZE")) is not None:
        return tasks
    # SLURM writes 2(x3),1 for two tasks on each of three machines and one on the next.
    name = "SLURM_STEP_TASKS_PER_NODE"
    text, node, last = os.environ.get(name, "1"), _number("SLURM_NODEID") or 0, 1
    if not re.fullmatch(r"[0-9]{1,7}(\(x[0-9]{1,7}\))?(,[0-9]{1,7}(\(x[0-9]{1,7}\))?)*", text):
        raise WrongFlags(
            f"the environment variable {name} must be like 2(x3),1; got "
            f"{name}={addresses.shown(text)}; {_BY_HAND}"
        )
    for part in text.split(","):
        count, _, machines = part.rstrip(")").partition("(x")
        last, node = int(count), node - int(machines or 1)
        if node < 0:
            break
    return last


def _exit(error: BaseException) -> None:
    """Exits with Python's message and exit code, but without waiting for the other processes."""
    code = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
