"""How fast are the links between the devices? The two collectives that a step needs most."""

import jax
import jax.numpy as jnp

from moco_jax.check.findings import Finding, Verdict
from moco_jax.check.timing import median_seconds
from moco_jax.contrastive.shuffle import shuffle
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.plan.hardware import CHIPS, kind_of

_PARAMETERS = 25_600_000  # of a ResNet-50; its gradients are float32
_SIDE, _IMAGES = 224, 32  # of a batch of bfloat16 images, those of a device
_SMALL = 100  # on CPUs, both are smaller by this factor
# Of the links' rate in one direction. A ring of TPUs uses a part of the links of each chip.
_FRACTION = 0.2


def check() -> Finding:
    """Returns the rates; slow if a device sends less than a part of what its links can."""
    layout, name = make_layout(), "links"
    if layout.devices == 1:
        return Finding(name, Verdict.OK, "there is one device")
    device = jax.local_devices()[0]
    smaller = _SMALL if device.platform == "cpu" else 1
    rates = {
        "all_reduce_gb_per_s": _all_reduce(layout, _PARAMETERS // smaller),
        "all_to_all_gb_per_s": _all_to_all(layout, max(1, _IMAGES // smaller)),
    }
    reduced, exchanged = rates.values()
    text = f"all-reduce {reduced:.3g} GB/s, all-to-all {exchanged:.3g} GB/s sent by each device"
    kind = kind_of(device.device_kind)
    if kind is None:
        return Finding(name, Verdict.OK, f"{text}; nothing is known of this chip", values=rates)
    chip = CHIPS[kind]
    link = chip.link_gb_per_s / 2 / chip.devices_per_chip
    text += f"; a device's links have {link:.0f}"
    hosts = jax.process_count()
    if reduced >= _FRACTION * link or hosts > 1 and not chip.is_tpu:
        return Finding(name, Verdict.OK, text, values=rates)
    advice = (
        "the devices may exchange data through the host: look at `nvidia-smi topo -m` and at "
        "NCCL_DEBUG=INFO; on TPUs, take a slice whose chips are neighbours"
    )
    return Finding(name, Verdict.SLOW, text, advice, rates)


def _all_reduce(layout: Layout, length: int) -> float:
    """Returns the GB/s that each device sends while the gradients of all are summed."""
    shape, sharding = (layout.devices, length), layout.sharded()
    gradients = jax.jit(lambda: jnp.ones(shape), out_shardings=sharding)()
    summed = jax.jit(lambda x: x.sum(axis=0), out_shardings=layout.replicated)
    seconds = median_seconds(lambda: summed(gradients), 3)
    return 2 * (layout.devices - 1) / layout.devices * 4 * length / seconds / 1e9


def _all_to_all(layout: Layout, images: int) -> float:
    """Returns the GB/s that each device sends while key images are shuffled."""
    devices = layout.devices
    images = -(-images // devices) * devices  # each device sends to every other one
    shape, sharding = (devices * images, _SIDE, _SIDE, 3), layout.sharded()
    batch = jax.jit(lambda: jnp.ones(shape, jnp.bfloat16), out_shardings=sharding)()
    shuffled = jax.jit(lambda x: shuffle(x, devices, layout), out_shardings=sharding)
    seconds = median_seconds(lambda: shuffled(batch), 3)
    return 2 * images * _SIDE**2 * 3 * (devices - 1) / devices / seconds / 1e9
