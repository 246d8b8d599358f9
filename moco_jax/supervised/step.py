"""The state of a supervised task and its pure step: heads on a frozen or trained backbone.

A sweep has several heads [H, F, C], one for each learning rate. The backbone runs once for all of
them, and no gradient passes from one head to another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax.models.backbones import Backbone
from moco_jax.models.layers.batch_norm import GroupedBatchNorm
from moco_jax.parallel.mesh import Layout
from moco_jax.supervised.start import Start
from moco_jax.training.optimizers import scaled_lr

NORM_EPSILON = 1e-6  # is added to the variance of a feature (MAE)

Metrics = dict[str, jax.Array]
# params -> (features f32[B, F], batch_stats)
Forward = Callable[[Any], tuple[jax.Array, Any]]


class SupervisedState(flax.struct.PyTreeNode):
    """Everything that a resumed run needs besides its config.

    Attributes:
      step: i32[], steps done.
      params: the trained parameters: `head`, and in fine-tuning `backbone`.
      frozen: the backbone if it is not trained, else {}.
      batch_stats: the backbone's running averages.
      feature_stats: those of the batch norm of the features; {} without one.
      averaged: EMA of `params` and `batch_stats`; {} without one.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: Any
    frozen: Any
    batch_stats: Any
    feature_stats: Any
    averaged: Any
    opt_state: Any

    def evaluated(self) -> dict[str, Any]:
        """Returns what evaluation needs: `backbone`, `head`, `batch_stats`, `feature_stats`."""
        shown = self.averaged or {"params": self.params, "batch_stats": self.batch_stats}
        return {
            "backbone": self.frozen or shown["params"]["backbone"],
            "batch_stats": shown["batch_stats"],
            "feature_stats": self.feature_stats,
            "head": shown["params"]["head"],
        }


def unscaled_rates(config: ConfigDict) -> tuple[float, ...]:
    """Returns the learning rates of the heads, for a batch of `lr_batch` images."""
    return config.lr if isinstance(config.lr, tuple) else (config.lr,)


def rates(config: ConfigDict) -> tuple[float, ...]:
    """Returns the learning rates of the heads, scaled to the batch."""
    return tuple(scaled_lr(config, lr) for lr in unscaled_rates(config))


def factors(config: ConfigDict, params: Any, blocks: Sequence[str] = ()) -> Any:
    """Returns the factor of each parameter's learning rate; the schedule is another factor.

    Fine-tuning multiplies the rate by `layer_decay` from each layer to the one before it. The first
    layer is all that comes before the blocks; what follows them has the factor 1. With BEiT's and
    MAE's numbers of layers that is layer_decay ** (depth + 1 - number). A ResNet's residual blocks
    are its layers too.

    Args:
      blocks: names of the backbone's blocks, in order.
    """
    if config.task == "linear":
        heads = jnp.asarray(rates(config), jnp.float32)
        return jax.tree.map(lambda x: heads.reshape(-1, *(1,) * (x.ndim - 1)), params)

    def full(factor: float, part: Any) -> Any:
        return jax.tree.map(lambda x: jnp.full((1,) * x.ndim, factor), part)

    numbers = {"norm": len(blocks) + 1} | {name: i + 1 for i, name in enumerate(blocks)}
    decay = lambda name: config.layer_decay ** (len(blocks) + 1 - numbers.get(name, 0))  # noqa: E731
    backbone = {name: full(decay(name), part) for name, part in params["backbone"].items()}
    return {"head": full(config.head_lr, params["head"]), "backbone": backbone}


def decayed(params: Any) -> Any:
    """Returns which parameters decay without `decay_all`: the kernels."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def step_key(config: ConfigDict, step: jax.Array) -> jax.Array:
    """Returns the key of a step: views fold in 0, mixing 1, stochastic depth 2."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)


