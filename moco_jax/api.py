"""What a Python program or a notebook calls: the functions of `import moco_jax`.

They print what the commands print. None of them ends the process. Ctrl-C, or the interrupt of a
notebook, saves the state and raises `moco_jax.training.loop.Interrupted`. The same call continues.
"""

import dataclasses
import html
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.encoders import embedding, feature_file, pretrained
from moco_jax.encoders.feature_file import Features
from moco_jax.encoders.image_encoder import ImageEncoder, ImageLike, load
from moco_jax.encoders.images import open_split, where
from moco_jax.pages import writing
from moco_jax.pages.record import read
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import pretrain as pretraining
from moco_jax.segmentation import segment
from moco_jax.segmentation.segment import Reached
from moco_jax.supervised import evaluate as supervised
from moco_jax.supervised.results import Row
from moco_jax.terminal import style
from moco_jax.text import printable
from moco_jax.training.remote import copies
from moco_jax.training.remote.reading import fetched
from moco_jax.training.remote.run import opened

cluster.print_text = style.say
_EVALUATIONS = {  # by the config's `task`
    "linear": supervised.evaluate,
    "finetune": supervised.evaluate,
    "segment": segment.segment,
}


def pretrain(
    config: ConfigDict,
    workdir: str | os.PathLike | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> ImageEncoder:
    """Pretrains, from the newest checkpoint in the workdir if there is one; returns the encoder.

    Args:
      config: of the run, such as `moco_jax.configs.digits.get_config()`. Its `task` is 'pretrain'.
      workdir: folder for checkpoints and metrics, or its URL in a bucket; default
        runs/<config.name>.
      devices: `jax.Device`s; default all.

    Raises:
      ValueError: for problems of the config, the images or the workdir; the message names each.
      OSError: for images that are absent or can't be read.
      moco_jax.training.loop.NotFinite: when the loss or its gradient is NaN or infinite.
      moco_jax.training.loop.Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    _check_task(config, ("pretrain",))
    with opened(_workdir(config, workdir)) as folder:
        pretraining.pretrain(config, folder, devices=devices)
        if cluster.is_first() or not copies.is_own(folder):
            return load(folder)
    return load(_workdir(config, workdir))  # process 0 has written it to the bucket


def evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> list[Row] | Reached:
    """Measures an encoder on another task: the linear protocol, fine-tuning or segmentation.

    Args:
      config: of the evaluation, such as `moco_jax.configs.digits_linear.get_config()`. Its `task`
        is 'linear', 'finetune' or 'segment', its `pretrained` the encoder.
      workdir: folder for checkpoints and metrics, or its URL in a bucket; default
        runs/<config.name>.
      devices: `jax.Device`s; default all.

    Returns:
      A row for each classifier, accuracies in percent (`moco_jax.supervised.results.Row`); for
      'segment' the mIoU in percent (`moco_jax.segmentation.segment.Reached`).

    Raises:
      ValueError: for problems of the config, the encoder, the images or the workdir; the message
        names each.
      OSError: for files that are absent or can't be read.
      moco_jax.training.loop.NotFinite: when no classifier has a finite loss any more.
      moco_jax.training.loop.Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    _check_task(config, tuple(_EVALUATIONS))
    with opened(_workdir(config, workdir)) as folder:
        return _EVALUATIONS[config.task](config, folder, devices=devices)


def embed(
    encoder: ImageEncoder | str | os.PathLike,
    images: str | os.PathLike | np.ndarray | Iterable[ImageLike],
    *,
    split: str | None = None,
    output: str | None = None,
    batch_size: int = 256,
    exif_orientation: bool = True,
) -> Features:
    """Returns the features of many images, with their names and labels.

    Args:
      encoder: what `load` or `pretrain` returned, or a path for `load`.
      images: a folder, an archive, shards, an .npz, 'digits' or 'tfds:<name>', of which images
        that can't be read are left out and logged; or what an encoder takes: an array
        uint8[N, H, W, 3], or paths, bytes of image files, PIL images and uint8 arrays, all of
        which must be readable.
      split: of a folder, file or data set; default 'train', or all of it if it has no splits.
      output: 'backbone', the pooled features, or 'head', unit vectors; default the encoder's
        output, which is 'backbone' unless `load` was given another.
      batch_size: images encoded at once.
      exif_orientation: whether images are turned upright by their EXIF orientation.

    Returns:
      `features` f32[N, F], `names` [N], `class_names`, `labels` i32[N], -1 for an image
      without a label, or None without classes.
      The names of images without a path are their numbers from 0.

    Raises:
      FileNotFoundError: if the encoder, a folder or a file does not exist.
      ValueError: if the path is no encoder, it does not have this output, or images can't be read.
    """
    read = encoder.pretrained if isinstance(encoder, ImageEncoder) else pretrained.read(encoder)
    if output is None:
        output = encoder.output if isinstance(encoder, ImageEncoder) else "backbone"
    about = {"encoder": read.source, "output": output}
    if not isinstance(images, (str, os.PathLike)):
        if split is not None:
            raise ValueError(f"split={split!r} has no effect on a list of images: leave it out")
        listed = images if hasattr(images, "shape") else _listed(images)
        encode = ImageEncoder(read, output, batch_size, exif_orientation=exif_orientation)
        features = encode(listed)
        names = [_name(image, number) for number, image in enumerate(listed)]
        return Features(features, np.array(names, str), None, (), about)
    changes = where(images)
    try:
        source, notes = open_split(read.config, changes, split)
    except (OSError, ValueError) as error:
        text = str(error).replace("--config.data.path", "images")
        text = text if split is None else f"split={split!r}: {text}"
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(text) from error
    if notes:
        cluster.say("\n".join(notes))
    parts = embedding.embed(
        read,
        source,
        make_layout(),
        output=output,
        batch_size=batch_size,
        exif_orientation=exif_orientation,
    )
    return feature_file.collect(parts, source, about)[0]


@dataclasses.dataclass(frozen=True)
class Report:
    """A page; a notebook shows it.

    Attributes:
      path: its file, which opens without a network.
    """

    path: pathlib.Path

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(), quote=True)
        style = "width: 100%; height: 800px; border: 0"
        return f'<iframe title="{self.path}" srcdoc="{page}" style="{style}"></iframe>'


