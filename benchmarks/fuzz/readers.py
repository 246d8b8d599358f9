"""Reads an input as a command of the package would, and returns what the command would see.

Each reader returns {part: value}: hashes of arrays, labels, names. Messages go to the log and to
the standard streams, where the worker finds them.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl.testing import flagsaver

from benchmarks.fuzz import originals
from moco_jax import config as config_lib
from moco_jax import main
from moco_jax.convert import __main__ as convert_command
from moco_jax.data.loading import loader
from moco_jax.data.sources.opening import open_named
from moco_jax.encoders import feature_file, pretrained
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import fit, pretrain
from moco_jax.pretraining import run as pretraining_run
from moco_jax.pretraining import validation as of_pretraining
from moco_jax.segmentation import validation as of_segmentation
from moco_jax.supervised import validation as of_supervised
from moco_jax.terminal import command_line
from moco_jax.training.flat_config import flatten
from moco_jax.training.outputs.metrics_log import MetricsLog

Content = dict[str, Any]
_CHECKS = {
    # As a run does before it lists its images.
    "pretrain": lambda config, devices: of_pretraining.check(fit.trial(config, devices), devices),
    "linear": of_supervised.check,
    "finetune": of_supervised.check,
    "segment": of_segmentation.check,
}


def digest(value: Any) -> str:
    """Returns a hash of an array with its dtype and shape, or of another value's text."""
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        text = f"{array.dtype} {array.shape} ".encode()
        data = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
        return hashlib.sha1(text + data).hexdigest()[:16]
    return hashlib.sha1(repr(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _tree(tree: Any) -> Content:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in flat}


@functools.cache
def _layout():
    return make_layout()


def images(folder: pathlib.Path) -> Content:
    """Opens and decodes all images, as `embed` does; the folder has one data set in it."""
    config = config_lib.base()
    config.data.canvas = 64
    (path,) = folder.iterdir()
    tfds = path.name == "data"  # the name that `originals.tfds` gives
    named = {"source": "tfds:tiny_colours" if tfds else "images"}
    alone = path.is_file() and path.suffix.lstrip(".") in (*originals.FORMATS, "jpg")
    opened = open_named(config, path=str(folder if alone else path), held_out=0.0, **named)
    for note in getattr(opened, "notes", ()):
        print(note)
    content: Content = {}
    data_config = config.data
    data_config.max_bad_fraction = 1.0
    for split, source in (("train", opened.train), ("test", opened.test)):
        if source is None:
            continue
        data = loader.load(source, data_config, _layout())
        content[f"{split} classes"] = source.class_names
        rows, sizes = (np.asarray(data.arrays[name]) for name in ("images", "sizes"))
        pixels = rows.reshape(len(rows), *data.canvas, 3)
        for row, index in enumerate(data.source_indices):
            height, width = sizes[row]
            label = None if data.labels is None else int(data.labels[row])
            name = source.names[int(index)].removeprefix(f"{folder}/")
            content[f"{split} image {name}"] = label, digest(pixels[row, :height, :width])
    return content


def features(folder: pathlib.Path) -> Content:
    """Reads a feature file, as `embed --features` does."""
    (path,) = folder.iterdir()
    found = feature_file.read(path)
    names = [str(found.names[i]) for i in range(len(found.features))]
    rows = {
        f"row {i} {name}": (digest(found.features[i]), found.class_name(i))
        for i, name in enumerate(names)
    }
    about = {"encoder": found.about["encoder"], "output": found.about["output"]}
    return rows | {"about": digest(about), "shape": digest(found.features.shape[1:])}


def _encoder(found: pretrained.Pretrained) -> Content:
    recipe = {f"recipe {key}": digest(value) for key, value in flatten(found.config).items()}
    return _tree(found.variables) | recipe


def encoder(folder: pathlib.Path) -> Content:
    """Reads an encoder's file or workdir, as `load`, `embed` and `knn` do."""
    (path,) = folder.iterdir()
    return _encoder(pretrained.read(path))


def weights(folder: pathlib.Path) -> Content:
    """Converts weights of another project to an encoder file and reads that."""
    (path,) = folder.iterdir()
    out = path.with_name("converted.safetensors")
    convert_command.convert(path, "moco_jax", out, None)
    found = pretrained.read(out)
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(found.variables))
    return _encoder(found) | {"finite": finite}