def init_state(
    config: ConfigDict,
    start: Start,
    classes: int,
    optimizer: optax.GradientTransformation,
    variables: dict[str, Any],
) -> SupervisedState:
    """Returns the state at step 0; `variables` are the backbone's `params` and `batch_stats`.

    The heads are drawn from a normal distribution, with bias 0, and are all equal. Its deviation is
    that of the references in linear evaluation, .01, and `head_std` in fine-tuning.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    heads, features = len(rates(config)), start.backbone.features
    std = config.get("head_std", 0.01)
    kernel = std * jax.random.normal(key, (1, features, classes))
    head = {"kernel": jnp.tile(kernel, (heads, 1, 1)), "bias": jnp.zeros((heads, classes))}
    params, frozen, stats = {"head": head}, variables["params"], variables["batch_stats"]
    averaged, feature_stats = {}, {}
    if config.task == "linear" and config.feature_norm:
        feature_stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)}
    if config.task == "finetune":
        params, frozen = {"head": head, "backbone": frozen}, {}
        if config.ema:
            averaged = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats})
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
    return SupervisedState(step, params, frozen, stats, feature_stats, averaged, opt_state)


def logits(head: Any, features: jax.Array) -> jax.Array:
    """Returns f32[B, H, C] of features f32[B, F]."""
    # Full precision: a TPU's bfloat16 products are too coarse for learning rates of 30.
    products = jnp.einsum("bf,hfc->bhc", features, head["kernel"], precision="highest")
    return products + head["bias"][None]


def encode(backbone: Backbone, params: Any, batch_stats: Any, images: jax.Array) -> jax.Array:
    """Returns features f32[B, F], batch norm in evaluation mode."""
    variables = {"params": params, "batch_stats": batch_stats}
    features: Any = backbone.apply(variables, images, train=False)
    return features


def normalized(stats: Any, features: jax.Array, groups: int = 0) -> tuple[jax.Array, Any]:
    """Returns features f32[B, F] after their batch norm, and its running averages.

    It is the one in front of MAE's linear classifier (He et al. 2021, appendix A.1; mae
    `main_linprobe.py`), without scale and bias.

    Args:
      stats: the running averages; {} without batch norm, and the features stay as they are.
      groups: parts of the batch that are normalised by their own statistics; 0: the running
        averages normalise (evaluation).
    """
    if not stats:
        return features, stats
    norm = GroupedBatchNorm(
        max(groups, 1), use_running_average=not groups, epsilon=NORM_EPSILON, affine=False
    )
    features, changed = norm.apply({"batch_stats": stats}, features, mutable=["batch_stats"])
    return features, changed["batch_stats"]


def _frozen(backbone: Backbone, state: SupervisedState, images, key, layout: Layout) -> Forward:
    # Outside the gradient: no gradient of the backbone is ever computed.
    features = encode(backbone, layout.replicate(state.frozen), state.batch_stats, images)
    return lambda params: (features, state.batch_stats)


def _trained(backbone: Backbone, state: SupervisedState, images, key, layout: Layout) -> Forward:
    def forward(params):
        weights, stats = layout.replicate(params["backbone"]), state.batch_stats
        variables = {"params": weights, "batch_stats": stats}
        features, changed = backbone.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"drop_path": key}
        )
        return features, changed.get("batch_stats", {})

    return forward


_FORWARDS = {"linear": _frozen, "finetune": _trained}


def make_step(
    config: ConfigDict, start: Start, optimizer: optax.GradientTransformation, layout: Layout
) -> Callable[[SupervisedState, jax.Array, jax.Array], tuple[SupervisedState, Metrics]]:
    """Returns the pure step (state, images [B, S, S, 3], targets f32[B, C]) -> (state, metrics)."""
    ema = config.ema if config.task == "finetune" else 0.0

    def step(state, images, targets):
        key = jax.random.fold_in(step_key(config, state.step), 2)
        forward = _FORWARDS[config.task](start.backbone, state, images, key, layout)

        def objective(params):
            features, batch_stats = forward(params)
            features, feature_stats = normalized(state.feature_stats, features, config.bn_groups)
            scores = logits(layout.replicate(params["head"]), features)
            losses = optax.safe_softmax_cross_entropy(scores, targets[:, None, :]).mean(axis=0)
            # The sum: each head's gradient is that of its own loss.
            return losses.sum(), (losses, scores, batch_stats, feature_stats)

        grads, aux = jax.grad(objective, has_aux=True)(state.params)
        losses, scores, batch_stats, feature_stats = aux
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged, now = state.averaged, {"params": params, "batch_stats": batch_stats}
        if ema:
            averaged = optax.incremental_update(now, averaged, 1 - ema)
        now |= {"feature_stats": feature_stats, "averaged": averaged, "opt_state": opt_state}
        after = state.replace(step=state.step + 1, **now)
        after = jax.lax.with_sharding_constraint(after, layout.parameters(after))
        return after, layout.replicate(_metrics(params, losses, scores, targets))

    return step


def _metrics(params: Any, losses: jax.Array, scores: jax.Array, targets: jax.Array) -> Metrics:
    """Returns means over the finite heads; NaN, which stops the run, if no head is finite."""
    heads = [jnp.abs(x).reshape(len(losses), -1).max(axis=1) for x in params["head"].values()]
    largest = jnp.stack(heads).max(axis=0)
    alive = jnp.isfinite(losses) & jnp.isfinite(largest)
    mean = lambda x: jnp.where(alive, x, 0.0).sum() / alive.sum()  # noqa: E731
    right = scores.argmax(axis=-1) == targets.argmax(axis=-1)[:, None]
    backbone = optax.tree.norm(params.get("backbone", {}), ord=jnp.inf)
    return {
        "loss": mean(losses),
        "train_top1": 100.0 * mean(right.mean(axis=0)),
        # The loss is from before the update; this shows whether the saved state is finite.
        "largest_weight": jnp.maximum(jnp.where(alive, largest, 0.0).max(), backbone),
        "live_heads": alive.sum().astype(jnp.float32),
    }
