"""The fast linear evaluation: encode each image once, then fit by L-BFGS to convergence."""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.augment.views import evaluation_view
from moco_jax.data.loading import loader
from moco_jax.data.sources.source import Source, Sources
from moco_jax.encoders import logistic
from moco_jax.encoders.features import labelled_features
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout
from moco_jax.supervised import results
from moco_jax.supervised.accuracy import counts
from moco_jax.supervised.kinds import KINDS
from moco_jax.supervised.start import Start
from moco_jax.supervised.step import NORM_EPSILON, encode, logits
from moco_jax.terminal import progress
from moco_jax.training import workdir
from moco_jax.training.flat_config import flatten
from moco_jax.training.outputs import ending
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.remote import copies

_SCORE_BATCH = 1024


def evaluate(
    start: Start, folder: pathlib.Path, layout: Layout, sources: Sources
) -> list[results.Row]:
    """Returns the result of a classifier for each strength `l2` on the test images.

    The features are those of the evaluation view, without augmentation. Only the numbers are saved.
    """
    config = start.config
    cluster.check_alike("config", str(flatten(config)))
    assert sources.test is not None
    clock = ending.Clock()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(workdir.opened(folder))
        extract = _extractor(start, layout)
        begun = time.perf_counter()
        (train, labels), (test, truth) = extract(sources.train), extract(sources.test)
        if config.feature_norm:
            train, test = _normalized(train, test)
        unreadable = len(sources.train) + len(sources.test) - len(train) - len(test)
        cluster.say(
            f"workdir {copies.described(folder)}\n"
            f"{len(train)} + {len(test)} features of {train.shape[1]} in "
            f"{time.perf_counter() - begun:.0f} s, {(train.nbytes + test.nbytes) >> 20} MB"
            + (f"; {unreadable} of the images can't be read" if unreadable else "")
        )
        cluster.on_first(lambda: workdir.record(folder, config, 0))
        log = MetricsLog(folder, 0, KINDS["linear"].results, config)
        stack.enter_context(contextlib.closing(log))
        log.open()
        classes = max(len(sources.train.class_names), int(truth.max()) + 1)
        limits = {"iterations": config.iterations, "tolerance": config.tolerance}
        rows = []
        for l2 in config.l2:
            most = f"at most {config.iterations} iterations"
            with progress.phase(f"fitting l2={l2:g} by L-BFGS", most):
                found = logistic.fit(train, labels, classes=classes, l2=l2, layout=layout, **limits)
                row = _row(l2, found, test, truth, classes)
            scalars = {"l2": l2, "top1": row.top1, "iterations": found.iterations}
            scalars |= {"gradient": found.gradient, "converged": float(found.converged)}
            scalars |= {} if math.isnan(row.top5) else {"top5": row.top5}
            log.write(found.iterations, {k: x for k, x in scalars.items() if math.isfinite(x)})
            cluster.say(_convergence(row, found, config.iterations))
            rows.append(row)
    log_file = ending.shown(folder / "metrics.jsonl")
    cluster.say(f"done {clock.summary()}; the results are in {log_file}")
    cluster.say(results.table(rows, len(test)))
    return rows


def make_features(start: Start, layout: Layout) -> Any:
    """Returns (variables, uint8[B, H, W, 3], sizes i32[B, 2]) -> features f32[B, F], jitted."""
    config, data = start.config, start.config.data
    dtype = jnp.dtype(config.dtype)
    view = evaluation_view(data.image_size, data.eval_resize, data.mean, data.std, dtype)

    @layout.jit
    def features(variables: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
        return layout.shard(encode(start.backbone, **variables, images=view(images, sizes)))

    return features


def _extractor(start: Start, layout: Layout) -> Callable[[Source], tuple[np.ndarray, np.ndarray]]:
    """Returns a function: source -> (features f32[N, F], labels i32[N]) of the readable images."""
    config, features = start.config, make_features(start, layout)
    variables = layout.put(start.variables, layout.replicated)

    def extract(source: Source) -> tuple[np.ndarray, np.ndarray]:
        images = loader.load(source, config.data, layout)
        text = f"encoding {source.name}"
        return labelled_features(images, features, variables, config.batch_size, layout, text)

    return extract


def _normalized(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [N, F] and [M, F] after batch norm whose batch is all of the training."""
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train, test = train - mean, test - mean
    variance = np.square(train).mean(axis=0, dtype=np.float64)
    std = np.sqrt(variance + NORM_EPSILON).astype(np.float32)
    return train / std, test / std


def _row(l2: float, found: logistic.Fit, test, truth, classes: int) -> results.Row:
    """Returns the result of a classifier on test features [M, F]."""
    head = {"kernel": found.kernel[None], "bias": found.bias[None]}
    score = jax.jit(lambda x, y: counts(logits(head, x), y, jnp.ones(len(y))))
    sums = np.zeros(3)
    for i in range(0, len(test), _SCORE_BATCH):
        sums += np.asarray(score(test[i : i + _SCORE_BATCH], truth[i : i + _SCORE_BATCH]))[:, 0]
    top1, top5 = 100 * sums[:2] / len(test)
    finite = math.isfinite(found.gradient)
    top5 = top5 if results.has_top5(classes) else math.nan
    return results.Row(f"l2={l2:g}", top1, top5, top1, math.nan, finite)


def _convergence(row: results.Row, found: logistic.Fit, most: int) -> str:
    if found.converged:
        return f"{row.name}: converged after {found.iterations} iterations"
    return (
        f"{row.name}: NOT converged after {found.iterations} of {most} iterations (gradient "
        f"{found.gradient:.2g}): raise --config.iterations or --config.l2"
    )
