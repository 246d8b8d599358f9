"""Five training steps of each mechanism, and the numbers that identify their results.

The steps begin from weights and images that numpy draws, so every machine begins from the same
values. `references.json` has the results in float64 on a CPU. The tests in tests/golden/ compare
such steps with implementations in PyTorch.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax import configs
from moco_jax.contrastive.state import TrainState
from moco_jax.parallel.mesh import Layout
from moco_jax.pretraining.method import Method, make_method

REFERENCES = pathlib.Path(__file__).parent / "references.json"
STEPS = 5
_IMAGES = 80  # of the training set
_PROJECTIONS = 16  # of an update


class Results(NamedTuple):
    """What identifies the results of five steps.

    Attributes:
      losses: of each step.
      gradients: norm of the gradient in each step.
      updates: name of a part of the state -> the norm of its change, then projections of it.
      first: number of the first step's batch.
    """

    losses: list[float]
    gradients: list[float]
    updates: dict[str, list[float]]
    first: int


class Deviation(NamedTuple):
    """How far results are from the reference, relative to its largest value.

    Attributes:
      loss: largest difference of the losses.
      gradient: largest difference of the norms.
      update: largest error of the change of a part of the state.
    """

    loss: float
    gradient: float
    update: float

    @property
    def largest(self) -> float:
        """NaN if one of them is: it is not below a limit."""
        return math.nan if any(map(math.isnan, self)) else max(self)


def queue() -> ConfigDict:
    """Returns MoCo v2: a queue and a momentum encoder."""
    config = _shrunk(configs.imagenet.get_config("v2"))
    config.queue_size, config.model.stem = 4 * config.batch_size, "small"
    return config


def end_to_end() -> ConfigDict:
    """Returns the mechanism of MoCo's figure 2a: the batch, with both encoders trained."""
    return _shrunk(configs.cifar10.get_config("end_to_end"))


def memory_bank() -> ConfigDict:
    """Returns the mechanism of MoCo's figure 2b, with NCE."""
    config = _shrunk(configs.cifar10.get_config("instdisc"))
    config.bank.negatives = 48
    return config


def momentum_vit() -> ConfigDict:
    """Returns MoCo v3 with a ViT."""
    return _vit(configs.imagenet_v3.get_config("vit_s"))


def masked() -> ConfigDict:
    """Returns a masked autoencoder."""
    config = _vit(configs.imagenet_mae.get_config("vit_b"))
    config.decoder.dim, config.decoder.heads, config.decoder.depth = 8, 2, 1
    return config


def _vit(config: ConfigDict) -> ConfigDict:
    config = _shrunk(config)
    # Heads of 8 values: with fewer, a GPU would not use cuDNN's attention.
    config.model.name, config.model.width, config.model.heads = "vit_tiny", 1 / 6, 4
    config.model.depth, config.model.patch, config.model.hidden = 2, 4, 12
    # Adam divides by the gradient, also by one that is rounding errors alone.
    config.adam_eps = 1e-4
    return config


def _shrunk(config: ConfigDict) -> ConfigDict:
    config.model.width, config.model.dim = 1 / 32, 8
    config.model.name = "resnet10"
    config.data.image_size = 16
    config.batch_size = config.lr_batch = 32  # the rate is then the recipe's, unscaled
    config.epochs, config.warmup_epochs, config.lr_update = 3, 0, "step"
    return config


MECHANISMS: dict[str, Callable[[], ConfigDict]] = {
    "queue": queue,
    "end-to-end": end_to_end,
    "memory bank": memory_bank,
    "v3 with ViT": momentum_vit,
    "masked": masked,
}


class Steps(NamedTuple):
    """Steps that are ready to run.

    Attributes:
      layout: the devices.
      step: the compiled train step; it donates the state.
      start: makes the state at step 0.
      inputs: makes the views and indices of batch `number`.
    """

    layout: Layout
    step: Any
    start: Callable[[], TrainState]
    inputs: Callable[[int], tuple]


def prepare(config: ConfigDict, layout: Layout, *, exact: bool = True) -> Steps:
    """Returns the steps of a config, compiled for these devices.

    Args:
      config: of the run.
      layout: the devices.
      exact: whether products of float32 are as exact as float32. Otherwise a GPU multiplies them as
        TensorFloat-32, and a TPU as bfloat16.
    """
    method = make_method(config, layout, _IMAGES)
    dtype = np.float64 if config.dtype == "float64" else np.float32  # of weights and views
    abstract = jax.tree.map(
        lambda x: x.update(dtype=dtype) if x.dtype == np.float32 else x, method.abstract_state()
    )

    def start() -> TrainState:
        return jax.tree.map(
            lambda x, like: jax.make_array_from_callback(
                x.shape, like.sharding, lambda index: x[index].astype(like.dtype)
            ),
            _drawn(method, abstract),
            abstract,
        )

    def inputs(number: int) -> tuple:
        views, indices = _batch(config, number)
        rows = layout.rows(config.batch_size)
        return layout.put_batch((tuple(v[rows].astype(dtype) for v in views), indices[rows]))

    step = layout.jit(method.train_step(), donate_argnums=0)
    with jax.default_matmul_precision("highest" if exact else None):
        lowered = step.lower(abstract, *inputs(0))
    return Steps(layout, lowered.compile(), start, inputs)


