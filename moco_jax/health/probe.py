"""A linear classifier on frozen features, fitted at each evaluation of a run."""

import numpy as np

from moco_jax.encoders import logistic
from moco_jax.parallel.mesh import Layout

L2 = 1e-3  # times half of the squared weights
_ITERATIONS = 100
_TOLERANCE = 1e-4


def linear_top1(
    queries: np.ndarray,
    query_labels: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    layout: Layout,
) -> float:
    """Returns top-1 in percent of logistic regression, fitted on the bank, on the queries.

    It has an optimizer of its own, L-BFGS, and starts anew each time; no gradient reaches the
    encoder. Features are standardised by the bank.

    Args:
      queries: f32[M, F].
      query_labels: i32[M].
      bank: f32[N, F].
      bank_labels: i32[N].
    """
    mean, deviation = bank.mean(axis=0), bank.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1)
    fit = logistic.fit(
        (bank - mean) / scale,
        bank_labels,
        classes=int(max(bank_labels.max(), query_labels.max())) + 1,
        l2=L2,
        iterations=_ITERATIONS,
        tolerance=_TOLERANCE,
        layout=layout,
    )
    scores = (queries - mean) / scale @ fit.kernel + fit.bias
    return float(100 * (scores.argmax(axis=1) == query_labels).mean())