def report(
    workdirs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    *,
    most_images: int = writing.IMAGES,
) -> Report:
    """Writes the report of a run, or of several runs to compare them, as one HTML file.

    Args:
      workdirs: a workdir, or several; also their URLs in buckets.
      out: the file; default report.html in the first workdir, <name>_report.html in the current
        folder for one in a bucket.
      most_images: most images on the map of the features of the first run; 0: no map.

    Returns:
      the page, which a notebook shows.

    Raises:
      ValueError: for a folder without a run, or a file that can't be a page.
      OSError: if the file can't be written.
    """
    several = [workdirs] if isinstance(workdirs, (str, os.PathLike)) else workdirs
    if not isinstance(several, Sequence) or not several or not all(several):
        raise ValueError(f"workdirs={workdirs!r}; allowed: the workdir of a run, or several")
    if most_images < 0:
        raise ValueError(f"most_images={most_images} must be 0 or more")
    folders = [fetched(folder) for folder in several]
    read(folders)
    path = pathlib.Path(out).expanduser() if out else writing.place(several[0])
    try:
        writing.check(path)
    except ValueError as error:
        raise ValueError(str(error).replace("--out=", "out=")) from None
    writing.write(folders, path, images=most_images)
    return Report(path)


def _listed(images: Any) -> Any:
    """Returns a list of an iterator, which can be read once; the encoder refuses other types."""
    return list(images) if hasattr(images, "__next__") else images


def _name(image: Any, number: int) -> str:
    is_path = isinstance(image, (str, os.PathLike))
    return printable(os.fspath(image)) if is_path else str(number)


def _workdir(config: ConfigDict, given: str | os.PathLike | None) -> str:
    return os.path.expanduser(given or f"runs/{config.name}")


def _check_task(config: ConfigDict, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError for what is no config, or the config of another task."""
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"config must be a ConfigDict, got {type(config).__name__}; such as "
            "moco_jax.configs.digits.get_config()"
        )
    if config.get("task") not in allowed:
        other = "evaluate" if config.get("task") in _EVALUATIONS else "pretrain"
        hint = f"; moco_jax.{other} takes it" if config.get("task") else ""
        raise ValueError(f"task={config.get('task')!r}; allowed: {', '.join(allowed)}{hint}")