def resume(folder: pathlib.Path) -> Content:
    """Resumes a run with no steps left, as `main` does: everything but the compiled step."""
    (path,) = folder.iterdir()
    config, sources = originals.run_config(), originals.run_sources()
    with mock.patch.object(pretrain, "build", _build_once):
        state = pretrain.pretrain(config, path, sources=sources)
    return _tree(state)


@functools.cache
def _built():
    return pretraining_run.build(originals.run_config(), _layout(), originals.run_sources())


def _build_once(*_: Any) -> Any:
    """Replaces the run's `build`: an input in a fresh trace of the network would take a second."""
    return _built()


def metrics(folder: pathlib.Path) -> Content:
    """Opens the log of a run that resumes at step 12."""
    (path,) = folder.iterdir()
    log = MetricsLog(path, 12)
    with contextlib.closing(log):
        log.open()
        log.write(14, {"loss": 0.5})
    kept = _lines(path / "metrics.jsonl")
    dropped = path / "metrics.dropped.jsonl"
    lines = _lines(dropped) if dropped.exists() else []
    return {"kept": kept, "dropped": lines, "results": [repr(line) for line in log.results]}


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()


def command(arguments: list[str]) -> Content:
    """Parses and validates the command line of `main`, as far as nothing is loaded.

    Raises:
      SystemExit: with code 2 after a message.
    """
    found: Content = {}

    def work() -> None:
        config = command_line.config()
        if config.get("task") not in main.TASKS:
            raise ValueError(f"task={config.get('task')!r} is unknown")
        _CHECKS[config.task](config, 1)
        if config.task == "pretrain" and config.data.source == "digits":
            pretraining_run.build(config, _layout())  # loads the images, traces the state
        found["config"] = digest(flatten(config))

    with contextlib.ExitStack() as stack:
        stack.enter_context(flagsaver.flagsaver())
        # ml_collections executes every config file in this module; names of an earlier one stay.
        sys.modules.pop("config_config", None)
        stack.enter_context(mock.patch.object(sys, "argv", ["main", *arguments]))
        stack.enter_context(mock.patch.object(os, "_exit", sys.exit))
        run = functools.partial(_run_app)
        stack.enter_context(mock.patch.object(command_line.app, "run", run))
        command_line.run_main(work)
    return found


def _run_app(program: Callable[[Any], None], flags_parser: Callable[[list[str]], Any]) -> None:
    program(flags_parser(sys.argv))


def overrides(folder: pathlib.Path) -> Content:
    """Runs the command line in the folder's file, one argument a line."""
    return command(
        (folder / "arguments.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    )


def config_file(folder: pathlib.Path) -> Content:
    (path,) = folder.iterdir()
    argument = ":images" if b"get_config(path" in path.read_bytes() else ""
    return command([f"--config={path}{argument}"])


READERS: dict[str, Callable[[pathlib.Path], Content]] = {
    "tar": images,
    "compressed_tar": images,
    "zip": images,
    "shards": images,
    "images_npz": images,
    "image": images,
    "folder": images,
    "tfds": images,
    "image_tables": images,
    "image_lists": images,
    "features_npz": features,
    "features_parquet": features,
    "encoder": encoder,
    "safetensors": weights,
    "torch": weights,
    "checkpoint": encoder,
    "resume": resume,
    "about": encoder,
    "resume_about": resume,
    "metrics": metrics,
    "overrides": overrides,
    "config_file": config_file,
}
