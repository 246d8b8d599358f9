"""Weighted nearest-neighbour classification (Wu et al. 2018; the CIFAR demo of MoCo)."""

from collections.abc import Sequence

import numpy as np

from moco_jax.encoders.neighbours import nearest
from moco_jax.parallel.mesh import Layout

_VOTES_AT_ONCE = 2**22  # queries x classes: 32 MB


def knn_top1(*rows: np.ndarray, k: int, temperature: float, layout: Layout) -> float:
    """Returns top-1 in percent for one k and one temperature; see `knn_table`."""
    return float(knn_table(*rows, ks=(k,), temperatures=(temperature,), layout=layout)[0, 0])


def knn_table(
    queries: np.ndarray,
    query_labels: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    layout: Layout,
) -> np.ndarray:
    """Returns top-1 in percent, f64[len(ks), len(temperatures)].

    Each of the k nearest neighbours by cosine votes for its class with exp(cosine / temperature).
    Of equally near neighbours the one with the lower index is taken; of classes with equal votes
    the lower label wins. One exact search serves the whole table; see `neighbours.nearest`.

    Args:
      queries: f32[M, F].
      query_labels: i32[M].
      bank: f32[N, F].
      bank_labels: i32[N].
      ks: numbers of neighbours; at most N are used.
      temperatures: of the votes.
    """
    k = min(max(ks), len(bank))
    cosines, indices = nearest(queries, bank, k=k, layout=layout)
    return _table(cosines, bank_labels[indices], query_labels, ks, temperatures)


def leave_one_out_table(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    layout: Layout,
) -> np.ndarray:
    """Returns the `knn_table` of rows f32[N, F] that are classified by all the other rows.

    Raises:
      ValueError: for fewer than 2 rows.
    """
    if len(features) < 2:
        raise ValueError(f"leave-one-out needs 2 or more images, got {len(features)}")
    k = min(max(ks), len(features) - 1)
    own = np.arange(len(features), dtype=np.int32)
    cosines, indices = nearest(features, features, k=k, layout=layout, own=own, among="others")
    return _table(cosines, labels[indices], labels, ks, temperatures)


def _table(cosines, neighbours, labels, ks, temperatures) -> np.ndarray:
    """Returns percentages f64[ks, temperatures] from cosines and labels [M, k] of neighbours."""
    classes = int(max(neighbours.max(), labels.max())) + 1
    step = max(1, _VOTES_AT_ONCE // classes)
    correct = np.zeros((len(ks), len(temperatures)))
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        for column, temperature in enumerate(temperatures):
            votes = _votes(cosines[rows], neighbours[rows], ks, temperature, classes)
            correct[:, column] += (votes == labels[None, rows]).sum(axis=1)
    return 100.0 * correct / len(labels)


def _votes(cosines, neighbours, ks, temperature: float, classes: int) -> np.ndarray:
    """Returns the winning classes, i64[ks, M]; a larger k adds to the votes of a smaller one."""
    # Minus the largest cosine, so that small temperatures do not overflow; the winner is the same.
    weights = np.exp((cosines.astype(np.float64) - cosines[:, :1]) / temperature)
    votes, counted = np.zeros((len(cosines), classes)), 0
    winners = np.empty((len(ks), len(cosines)), np.int64)
    for row in np.argsort(ks):
        k = min(int(ks[row]), cosines.shape[1])
        voter = (np.arange(len(cosines))[:, None], neighbours[:, counted:k])
        np.add.at(votes, voter, weights[:, counted:k])
        winners[row], counted = votes.argmax(axis=1), k
    return winners