def run(steps: Steps, first: int = 0) -> Results:
    """Runs the five steps with the batches from number `first`."""
    state, metrics = steps.start(), []
    before = _parts(state)
    for number in range(first, first + STEPS):
        state, found = steps.step(state, *steps.inputs(number))
        metrics.append(jax.device_get(found))
    after = _parts(state)
    updates = {name: _described(before[name], after[name]) for name in before}
    series = {k: [float(m[k]) for m in metrics] for k in ("loss", "grad_norm")}
    return Results(series["loss"], series["grad_norm"], updates, first)


def references() -> dict[str, Results]:
    """Returns the results in float64 by mechanism."""
    return {name: Results(*x) for name, x in json.loads(REFERENCES.read_text()).items()}


def deviation(found: Results, reference: Results) -> Deviation:
    """Returns how far the results are from the reference."""

    def relative(a: list[float], b: list[float]) -> float:
        return float(np.abs(np.subtract(a, b)).max() / np.abs(b).max())

    return Deviation(
        relative(found.losses, reference.losses),
        relative(found.gradients, reference.gradients),
        # Not Python's max, which may drop a NaN.
        float(np.max([_error(found.updates[k], x) for k, x in reference.updates.items()])),
    )


def _error(found: list[float], reference: list[float]) -> float:
    """Returns the relative error of an update, estimated from its random projections."""
    (_, *projections), (norm, *expected) = found, reference
    return float(np.linalg.norm(np.subtract(projections, expected)) / norm / _PROJECTIONS**0.5)


def _parts(state: TrainState) -> dict[str, np.ndarray]:
    """Returns the parts of a state that are on every process, each as one vector."""
    trees = {
        "parameters": state.params,
        "key parameters": state.key_params,
        "statistics": state.batch_stats,
        **{f"dictionary {i}": x for i, x in enumerate(jax.tree.leaves(state.dictionary))},
    }
    vectors = {}
    for name, tree in trees.items():
        leaves = jax.tree.leaves(tree)
        if leaves and all(x.is_fully_addressable or x.is_fully_replicated for x in leaves):
            parts = [np.ravel(x).astype(np.float64) for x in jax.device_get(leaves)]
            vectors[name] = np.concatenate(parts)
    return vectors


def _described(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Returns the norm of a change, and its products with random signs."""
    change = after - before
    signs = np.random.RandomState(0).randint(0, 2, (_PROJECTIONS, len(change))) * 2 - 1
    return [float(np.linalg.norm(change)), *map(float, signs @ change)]


def _drawn(method: Method, abstract: TrainState) -> TrainState:
    """Returns a state of host arrays f64 whose weights numpy draws.

    Numpy never changes the numbers of `RandomState`; those of JAX depend on its version.
    """
    random = np.random.RandomState(1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: _weights(random, path[-1].key, x.shape), abstract.params
    )
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), abstract)
    init = method.key_encoder.init_key_params
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: np.full(x.shape, float(path[-1].key == "var")), abstract.batch_stats
    )
    return zeros.replace(
        params=params,
        batch_stats=stats,
        key_params=init(params),
        key_batch_stats=init(stats),
        dictionary=jax.tree.map(lambda x: _entries(random, x.shape), abstract.dictionary),
    )


def _weights(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = random.standard_normal(shape)
    if name == "kernel":
        return drawn / math.sqrt(math.prod(shape[:-1]))
    return 1 + drawn / 10 if name == "scale" else drawn / 10


def _entries(random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Returns unit vectors [..., D], or 0 for a number."""
    drawn = random.standard_normal(shape) if shape else np.zeros(())
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True) if shape else drawn


def _batch(config: ConfigDict, number: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns views f64[B, H, W, 3], two of the same images, and the indices i32[B] of a batch."""
    random = np.random.RandomState(100 + number)
    size = config.data.image_size
    images = random.standard_normal((config.batch_size, size, size, 3))
    views = [images + random.standard_normal(images.shape) / 2 for _ in config.views]
    return views, random.permutation(max(_IMAGES, config.batch_size))[: config.batch_size].astype(
        np.int32
    )
