"""The state of a segmentation run and its pure step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax.parallel.mesh import Layout
from moco_jax.segmentation.network import FCN
from moco_jax.segmentation.voc import IGNORED

Metrics = dict[str, jax.Array]


class SegmentationState(flax.struct.PyTreeNode):
    """Everything that a resumed run needs besides its config.

    `step` is i32[], steps done; `params` and `batch_stats` have `backbone` and `classifier`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    config: ConfigDict,
    network: FCN,
    optimizer: optax.GradientTransformation,
    backbone: dict[str, Any],
) -> SegmentationState:
    """Returns the state at step 0; `backbone` has `params` and `batch_stats`."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    maps = jnp.zeros((1, 1, 1, network.backbone.features))
    classifier = network.classifier.init(key, maps, train=False)
    params, stats = (
        {"backbone": backbone[name], "classifier": classifier[name]}
        for name in ("params", "batch_stats")
    )
    return SegmentationState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def loss(scores: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean cross-entropy over the pixels that are not ignored, and their accuracy.

    Shapes: scores f32[B, H, W, C], masks uint8[B, H, W].
    """
    valid = masks != IGNORED
    labels = jnp.where(valid, masks, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    right = scores.argmax(axis=-1) == labels
    # Over the whole batch, not over a device's part; a batch may be nothing but padding.
    pixels = jnp.maximum(valid.sum(), 1)
    mean = lambda x: jnp.where(valid, x, 0.0).sum() / pixels  # noqa: E731
    return mean(losses), mean(right)


def make_step(
    network: FCN, optimizer: optax.GradientTransformation, layout: Layout
) -> Callable[[SegmentationState, jax.Array, jax.Array], tuple[SegmentationState, Metrics]]:
    """Returns the pure step.

    It maps (state, images [B, S, S, 3], masks uint8[B, S, S]) to (state, metrics).
    """

    def step(state, images, masks):
        def objective(params):
            variables = {"params": layout.replicate(params), "batch_stats": state.batch_stats}
            scores, changed = network.apply(variables, images, train=True, mutable=["batch_stats"])
            mean, accuracy = loss(layout.shard(scores), masks)
            return mean, (accuracy, changed["batch_stats"])

        differentiate = jax.value_and_grad(objective, has_aux=True)
        (mean, (accuracy, batch_stats)), grads = differentiate(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = SegmentationState(state.step + 1, params, batch_stats, opt_state)
        after = jax.lax.with_sharding_constraint(after, layout.parameters(after))
        metrics = {
            "loss": mean,
            "train_pixel_accuracy": 100.0 * accuracy,
            # The loss is from before the update; this shows whether the saved state is finite.
            "largest_weight": optax.tree.norm(params, ord=jnp.inf),
        }
        return after, layout.replicate(metrics)

    return step
