"""Logistic regression on features that are at hand, by L-BFGS to convergence."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moco_jax.parallel.mesh import Layout


class Fit(NamedTuple):
    """A classifier and how its search ended.

    Attributes:
      kernel: f32[F, C].
      bias: f32[C].
      iterations: that were taken.
      gradient: the largest entry of the gradient at the end.
      converged: whether that is below the tolerance.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: int
    gradient: float
    converged: bool


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    l2: float,
    iterations: int,
    tolerance: float,
    layout: Layout,
) -> Fit:
    """Returns the minimum of mean cross-entropy + l2 / 2 ||kernel||^2; the bias is left alone.

    That is scikit-learn's LogisticRegression with C = 1 / (l2 N), and its stopping rule. Features
    are split over the devices, on which N C logits take 4 bytes each.

    Args:
      features: f32[N, F], whole on every process.
      labels: i32[N].
      classes: C.
      l2: strength of the regularisation.
      iterations: at most.
      tolerance: of the gradient's largest entry.
      layout: where arrays lie.
    """
    padding = -len(features) % layout.devices
    rows = (
        np.pad(features.astype(np.float32), ((0, padding), (0, 0))),
        np.pad(labels.astype(np.int32), (0, padding)),
        np.pad(np.ones(len(features), np.float32), (0, padding)),
    )
    kernel, bias, count, gradient = jax.device_get(
        _minimise(
            *layout.put(rows, layout.sharded()),
            np.float32(l2),
            np.float32(tolerance),
            classes=classes,
            iterations=iterations,
            layout=layout,
        )
    )
    return Fit(kernel, bias, int(count), float(gradient), bool(gradient <= tolerance))


@functools.partial(jax.jit, static_argnames=("classes", "iterations", "layout"))
def _minimise(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    l2: jax.Array,
    tolerance: jax.Array,
    *,
    classes: int,
    iterations: int,
    layout: Layout,
):
    """Returns kernel, bias, iterations done and the gradient's largest entry."""

    def objective(params: Any) -> jax.Array:
        scores = jnp.dot(features, params["kernel"], precision="highest") + params["bias"][None]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        decay = 0.5 * l2 * jnp.square(params["kernel"]).sum()
        return (losses * weights).sum() / weights.sum() + decay

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unfinished(carry):
        _, _, count, gradient = carry
        return (count < iterations) & (gradient > tolerance)

    def iterate(carry):
        params, state, count, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        # The line search leaves the gradient at the new place in the state.
        largest = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
        return params, state, count + 1, largest

    params: Any = {
        "kernel": jnp.zeros((features.shape[1], classes)),
        "bias": jnp.zeros(classes),
    }
    begun = params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf)
    params, _, count, gradient = jax.lax.while_loop(unfinished, iterate, begun)
    return layout.replicate((params["kernel"], params["bias"], count, gradient))
