"""Facts about accelerators: memory, peak speed, and their usual hosts.

Sources, read in November 2026:
  [tpu] docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}: memory, peak, chips per pod; v4,
    v5e and v5p also bandwidths of memory and of the links. The page of v5e also has the vCPUs of
    its virtual machines. The clock of a TPU is its peak over the products that its matrix units
    make in a cycle. Slices of several hosts have 4 chips per
    host (v5e: ct5lp-hightpu-4t, as xpk and GKE create them), which is also libtpu's default.
  [nvidia] data sheets of the A100, H100, H200, B200, L4 and L40S, and the white paper of the Ada
    architecture: peak of the tensor cores with float32 sums, without sparsity (the data sheets
    print twice that).
  [gcp] cloud.google.com/compute/docs/accelerator-optimized-machines: vCPUs of A2, A3, G2.
  [aws] lists of EC2 instances: vCPUs of p5en, p6-b200, g6e.
  XLA's lists (xla/backends/gpu/target_config/specs): memory bandwidth of A100, H100, H200, B200.
  libtpu 0.0.42: `usable_gib`, the limit above which its compiler refuses a program.
Values that none of these sources has are named in `unsourced` and written from memory.
"""

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator chip and its usual host."""

    title: str  # the maker's name for it
    # HBM or graphics memory of a chip; runtimes reserve part of it. The makers' GB are taken as
    # GiB, which is right to a percent. L4 and L40S: without what error correction takes.
    memory_gib: float
    memory_gb_per_s: int
    peak_flops: float  # FLOP/s of dense bfloat16 matrix products
    link_gb_per_s: int  # of a chip to the others of its host or slice, both directions together
    chips_per_host: int
    vcpus_per_host: int
    host: str  # machine type; other machine types have other numbers of vCPUs
    sources: str  # of these values, see the docstring of this file
    unsourced: tuple[str, ...] = ()  # names of the attributes without a source
    dimensions: int = 0  # of a TPU topology (2 for 16x16); 0 for GPUs
    pod_chips: int = 0  # chips of the largest TPU slice; 0 for GPUs
    clock_ghz: float = 0.0  # of a TPU; 0 if it is unknown, and for GPUs
    usable_gib: float = 0.0  # memory of a chip that a program may take; 0 if unknown
    devices_per_chip: int = 1  # `jax.Device`s; 2 if the two cores of a chip have separate memory

    @property
    def is_tpu(self) -> bool:
        return self.dimensions > 0


_VCPUS = ("vcpus_per_host",)
_MEMORY = ("memory_gib",)
_LINK = ("link_gb_per_s",)
_RATES = ("memory_gb_per_s", *_LINK)
_DESK = ("memory_gb_per_s", "link_gb_per_s", *_VCPUS)
_P5EN, _P6 = "p5en.48xlarge", "p6-b200.48xlarge"

# The values are in the order of the attributes of `Chip`.
CHIPS: dict[str, Chip] = {
    "v3": Chip(
        *("TPU v3", 32, 900, 123e12, 560, 4, 96, "v3-8", "tpu", (*_RATES, *_VCPUS), 2, 1024),
        *(0.94, 30.96, 2),
    ),
    "v4": Chip(
        *("TPU v4", 32, 1200, 275e12, 600, 4, 240, "ct4p-hightpu-4t", "tpu", (*_LINK, *_VCPUS), 3),
        *(4096, 1.05, 30.75),
    ),
    "v5e": Chip(
        *("TPU v5e", 16, 819, 197e12, 400, 4, 112, "ct5lp-hightpu-4t", "tpu", (), 2, 256),
        *(1.5, 15.75),
    ),
    "v5p": Chip(
        *("TPU v5p", 95, 2765, 459e12, 1200, 4, 208, "ct5p-hightpu-4t", "tpu", (), 3, 6144),
        *(1.75, 95.74),
    ),
    "v6e": Chip(
        *("TPU v6e", 32, 1640, 918e12, 800, 4, 180, "ct6e-standard-4t", "tpu"),
        *((*_RATES, *_VCPUS), 2, 256, 1.75, 31.25),
    ),
    "tpu7x": Chip(
        *("TPU7x", 192, 7380, 2307e12, 1200, 4, 224, "tpu7x-standard-4t", "tpu"),
        *((*_RATES, *_VCPUS), 3, 9216, 0.0, 0.0, 2),
    ),
    "a100-40": Chip("A100 40 GB", 40, 1555, 312e12, 600, 8, 96, "a2-highgpu-8g", "nvidia, gcp"),
    "a100-80": Chip(
        *("A100 80 GB", 80, 2039, 312e12, 600, 8, 96, "p4de.24xlarge", "nvidia", _VCPUS)
    ),
    "h100": Chip("H100 SXM", 80, 3352, 989e12, 900, 8, 208, "a3-highgpu-8g", "nvidia, gcp"),
    "h200": Chip("H200 SXM", 141, 4800, 989e12, 900, 8, 192, _P5EN, "nvidia, aws"),
    "b200": Chip("B200 SXM", 180, 7672, 2250e12, 1800, 8, 192, _P6, "nvidia, aws"),
    "l4": Chip("L4", 22.5, 300, 121e12, 64, 8, 96, "g2-standard-96", "nvidia, gcp", _MEMORY),
    "l40s": Chip("L40S", 45, 864, 362e12, 64, 8, 192, "g6e.48xlarge", "nvidia, aws", _MEMORY),
    "rtx3090": Chip(
        *("RTX 3090", 24, 936, 71e12, 64, 1, 16, "a desktop", "nvidia", ("peak_flops", *_DESK))
    ),
    "rtx4090": Chip("RTX 4090", 24, 1008, 165e12, 64, 1, 16, "a desktop", "nvidia", _DESK),
    "rtx5090": Chip(
        *("RTX 5090", 32, 1792, 210e12, 128, 1, 16, "a desktop", "nvidia", ("peak_flops", *_DESK))
    ),
}

# What `jax.Device.device_kind` is called, in lower case; other forms of a chip, such as the H100
# for PCIe, have other rates.
_DEVICE_KINDS = {
    "v3": "tpu v3",
    "v4": "tpu v4",
    "v5e": "tpu (v5 lite|v5e)",
    "v5p": "tpu v5p?",
    "v6e": "tpu (v6 lite|v6e)",
    "tpu7x": "tpu ?(v7x?|7x)",
    "a100-40": "nvidia a100-sxm4-40gb",
    "a100-80": "nvidia a100-sxm4-80gb",
    "h100": "nvidia h100 80gb hbm3",
    "h200": "nvidia h200",
    "b200": "nvidia b200",
    "l4": "nvidia l4",
    "l40s": "nvidia l40s",
    "rtx3090": "nvidia geforce rtx 3090",
    "rtx4090": "nvidia geforce rtx 4090",
    "rtx5090": "nvidia geforce rtx 5090",
}


def kind_of(device_kind: str) -> str | None:
    """Returns the key in CHIPS of a `jax.Device.device_kind`, None for one that is not there."""
    name = device_kind.lower()
    return next((kind for kind, form in _DEVICE_KINDS.items() if re.fullmatch(form, name)), None)
