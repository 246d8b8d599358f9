"""The devices as a mesh, and where arrays lie on it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

_SMALL = 2**14  # elements; below, a parameter costs less memory than it would cost to gather


@functools.cache
def _cpu_options() -> dict[str, str] | None:
    """Returns what makes XLA compile convolutions by Eigen for CPUs; None where it is unknown.

    By YNN, which jaxlib 0.10 chooses by itself, a step took 2.5 times as long.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(0.0).compile()
    except Exception:  # which one depends on jaxlib's version
        return None
    return options


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie: batch and dictionary split over all devices, the rest on each whole.

    With an `fsdp` axis of more than one device, large parameters are split over it.

    Attributes:
      mesh: axes `data` and `fsdp` over all devices in use.
    """

    mesh: Mesh

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.mesh.size

    def jit(self, function: Callable, **options) -> Any:
        """Returns `jax.jit` of what runs an encoder on these devices, compiled at its fastest."""
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
        """Returns the sharding of a parameter: its largest axis that divides, over `fsdp`."""
        shards = self.mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(shape) if length % shards == 0]
        if shards == 1 or not axes or np.prod(shape) < _SMALL:
            return self.replicated
        axis = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    def replicate(self, x: Any) -> Any:
        """Returns x, inside jit, whole on every device."""
        return jax.lax.with_sharding_constraint(x, self.replicated)

    def shard(self, x: Any, axis: int = 0) -> Any:
        """Returns x, inside jit, split along `axis`."""
        return jax.lax.with_sharding_constraint(x, self.sharded(axis))

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns which of a batch's B rows lie on this process's devices, int[b], ascending."""
        slices = self.sharded().addressable_devices_indices_map((batch_size,)).values()
        return np.unique([np.arange(batch_size)[index] for index in slices])

    def put_batch(self, batch: Any) -> Any:
        """Returns host arrays [b, ...], this process's `rows`, as global device arrays [B, ...].

        They are split over B; the copy is asynchronous.
        """
        sharding = self.sharded()
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def describe(self, params: Any) -> str:
        """Returns how many parameters are trained on how many devices, for people."""
        count = sum(x.size for x in jax.tree.leaves(params))
        parameters = f"{count / 1e6:.1f} M" if count >= 50_000 else str(count)
        processes = jax.process_count()
        several = f" of {processes} processes" if processes > 1 else ""
        kind = self.mesh.devices.flat[0].device_kind
        return f"{parameters} parameters; {self.devices} x {kind}{several}"

    def put(self, arrays: Any, sharding: NamedSharding) -> Any:
        """Returns host arrays, which every process holds whole and alike, as device arrays."""
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
            arrays,
        )


def make_layout(devices: Sequence[Any] | None = None, *, data: int = -1, fsdp: int = 1) -> Layout:
    """Returns the layout over these `jax.Device`s (default: all), of all processes.

    Args:
      devices: in use.
      data: length of the mesh's first axis; -1: as many as there are.
      fsdp: length of its second axis, neighbouring devices, over which parameters are split.

    Raises:
      ValueError: if the axes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    problem = mesh_problem(data, fsdp, len(devices))
    if problem:
        raise ValueError(problem)
    # Explicit axes, make_mesh's default now, don't carry a Linen conv net's backward pass.
    mesh = jax.make_mesh(
        (len(devices) // fsdp, fsdp), AXES, devices=devices, axis_types=(AxisType.Auto,) * 2
    )
    return Layout(mesh)


def mesh_problem(data: int, fsdp: int, devices: int) -> str | None:
    """Returns what is wrong with a mesh of these axes over so many devices, None where nothing."""
    if fsdp < 1 or devices % fsdp:
        return f"mesh.fsdp={fsdp} must divide the {devices} devices"
    if data not in (-1, devices // fsdp):
        return f"mesh.data={data} must be -1 or {devices // fsdp}: {devices} devices, fsdp={fsdp}"
    return None
