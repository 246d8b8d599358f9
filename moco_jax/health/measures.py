"""Measures of a representation that need no labels. All are functions of features in one array."""

import math

import jax
import jax.numpy as jnp
import numpy as np

_TINY = 1e-7  # is added to the singular values' fractions (RankMe, eq. 1)
_DEAD = 1e-4  # times the largest standard deviation of a unit


def effective_rank(features: np.ndarray) -> float:
    """Returns RankMe of features f32[N, F]: from 1 to min(N, F) (Garrido et al. 2023, eq. 1-2).

    It is the exponential of the entropy of the singular values, which are not centred; NaN if a
    feature is not finite. NumPy computes it: for a TPU, singular values take minutes to compile.
    """
    if not np.isfinite(features).all():
        return math.nan
    x = features.astype(np.float64)  # the products have the squares of the singular values
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0))
    fractions = values / max(values.sum(), np.finfo(values.dtype).tiny) + _TINY
    return float(np.exp(-(fractions * np.log(fractions)).sum()))


def spread(features: jax.Array) -> jax.Array:
    """Returns the standard deviation of unit vectors f32[N, F], 1 where they fill the sphere.

    It is the mean over the units, times the root of F (Chen and He 2021, SimSiam, fig. 2). 0 is
    collapse: all vectors are equal.
    """
    unit = normalised(features)
    return unit.std(axis=0).mean() * features.shape[1] ** 0.5


def dead_units(features: jax.Array) -> jax.Array:
    """Returns the fraction of units of f32[N, F] that have the same value for all images."""
    deviations = features.std(axis=0)
    return (deviations <= _DEAD * deviations.max()).mean(dtype=jnp.float32)


def alignment(one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the mean squared distance of the unit vectors of pairs f32[N, D], 0 to 4.

    (Wang and Isola 2020, alpha 2.)
    """
    return jnp.square(one - other).sum(axis=1).mean()


def uniformity(vectors: jax.Array) -> jax.Array:
    """Returns the log of the mean Gaussian potential of pairs of unit vectors f32[N, D], -4 to 0.

    (Wang and Isola 2020, t 2.) 0 is collapse.
    """
    distances = 2 - 2 * negatives(vectors)
    return jnp.log(jnp.exp(-2 * distances).mean())


def positives(one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the cosines f32[N] of the unit vectors of pairs f32[N, D]."""
    return (one * other).sum(axis=1)


def negatives(vectors: jax.Array) -> jax.Array:
    """Returns the cosines f32[N (N - 1)] of different unit vectors f32[N, D], each pair twice."""
    count, cosines = len(vectors), jnp.matmul(vectors, vectors.T, precision="highest")
    # Without its first entry, the diagonal is the last column of rows of N + 1.
    return cosines.ravel()[1:].reshape(count - 1, count + 1)[:, :-1].ravel()


def normalised(vectors: jax.Array) -> jax.Array:
    """Returns vectors f32[N, D] with length 1; a vector of zeros stays."""
    lengths = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.maximum(lengths, 1e-12)
