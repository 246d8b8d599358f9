"""The devices as a mesh, and where arrays lie on it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie: batch and dictionary sharded over the mesh, all else replicated.

    Attributes:
      mesh: one axis, `data`, over all devices in use.
    """

    mesh: Mesh

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.mesh.size

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def sharded(self, axis: int = 0) -> NamedSharding:
        """Returns the sharding that splits `axis` over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, DATA_AXIS))

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


def make_layout(devices: Sequence[Any] | None = None) -> Layout:
    """Returns the layout over these `jax.Device`s (default: all)."""
    chosen = np.asarray(jax.devices() if devices is None else devices)
    # Explicit axes, make_mesh's default now, don't carry a Linen conv net's backward pass.
    return Layout(Mesh(chosen, (DATA_AXIS,), axis_types=(AxisType.Auto,)))
