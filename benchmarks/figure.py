"""Draws images of digits with their two views, and the loss and kNN curves of a finished run.

Command: python -m benchmarks.figure --workdir=runs/digits --out=benchmarks/digits.png

Reads metrics.jsonl of the workdir and writes one image file. Prints nothing. Needs matplotlib.
"""

import argparse
import json
import pathlib

import jax
import matplotlib
import numpy as np

from configs import digits as experiment
from moco_jax.data.augment.views import make_view
from moco_jax.data.sources.digits import digits

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_COLUMNS = 10


def view_rows() -> np.ndarray:
    """Returns uint8[96, 32 * columns, 3]: rows of images, of query views and of key views."""
    config = experiment.get_config()
    images = digits("train")[0][:_COLUMNS]
    sizes = np.full((_COLUMNS, 2), 32, np.int32)
    rows = [images]
    for i, recipe in enumerate(config.views):
        view = make_view(recipe, 32, (0.0,) * 3, (1.0,) * 3)
        seen = jax.jit(view)(jax.random.key(i), images, sizes)
        rows.append(np.asarray(seen * 255).astype(np.uint8))
    return np.concatenate([row.transpose(1, 0, 2, 3).reshape(32, -1, 3) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    lines = [json.loads(x) for x in (options.workdir / "metrics.jsonl").read_text().splitlines()]

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 2.6), width_ratios=(1.6, 1, 1), layout="constrained"
    )
    left.imshow(view_rows())
    left.set_yticks((16, 48, 80), ("image", "query", "key"))
    left.set_xticks(())
    losses = [(x["epoch"], x["loss"]) for x in lines if "loss" in x]
    middle.plot(*zip(*losses, strict=True))
    middle.axhline(next(x["chance_loss"] for x in lines if "loss" in x), ls=":", c="grey")
    middle.set(title="loss (dotted: chance)", xlabel="epoch")
    per_epoch = next(x["step"] / x["epoch"] for x in lines if "loss" in x)
    knn = [(x["step"] / per_epoch, x["knn_top1"]) for x in lines if "knn_top1" in x]
    right.plot(*zip(*knn, strict=True), marker="o")
    right.axhline(lines[0]["knn_top1_pixels"], ls=":", c="grey")
    right.set(title="kNN top-1, % (dotted: raw pixels)", xlabel="epoch", ylim=(0, 100))
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
