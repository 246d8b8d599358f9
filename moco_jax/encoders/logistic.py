"""Logistic regression on features, by L-BFGS to convergence."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moco_jax.parallel.mesh import Layout


class Fit(NamedTuple):
    """A fitted classifier.

    Attributes:
      kernel: f32[F, C].
      bias: f32[C].
      iterations: number of iterations done.
      gradient: the largest entry of the gradient after the last iteration.
      converged: whether `gradient` is at most the tolerance.
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
    """Returns the minimum of mean cross-entropy + l2 / 2 ||kernel||^2.

    The bias is not regularised. Objective and stopping rule are those of scikit-learn's
    LogisticRegression with C = 1 / (l2 N). Features are split over the devices; so are the N x C
    logits, 4 bytes each.

    Args:
      features: f32[N, F]; every process has all of them.
      labels: i32[N].
      classes: C.
      iterations: most iterations.
      tolerance: the fit stops when the gradient's largest entry is at most this.
    """
    padding = -len(features) % layout.devices
    rows = (
        np.pad(features.astype(np.float32), ((0, padding), (0, 0))),
        np.pad(labels.astype(np.int32), (0, padding)),
        np.pad(np.ones(len(features), np.float32), (0, padding)),
    )
    found = _minimise(
        *layout.put(rows, layout.sharded()),
        np.float32(l2),
        np.float32(tolerance),
        classes=classes,
        iterations=iterations,
        layout=layout,
    )
    kernel, bias, count, gradient = jax.device_get(found)
    return Fit(kernel, bias, int(count), float(gradient), bool(gradient <= tolerance))


@functools.partial(jax.jit, static_argnames=("classes", "iterations", "layout"))
def _minimise(features, labels, weights, l2, tolerance, *, classes, iterations, layout: Layout):
    """Returns kernel, bias, number of iterations and the gradient's largest entry."""

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
        # The line search stores the gradient at the new parameters in the state.
        largest = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
        return params, state, count + 1, largest

    params: Any = {"kernel": jnp.zeros((features.shape[1], classes)), "bias": jnp.zeros(classes)}
    start = params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf)
    params, _, count, gradient = jax.lax.while_loop(unfinished, iterate, start)
    return layout.replicate((params["kernel"], params["bias"], count, gradient))
