"""Facts about accelerators: memory, peak speed, and the hosts that they come with.

Sources, read in November 2026:
  [tpu] docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}: memory, peak, chips a pod; v5e's
    page also the vCPUs of its virtual machines. Slices of several hosts have 4 chips a host (v5e:
    ct5lp-hightpu-4t, as xpk and GKE make them), which is also what libtpu takes as the default.
  [nvidia] data sheets of the A100, H100, H200, B200, L4 and L40S, and the white paper of the Ada
    architecture; peaks without sparsity (the sheets print twice that), tensor cores, float32 sums.
  [gcp] cloud.google.com/compute/docs/accelerator-optimized-machines: vCPUs of A2, A3, G2.
  [aws] Lists of EC2 instances: vCPUs of p5en, p6-b200, g6e.
  libtpu 0.0.42: `usable_gib`, the limit by which its compiler refuses a program.
What was not found in one of these is named in `unsure` and written from memory.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator as it is sold, and the host it usually comes with.

    Attributes:
      title: its maker's name.
      memory_gib: GiB of HBM (or of a graphics card's memory) a chip. The makers' GB are GiB here,
        to a percent; runtimes keep some of it.
      peak_flops: bfloat16 matrix products, FLOP/s a chip, dense.
      chips_per_host: chips that one host feeds.
      vcpus_per_host: of that host.
      host: the machine meant, for others have other vCPUs.
      sources: of the above; see the top of this file.
      unsure: names of attributes that no source was found for.
      dimensions: of a TPU's topology (2 for 16x16); 0 for GPUs, which have none.
      pod_chips: the largest slice of a TPU, in chips; 0 for GPUs.
      devices_per_chip: `jax.Device`s a chip; 2 where its two cores have their own memory.
      usable_gib: of the memory, what a program may take; 0 if not known.
    """

    title: str
    memory_gib: float
    peak_flops: float
    chips_per_host: int
    vcpus_per_host: int
    host: str
    sources: str
    unsure: tuple[str, ...] = ()
    dimensions: int = 0
    pod_chips: int = 0
    devices_per_chip: int = 1
    usable_gib: float = 0.0

    @property
    def is_tpu(self) -> bool:
        return self.dimensions > 0


_VCPUS = ("vcpus_per_host",)

CHIPS: dict[str, Chip] = {  # title; GiB, FLOP/s; chips and vCPUs of the host, and its name; sources
    "v3": Chip(
        *("TPU v3", 32, 123e12, 4, 96, "v3-8", "tpu", _VCPUS),
        dimensions=2,
        pod_chips=1024,
        devices_per_chip=2,
        usable_gib=30.96,
    ),
    "v4": Chip(
        *("TPU v4", 32, 275e12, 4, 240, "ct4p-hightpu-4t", "tpu", _VCPUS),
        dimensions=3,
        pod_chips=4096,
        usable_gib=30.75,
    ),
    "v5e": Chip(
        *("TPU v5e", 16, 197e12, 4, 112, "ct5lp-hightpu-4t", "tpu"),
        dimensions=2,
        pod_chips=256,
        usable_gib=15.75,
    ),
    "v5p": Chip(
        *("TPU v5p", 95, 459e12, 4, 208, "ct5p-hightpu-4t", "tpu", _VCPUS),
        dimensions=3,
        pod_chips=6144,
        usable_gib=95.74,
    ),
    "v6e": Chip(
        *("TPU v6e", 32, 918e12, 4, 180, "ct6e-standard-4t", "tpu", _VCPUS),
        dimensions=2,
        pod_chips=256,
        usable_gib=31.25,
    ),
    "tpu7x": Chip(
        *("TPU7x", 192, 2307e12, 4, 224, "tpu7x-standard-4t", "tpu", _VCPUS),
        dimensions=3,
        pod_chips=9216,
        devices_per_chip=2,
    ),
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
