"""The health monitor of a run: measures of its features on the same views at each evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.augment.views import make_views
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import subset
from moco_jax.encoders.features import make_extract
from moco_jax.health import measures
from moco_jax.models.encoder import Encoder
from moco_jax.models.pretexts import contrasts
from moco_jax.parallel.mesh import Layout

FEWEST = 16  # images; fewer have no rank worth a look


class Measured(NamedTuple):
    """What a measurement found.

    Attributes:
      scalars: by name, to be logged.
      positives: cosines f32[N] of two views of an image.
      negatives: cosines of views of different images.
    """

    scalars: dict[str, float]
    positives: np.ndarray
    negatives: np.ndarray


def make_encode(config: ConfigDict, encoder: Encoder, layout: Layout) -> Any:
    """Returns (variables, uint8[B, H, W, 3], sizes i32[B, 2]) -> codes f32[B, 2 (F + D)], jitted.

    The codes are, for each of two views, the backbone's features f32[B, F] and the unit vectors
    f32[B, D] that are compared.
    """
    draw, keys = make_views(config, layout), contrasts(config)

    def code(encoder: Encoder, images: jax.Array) -> jax.Array:
        features = encoder.features(images)
        vectors = encoder.keys(features, train=False) if keys else measures.normalised(features)
        return jnp.concatenate([features, vectors], axis=1)

    @layout.jit
    def encode(variables, images, sizes):
        # A single recipe draws another view at another step.
        views = (*draw(jnp.int32(0), images, sizes), *draw(jnp.int32(1), images, sizes))[:2]
        codes: list[Any] = [encoder.apply(variables, view, method=code) for view in views]
        return layout.shard(jnp.concatenate(codes, axis=1))

    return encode


def make_measure(layout: Layout) -> Any:
    """Returns (features f32[N, F], vectors of two views f32[N, D]) -> measures, jitted.

    The measures are scalars by name, and the cosines of pairs; see `Measured`.
    """
    return layout.jit(lambda *parts: layout.replicate(_measures(*parts)))


def make_monitor(
    config: ConfigDict, encoder: Encoder, data: DataSet, layout: Layout, what: str
) -> Callable[[Any], Measured | None]:
    """Returns a function: variables of the encoder -> measures, None without readable images.

    Two views of `config.health.images` images are drawn as for training. Rank, spread and dead
    units are those of the backbone's features of the first view. Pairs are compared where the loss
    compares them: as keys, or as features if the pretext has no keys. The encoder is in evaluation
    mode; masks are not applied. The images and the views are the same each time. `what` names the
    images in the progress bar.
    """
    encode, measure = make_encode(config, encoder, layout), make_measure(layout)
    indices = subset(len(data), config.health.images, config.seed)
    size = min(config.batch_size, len(indices))
    extract = make_extract(data, encode, size, layout, f"health: views of {what} images")
    width = encoder.backbone.features

    def run(variables: Any) -> Measured | None:
        codes, readable = extract(variables, indices)
        codes = codes[readable]
        if len(codes) < FEWEST:
            return None
        one, other = np.split(codes, 2, axis=1)
        parts = (one[:, :width], one[:, width:], other[:, width:])
        found = measure(*layout.put(parts, layout.replicated))
        scalars, *cosines = jax.device_get(found)
        scalars = {"rank": measures.effective_rank(parts[0])} | scalars
        named = {f"health/{name}": float(value) for name, value in scalars.items()}
        return Measured(named | {"health/images": float(len(codes))}, *cosines)

    return run


def _measures(features: jax.Array, one: jax.Array, other: jax.Array) -> tuple[Any, ...]:
    positives, negatives = measures.positives(one, other), measures.negatives(one)
    scalars = {
        "spread": measures.spread(features),
        "dead_units": measures.dead_units(features),
        "key_spread": measures.spread(one),
        "alignment": measures.alignment(one, other),
        "uniformity": measures.uniformity(one),
        "positive_similarity": positives.mean(),
        "negative_similarity": negatives.mean(),
    }
    return scalars, positives, negatives
