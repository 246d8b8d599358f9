"""GPUs to compile for where there is none, by JAX's CUDA plugin."""

import os

from jax.experimental import topologies

# What XLA must know of a chip, from its own lists of them (xla/backends/gpu/target_config/specs):
# title, bytes/s of memory, bytes of memory.
TARGETS = {
    "h100": ("NVIDIA H100 80GB HBM3", 3352320000000, 84942979072),
    "h200": ("NVIDIA H200 141GB HBM3e", 4800000000000, 151397597184),
}
# Products of each type that a multiprocessor makes in a cycle: XLA's number of the type, units, and
# operations a unit.
_SCALAR = ((4, 64, 1), (8, 64, 1), (10, 128, 2), (11, 128, 1), (12, 64, 1), (16, 128, 2))
_MATRIX = ((2, 4, 1024), (6, 4, 1024), (10, 4, 512), (11, 4, 256), (12, 4, 32), (16, 4, 512))


def device(name: str):
    """Returns the `jax.Device` of a GPU that isn't here; it can't run anything.

    Raises:
      ModuleNotFoundError: if JAX's CUDA plugin is not installed.
    """
    # The plugin would otherwise refuse to start without the driver's libraries.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=_description(name), topology="1x1x1"
        )
    except NotImplementedError as error:
        raise ModuleNotFoundError(
            f"compiling for GPUs needs JAX for CUDA: pip install 'moco-jax[cuda13]' ({error})"
        ) from error
    return found.devices[0]


def _description(name: str) -> str:
    """Returns the chip as XLA's GpuTargetConfigProto, in text; all here are of Hopper's kind."""
    title, bandwidth, memory = TARGETS[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  scalar_unit_description {{ {_rates(_SCALAR, 1.98)} }}
  matrix_unit_description {{ {_rates(_MATRIX, 1.8295201)} }}
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  name: "{title}"
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{title}"
"""


def _rates(rates, clock: float) -> str:
    return " ".join(
        f"rate_infos {{ key: {key} value {{ clock_rate_ghz: {clock} units_per_core: {units} "
        f"ops_per_clock: {operations} }} }}"
        for key, units, operations in rates
    )
