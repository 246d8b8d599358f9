import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cifar10
from moco_jax.parallel.mesh import make_layout
from moco_jax.training.optimizers import make_optimizer, make_schedule
from tests.tiny import tiny_config


def lrs(steps, per_epoch, **changes):
    changes = {"steps": None, "lr_schedule": "cosine"} | changes
    schedule = make_schedule(tiny_config(**changes), per_epoch)
    return [float(schedule(s)) for s in steps]


def test_cosine_moves_once_an_epoch():
    got = lrs([0, 9, 10, 1000, 1999], 10, epochs=200, lr=0.03)
    expected = [0.03, 0.03, 0.03 * (1 + np.cos(np.pi / 200)) / 2, 0.015]
    np.testing.assert_allclose(got[:4], expected, rtol=1e-5)
    assert got[4] == pytest.approx(0.03 * (1 + np.cos(np.pi * 199 / 200)) / 2, rel=1e-3)


def test_the_cifar_demo_counts_epochs_from_1():
    """Its loop is `for epoch in range(1, 201)`, and its rate .06 (1 + cos(pi epoch / 200)) / 2."""
    schedule = make_schedule(cifar10.get_config(), 97)
    got = [float(schedule(step)) for step in (0, 96, 97, 100 * 97, 199 * 97, 200 * 97 - 1)]
    expected = [0.03 * (1 + np.cos(np.pi * epoch / 200)) for epoch in (1, 1, 2, 101, 200, 200)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_cosine_moves_every_step():
    got = lrs([0, 1, 50, 100], 10, epochs=10, lr=1.0, lr_update="step")
    np.testing.assert_allclose(got, [1, (1 + np.cos(np.pi / 100)) / 2, 0.5, 0], atol=1e-6)


def test_v1_drops_at_epochs_120_and_160():
    steps = [0, 119 * 7 + 6, 120 * 7, 159 * 7 + 6, 160 * 7, 199 * 7]
    got = lrs(steps, 7, epochs=200, lr=0.03, lr_schedule="step")
    np.testing.assert_allclose(got, [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003], rtol=1e-5)


def test_warm_up_rises_every_step_and_the_rate_scales_with_the_batch():
    got = lrs([0, 5, 10, 20], 10, epochs=3, warmup_epochs=2, lr=0.5, lr_batch=16)
    # Batch 32: twice .5. The cosine starts where the warm-up ends.
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 1.0], atol=1e-6)


def test_sgd_is_torchs():
    """Two steps worked by hand: g' = g + wd p; v = m v + g'; p = p - lr v."""
    config = tiny_config(sgd_momentum=0.9, weight_decay=0.1)
    optimizer = make_optimizer(config, lambda step: jnp.where(step < 1, 0.5, 0.25))
    params = {"w": jnp.array(2.0)}
    state = optimizer.init(params)
    for gradient in (1.0, 3.0):
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    # Step 1: v = 1.2, p = 1.4. Step 2: v = 1.08 + 3.14 = 4.22, p = 1.4 - 1.055.
    assert float(params["w"]) == pytest.approx(0.345, rel=1e-6)


_RATES = (0.5, 0.25, 0.1)


def parameters(scale: float = 1.0) -> dict[str, np.ndarray]:
    """Returns a kernel, a convolution, two vectors and a kernel of zeros, float32."""
    rng = np.random.default_rng(round(10 * scale))
    shapes = {"dense": (256, 64), "conv": (3, 3, 4, 5), "bias": (5,), "zero": (4, 6)}
    drawn = {name: scale * rng.normal(size=shape) for name, shape in shapes.items()}
    return {name: x.astype(np.float32) for name, x in drawn.items()} | {
        "zero": np.zeros((4, 6), np.float32)
    }


def gradients(step: int) -> dict[str, np.ndarray]:
    found = parameters(0.1 * (step + 1))
    return found | {"zero": np.full((4, 6), 0.5 if step else 0.0, np.float32)}


def three_steps(config, layout=None, frozen=()) -> dict[str, np.ndarray]:
    """Returns the parameters after three steps, computed on the devices of a layout."""
    optimizer = make_optimizer(config, lambda step: jnp.asarray(_RATES)[step], frozen=frozen)
    layout = layout or make_layout(jax.devices()[:1])
    place = lambda tree: jax.device_put(tree, layout.parameters(tree))  # noqa: E731
    params = place({"backbone": parameters()})
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(3):
        params, state = step(params, state, place({"backbone": gradients(number)}))
    return jax.device_get(params)["backbone"]


def by_lars(p: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """Returns a parameter after steps of moco-v3's LARS: .9, decay .1 and trust .01, float64."""
    mean = 0.0
    for g, lr in zip(grads, _RATES, strict=True):
        if p.ndim > 1:
            g = g + 0.1 * p
            norms = np.linalg.norm(p), np.linalg.norm(g)
            g = g * (0.01 * norms[0] / norms[1] if min(norms) > 0 else 1.0)
        mean = 0.9 * mean + g
        p = p - lr * mean
    return p


def by_adamw(p: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """Returns a parameter after steps of torch's AdamW: betas .8 and .95, eps .01, decay .1."""
    mean = square = 0.0
    for number, (g, lr) in enumerate(zip(grads, _RATES, strict=True), start=1):
        p = p * (1 - lr * 0.1)
        mean, square = 0.8 * mean + 0.2 * g, 0.95 * square + 0.05 * g**2
        unbiased = mean / (1 - 0.8**number), square / (1 - 0.95**number)
        p = p - lr * unbiased[0] / (np.sqrt(unbiased[1]) + 0.01)
    return p


LARS = dict(optimizer="lars", sgd_momentum=0.9, weight_decay=0.1, lars_trust=0.01)
ADAMW = dict(optimizer="adamw", adam_b1=0.8, adam_b2=0.95, adam_eps=0.01, weight_decay=0.1)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("changes", "reference"), [(LARS, by_lars), (ADAMW, by_adamw)], ids=["lars", "adamw"]
)
def test_lars_is_moco_v3s_and_adamw_torchs(changes, reference, devices):
    layout = make_layout(jax.devices()[:devices], fsdp=devices)  # the kernel is split over them
    got = three_steps(tiny_config(**changes), layout)
    for name, p in parameters().items():
        grads = [gradients(step)[name].astype(np.float64) for step in range(3)]
        wanted = reference(p.astype(np.float64), grads)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "changes", [LARS, ADAMW, dict(weight_decay=0.1)], ids=["lars", "adamw", "sgd"]
)
def test_frozen_parts_keep_their_values_bit_for_bit(changes):
    config = tiny_config(**changes)
    frozen, free = three_steps(config, frozen=("conv", "zero")), three_steps(config)
    for name, p in parameters().items():
        if name in ("conv", "zero"):
            np.testing.assert_array_equal(frozen[name], p)
            assert not np.array_equal(free[name], p)
        else:
            np.testing.assert_array_equal(frozen[name], free[name])


def test_frozen_parts_have_no_moments():
    params = {"backbone": parameters()}
    optimizer = make_optimizer(tiny_config(**ADAMW), lambda step: 0.1, frozen=("dense",))
    shapes = [x.shape for x in jax.tree.leaves(optimizer.init(params))]
    assert (256, 64) not in shapes
    assert shapes.count((3, 3, 4, 5)) == 2
