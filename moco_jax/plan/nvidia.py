"""GPUs that aren't here, to compile for: what XLA must know of each of them.

JAX's CUDA plugin compiles without a GPU and without its driver. How products and convolutions are
computed is found by trying, which needs the chip: left out are cuDNN's workspaces.
"""

import dataclasses
import importlib.util
import os

from moco_jax.plan.hardware import CHIPS, GIB
from moco_jax.plan.topology import Topology

INSTALL = "pip install 'moco-jax[cuda13]'"


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU as XLA's compiler sees it.

    Sources: XLA's lists (xla/backends/gpu/target_config/specs) for the A100, H100, H200 and B200;
    of the others data sheets, written from memory.

    Attributes:
      capability: compute capability, major and minor.
      multiprocessors: number of them.
      bandwidth: of memory, GB/s.
      cache: of level 2, MiB.
      shared: most shared memory of a multiprocessor, KiB.
      threads: most threads of a multiprocessor.
      clock: GHz.
    """

    capability: tuple[int, int]
    multiprocessors: int
    bandwidth: int
    cache: int
    shared: int
    threads: int
    clock: float


TARGETS = {
    "a100-40": Target((8, 0), 108, 1555, 40, 164, 2048, 1.41),
    "a100-80": Target((8, 0), 108, 2039, 40, 164, 2048, 1.41),
    "h100": Target((9, 0), 132, 3352, 50, 228, 2048, 1.98),
    "h200": Target((9, 0), 132, 4800, 50, 228, 2048, 1.98),
    "b200": Target((10, 0), 148, 7672, 126, 228, 2048, 1.965),
    "l4": Target((8, 9), 58, 300, 48, 100, 1536, 2.04),
    "l40s": Target((8, 9), 142, 864, 96, 100, 1536, 2.52),
    "rtx3090": Target((8, 6), 82, 936, 6, 100, 1536, 1.7),
    "rtx4090": Target((8, 9), 128, 1008, 72, 100, 1536, 2.52),
    "rtx5090": Target((12, 0), 170, 1792, 96, 100, 1536, 2.41),
}


def has_compiler() -> bool:
    """Returns whether JAX's CUDA plugin is installed; it is not loaded."""
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
    except ModuleNotFoundError:
        return False


def do_without_driver() -> None:
    """Lets the plugin start without a driver; to be called before JAX starts its backends."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"


def devices(place: Topology) -> list:
    """Returns the `jax.Device`s of GPUs to compile for; they can't run anything.

    Raises:
      ModuleNotFoundError: if the plugin is not installed, or did not start.
      ValueError: if its compiler refuses them, or the hosts would not have equal numbers of them.
    """
    if place.chips % place.hosts:
        raise ValueError(
            f"{place.chips} GPUs can't be spread evenly over {place.hosts} hosts of "
            f"{place.chip.chips_per_host}"
        )
    do_without_driver()
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=_description(place.kind),
            # Domains of NVLink, hosts in each, GPUs of a host.
            topology=f"{place.hosts}x1x{place.chips // place.hosts}",
        )
    except NotImplementedError as error:
        raise ModuleNotFoundError(
            f"compiling for GPUs needs JAX for CUDA, no GPU, and it did not start ({error}); "
            f"where it is not installed: {INSTALL}"
        ) from error
    except JaxRuntimeError as error:
        raise ValueError(f"the compiler for GPUs refuses '{place}': {error}") from error
    return list(found.devices)


def _description(kind: str) -> str:
    """Returns a GPU as XLA's GpuTargetConfigProto, in text."""
    gpu, chip = TARGETS[kind], CHIPS[kind]
    major, minor = gpu.capability
    title = f"NVIDIA {chip.title}"
    # Instructions that only this very generation has: as XLA's lists say of each.
    extension = "ACCELERATED_FEATURES" if major in (9, 10) else "NONE"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {64 if major == 8 and minor == 0 else 128}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {gpu.bandwidth * 10**9}
  device_memory_size: {int(chip.memory_gib * GIB)}
  l2_cache_size: {gpu.cache * 2**20}
  shared_memory_per_core: {gpu.shared * 2**10}
  shared_memory_per_block_optin: {(gpu.shared - 1) * 2**10}
  shared_memory_per_block: 49152
  threads_per_core_limit: {gpu.threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  device_vendor: "NVIDIA Corporation"
  name: "{title}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{title}"
"""
