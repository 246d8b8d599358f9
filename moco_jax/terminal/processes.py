"""The flags that join the processes of a command."""

import contextlib

from absl import flags

from moco_jax.parallel import cluster

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, if the cluster is not detected."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process from 0, likewise.")
_BIND = flags.DEFINE_string(
    "coordinator_bind_address",
    None,
    "host:port at which process 0 listens; default the address of --coordinator.",
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait until all processes have joined.", lower_bound=1
)


def joined() -> contextlib.AbstractContextManager[None]:
    """Returns the context in which this process and the others of the command are joined."""
    return cluster.joined(
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
        timeout=_JOIN_TIMEOUT.value,
        bind=_BIND.value,
    )
