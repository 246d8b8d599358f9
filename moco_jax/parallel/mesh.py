"""The device mesh, and how arrays are split over it."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

_LEVEL = "xla_backend_optimization_level"
_SMALL = 2**14  # elements; to gather a smaller parameter costs more than to replicate it


@functools.cache
def _cpu_options() -> dict[str, str]:
    """Returns the options for a CPU, those that this version of XLA knows.

    XLA computes convolutions with Eigen; with YNN, the default of jaxlib 0.10, a step takes 2.5
    times as long. It keeps optimization barriers, which it removes before the fusion otherwise. It
    optimises at level 2: level 3 compiles a quarter longer, and its steps take as long.
    """
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    known = {name: value for name, value in options.items() if _is_known({name: value})}
    return known if _LEVEL in os.environ.get("XLA_FLAGS", "") else known | {_LEVEL: "2"}


def _is_known(options: dict[str, str]) -> bool:
    def barrier(x):
        return jnp.negative(jax.lax.optimization_barrier(jnp.sin(x)))

    try:
        jax.jit(barrier, compiler_options=options).lower(0.0).compile()
    except Exception:  # its type depends on the version of jaxlib
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays are split over the devices.

    Batches and dictionaries are split over all devices. Parameters are replicated; if the `fsdp`
    axis has more than one device, large parameters are split over that axis. "Layout" means this
    class everywhere in the package.
    """

    mesh: Mesh  # axes `data` and `fsdp` over all devices in use

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.mesh.size

    def jit(self, function: Callable, **options) -> Any:
        """Returns `jax.jit(function, **options)`, with compiler options that suit convolutions.

        Use it for every function that runs an encoder.
        """
        if self.mesh.devices.flat[0].platform == "cpu":
            options["compiler_options"] = _cpu_options()
        return jax.jit(function, **options)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def sharded(self, axis: int = 0) -> NamedSharding:
        """Returns the sharding that splits `axis` over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, AXES))

    def parameter(self, shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of a parameter: its largest divisible axis is split over `fsdp`."""
        shards = self.mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(shape) if length % shards == 0]
        if shards == 1 or not axes or np.prod(shape) < _SMALL:
            return self.replicated
        axis = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    def parameters(self, tree: Any) -> Any:
        """Returns the sharding of each array of a pytree of parameters or optimizer state."""
        return jax.tree.map(lambda x: self.parameter(x.shape), tree)

    def replicate(self, x: Any) -> Any:
        """Returns x replicated on all devices; for use inside jit."""
        return jax.lax.with_sharding_constraint(x, self.replicated)

    def shard(self, x: Any, axis: int = 0) -> Any:
        """Returns x split along `axis` over all devices; for use inside jit."""
        return jax.lax.with_sharding_constraint(x, self.sharded(axis))

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the rows of a batch [B, ...] on this process's devices, int[b], ascending."""
        slices = self.sharded().addressable_devices_indices_map((batch_size,)).values()
        return np.unique([np.arange(batch_size)[index] for index in slices])

    def put_batch(self, batch: Any) -> Any:
        """Returns global device arrays [B, ...] of host arrays [b, ...], this process's `rows`.

        They are split over B. The copy is asynchronous.
        """
        sharding = self.sharded()
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def describe(self, params: Any) -> str:
        """Returns a line for the log: number of parameters, devices and processes."""
        count = sum(x.size for x in jax.tree.leaves(params))
        parameters = f"{count / 1e6:.1f} M" if count >= 50_000 else str(count)
        processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        kind = self.mesh.devices.flat[0].device_kind
        return f"{parameters} parameters; {self.devices} x {kind}{processes}"

    def put(self, arrays: Any, sharding: NamedSharding) -> Any:
        """Returns device arrays of host arrays that every process holds in full."""
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
            arrays,
        )


def place(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns the device array of a host array that every process holds in full."""
    # Copies: a CPU's array would share the host's memory, and the train step is donated it.
    return jax.make_array_from_callback(x.shape, sharding, lambda index: np.array(x[index]))


def make_layout(devices: Sequence[Any] | None = None, *, data: int = -1, fsdp: int = 1) -> Layout:
    """Returns the layout over devices.

    Args:
      devices: `jax.Device`s; default: all devices of all processes.
      data: length of the mesh's first axis; -1: the number of devices divided by `fsdp`.
      fsdp: length of its second axis, neighbouring devices, over which parameters are split.

    Raises:
      ValueError: if data * fsdp is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if problem := mesh_problem(data, fsdp, len(devices)):
        raise ValueError(problem)
    # With explicit axes, the default of make_mesh, the backward pass of a Linen conv net fails.
    mesh = jax.make_mesh(
        (len(devices) // fsdp, fsdp), AXES, devices=devices, axis_types=(AxisType.Auto,) * 2
    )
    return Layout(mesh)


def mesh_problem(data: int, fsdp: int, devices: int) -> str | None:
    """Returns the problem of a mesh of these axes over this number of devices, None without one."""
    if fsdp < 1 or devices % fsdp:
        return f"mesh.fsdp={fsdp} must divide the number of devices, {devices}"
    if data not in (-1, devices // fsdp):
        return (
            f"mesh.data={data} must be -1 or {devices // fsdp} "
            f"({devices} devices / mesh.fsdp={fsdp})"
        )
    return None
