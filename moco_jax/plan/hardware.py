"""Facts about accelerators: memory, peak speed, and their usual hosts.

Sources, read in November 2026:
  [tpu] docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}: memory, peak, chips per pod. The
    page of v5e also has the vCPUs of its virtual machines. Slices of several hosts have 4 chips per
    host (v5e: ct5lp-hightpu-4t, as xpk and GKE create them), which is also libtpu's default.
  [nvidia] data sheets of the A100, H100, H200, B200, L4 and L40S, and the white paper of the Ada
    architecture: peak of the tensor cores with float32 sums, without sparsity (the data sheets
    print twice that).
  [gcp] cloud.google.com/compute/docs/accelerator-optimized-machines: vCPUs of A2, A3, G2.
  [aws] lists of EC2 instances: vCPUs of p5en, p6-b200, g6e.
  libtpu 0.0.42: `usable_gib`, the limit above which its compiler refuses a program.
Values that none of these sources has are named in `unsourced` and written from memory.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator chip and its usual host."""

    title: str  # the maker's name for it
    # HBM or graphics memory of a chip; runtimes reserve part of it. The makers' GB are taken as
    # GiB, which is right to a percent.
    memory_gib: float
    peak_flops: float  # FLOP/s of dense bfloat16 matrix products
    chips_per_host: int
    vcpus_per_host: int
    host: str  # machine type; other machine types have other numbers of vCPUs
    sources: str  # of these values, see the docstring of this file
    unsourced: tuple[str, ...] = ()  # names of the attributes without a source
    dimensions: int = 0  # of a TPU topology (2 for 16x16); 0 for GPUs
    pod_chips: int = 0  # chips of the largest TPU slice; 0 for GPUs
    usable_gib: float = 0.0  # memory of a chip that a program may take; 0 if unknown
    devices_per_chip: int = 1  # `jax.Device`s; 2 if the two cores of a chip have separate memory

    @property
    def is_tpu(self) -> bool:
        return self.dimensions > 0


_VCPUS = ("vcpus_per_host",)

# The values are in the order of the attributes of `Chip`.
CHIPS: dict[str, Chip] = {
    "v3": Chip("TPU v3", 32, 123e12, 4, 96, "v3-8", "tpu", _VCPUS, 2, 1024, 30.96, 2),
    "v4": Chip("TPU v4", 32, 275e12, 4, 240, "ct4p-hightpu-4t", "tpu", _VCPUS, 3, 4096, 30.75),
    "v5e": Chip("TPU v5e", 16, 197e12, 4, 112, "ct5lp-hightpu-4t", "tpu", (), 2, 256, 15.75),
    "v5p": Chip("TPU v5p", 95, 459e12, 4, 208, "ct5p-hightpu-4t", "tpu", _VCPUS, 3, 6144, 95.74),
    "v6e": Chip("TPU v6e", 32, 918e12, 4, 180, "ct6e-standard-4t", "tpu", _VCPUS, 2, 256, 31.25),
    "tpu7x": Chip("TPU7x", 192, 2307e12, 4, 224, "tpu7x-standard-4t", "tpu", _VCPUS, 3, 9216, 0, 2),
    "a100-40": Chip("A100 40 GB", 40, 312e12, 8, 96, "a2-highgpu-8g", "nvidia, gcp"),
    "a100-80": Chip("A100 80 GB", 80, 312e12, 8, 96, "p4de.24xlarge", "nvidia, aws", _VCPUS),
    "h100": Chip("H100 SXM", 80, 989e12, 8, 208, "a3-highgpu-8g", "nvidia, gcp"),
    "h200": Chip("H200 SXM", 141, 989e12, 8, 192, "p5en.48xlarge", "nvidia, aws"),
    "b200": Chip("B200 SXM", 180, 2250e12, 8, 192, "p6-b200.48xlarge", "nvidia, aws"),
    "l4": Chip("L4", 24, 121e12, 8, 96, "g2-standard-96", "nvidia, gcp", _VCPUS),
    "l40s": Chip("L40S", 48, 362e12, 8, 192, "g6e.48xlarge", "nvidia, aws"),
    "rtx3090": Chip("RTX 3090", 24, 71e12, 1, 16, "a desktop", "nvidia", ("peak_flops", *_VCPUS)),
    "rtx4090": Chip("RTX 4090", 24, 165e12, 1, 16, "a desktop", "nvidia", _VCPUS),
    "rtx5090": Chip("RTX 5090", 32, 210e12, 1, 16, "a desktop", "nvidia", ("peak_flops", *_VCPUS)),
}
