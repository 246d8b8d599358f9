"""NVIDIA GPUs to compile for: the facts that XLA needs about each.

JAX's CUDA plugin compiles without a GPU and without its driver. It cannot autotune products and
convolutions, which needs the GPU, so the memory of a program does not include cuDNN's workspaces.
"""

import importlib.util
from typing import NamedTuple

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from moco_jax.plan.hardware import CHIPS, GIB
from moco_jax.plan.topology import Topology

# Without a GPU to try them on, XLA may choose tiles of Triton's products that it can't compile.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
INSTALL = "pip install 'moco-jax[cuda13]'"


class Target(NamedTuple):
    """A GPU as XLA's compiler sees it.

    Sources: XLA's lists (xla/backends/gpu/target_config/specs) for the A100, H100, H200 and B200.
    The others are written from memory of their data sheets.
    """

    compute_capability: tuple[int, int]  # major and minor
    multiprocessors: int
    l2_cache_mib: int
    shared_memory_kib: int  # largest of a multiprocessor
    threads: int  # largest number on a multiprocessor
    clock_ghz: float


TARGETS = {
    "a100-40": Target((8, 0), 108, 40, 164, 2048, 1.41),
    "a100-80": Target((8, 0), 108, 40, 164, 2048, 1.41),
    "h100": Target((9, 0), 132, 50, 228, 2048, 1.98),
    "h200": Target((9, 0), 132, 50, 228, 2048, 1.98),
    "b200": Target((10, 0), 148, 126, 228, 2048, 1.965),
    "l4": Target((8, 9), 58, 48, 100, 1536, 2.04),
    "l40s": Target((8, 9), 142, 96, 100, 1536, 2.52),
    "rtx3090": Target((8, 6), 82, 6, 100, 1536, 1.7),
    "rtx4090": Target((8, 9), 128, 72, 100, 1536, 2.52),
    "rtx5090": Target((12, 0), 170, 96, 100, 1536, 2.41),
}


def has_compiler() -> bool:
    """Returns whether JAX's CUDA plugin is installed; does not load it."""
    return all(importlib.util.find_spec(x) for x in ("jax_plugins", "jax_plugins.xla_cuda13"))


def devices(topology: Topology) -> list:
    """Returns the `jax.Device`s of GPUs; programs can be compiled for them, but not run.

    `compilers.use_only_cpus` must be called before JAX starts its backends.

    Raises:
      ModuleNotFoundError: if the plugin is not installed or does not start.
      ValueError: if the compiler refuses the topology, or hosts have unequal numbers of GPUs.
    """
    if topology.chips % topology.hosts:
        raise ValueError(
            f"--topology={topology}: {topology.chips} GPUs cannot be divided equally among "
            f"{topology.hosts} hosts of {topology.chip.chips_per_host}"
        )
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=_description(topology.kind),
            # NVLink domains x hosts per domain x GPUs per host.
            topology=f"{topology.hosts}x1x{topology.chips // topology.hosts}",
        )
    except NotImplementedError as error:
        raise ModuleNotFoundError(
            f"JAX's CUDA plugin, which compiles for GPUs, did not start ({error}). Install it with "
            f"{INSTALL}; no GPU is needed"
        ) from error
    except JaxRuntimeError as error:
        raise ValueError(f"the GPU compiler refuses --topology={topology}: {error}") from error
    return list(found.devices)


def _description(kind: str) -> str:
    """Returns XLA's GpuTargetConfigProto of a GPU, in text format."""
    gpu, chip = TARGETS[kind], CHIPS[kind]
    major, minor = gpu.compute_capability
    title = f"NVIDIA {chip.title}"
    # As in XLA's lists: these generations have instructions that later ones do not have.
    extension = "ACCELERATED_FEATURES" if major in (9, 10) else "NONE"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {64 if major == 8 and minor == 0 else 128}
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {chip.memory_gb_per_s * 10**9}
  device_memory_size: {int(chip.memory_gib * GIB)}
  l2_cache_size: {gpu.l2_cache_mib * 2**20}
  shared_memory_per_core: {gpu.shared_memory_kib * 2**10}
  shared_memory_per_block_optin: {(gpu.shared_memory_kib - 1) * 2**10}
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
