"""Encodes images; finds their nearest neighbours and near-duplicates.

    python -m moco_jax.embed --encoder=runs/cifar10 --images=FOLDER --out=features.npz
    python -m moco_jax.embed --encoder=runs/cifar10 --features=features.npz --query=a.jpg
    python -m moco_jax.embed --features=features.npz --duplicates=0.95

Images that can't be read are left out; the first ten are named. Results go to the standard output,
messages to the standard error.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from moco_jax import command_line
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Source
from moco_jax.encoders import feature_file, pretrained
from moco_jax.encoders.embedding import duplicates, embed, neighbours
from moco_jax.encoders.feature_file import FeatureRows, Features
from moco_jax.encoders.image_encoder import ImageEncoder
from moco_jax.models.encoder import FEATURES
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout, make_layout

_ENCODER = flags.DEFINE_string("encoder", None, "Workdir, checkpoint or .safetensors file.")
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "A folder, a tar, an .npz, digits or tfds:<name>; default: the encoder's training images.",
)
_SPLIT = flags.DEFINE_string("split", "train", "Split of the images, if they have splits.")
_FEATURES = flags.DEFINE_string(
    "features", None, "File that --out wrote; it is read instead of encoding."
)
_OUT = flags.DEFINE_string("out", None, "File for the features: .npz or .parquet.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Overwrite --out if it exists.")
_OUTPUT = flags.DEFINE_enum(
    "output", "backbone", list(FEATURES), "Features of the backbone, or unit vectors of the head."
)
_EXIF = flags.DEFINE_bool("exif_orientation", True, "Turn images upright by their EXIF data.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images that are encoded at once.", lower_bound=1)
_QUERY = flags.DEFINE_multi_string("query", [], "Image whose neighbours are printed; repeatable.")
_NEIGHBOURS = flags.DEFINE_integer("neighbours", 10, "Neighbours of each query.", lower_bound=1)
_DUPLICATES = flags.DEFINE_float(
    "duplicates", None, "Prints all pairs with at least this cosine.", lower_bound=-1, upper_bound=1
)
_FORMAT = flags.DEFINE_enum("format", "table", command_line.FORMATS, "Of the printed rows.")


def _run() -> None:
    searched = bool(_QUERY.value) or _DUPLICATES.value is not None
    _check_flags(searched)
    out = pathlib.Path(_OUT.value).expanduser() if _OUT.value else None
    if out:
        feature_file.check_writable(out, _OVERWRITE.value)
    read = pretrained.read(_ENCODER.value) if _ENCODER.value else None
    layout = make_layout()
    if _FEATURES.value:
        found = feature_file.read(pathlib.Path(_FEATURES.value).expanduser())
    else:
        assert read is not None
        source = _open(read.config)
        about = {"encoder": read.source, "output": _OUTPUT.value}
        parts = embed(
            read,
            source,
            layout,
            output=_OUTPUT.value,
            batch_size=_BATCH.value,
            exif_orientation=_EXIF.value,
        )
        if not searched:
            return _write(out, parts, source, about)
        found, indices = feature_file.collect(parts, source, about)
        if out:
            _write(out, [FeatureRows(found.features, indices)], source, about)
    if _DUPLICATES.value is not None:
        _print(duplicates(found, _DUPLICATES.value, layout), ("cosine", "first", "second"))
    else:
        assert read is not None
        _print_neighbours(read, found, layout)


def _check_flags(searched: bool) -> None:
    """Raises a ValueError for flags that are missing or contradict each other."""
    if not _ENCODER.value and (_QUERY.value or not _FEATURES.value):
        raise ValueError("--encoder must be given, such as --encoder=runs/cifar10")
    if _FEATURES.value and (_IMAGES.value or _OUT.value):
        raise ValueError(
            "--features can't be combined with --images or --out: it is read instead of encoding"
        )
    if _QUERY.value and _DUPLICATES.value is not None:
        raise ValueError("--query and --duplicates can't be combined: give one of them")
    if not searched and not _OUT.value:
        raise ValueError(
            "one of --out=features.npz, --query=a.jpg and --duplicates=0.95 must be given"
        )


def _open(config: ConfigDict) -> Source:
    """Returns the images of the flags --images and --split."""
    changes = {"held_out": 0.0, "test_split": ""}  # all images of the split
    images = _IMAGES.value or ""
    if images == "digits" or images.startswith("tfds:"):
        changes |= {"source": images, "path": ""}
    elif images:
        changes |= {"source": "images", "path": images}
    if images or flags.FLAGS["split"].present:
        changes["train_split"] = _SPLIT.value
    sources = open_named(config, **changes)
    for note in sources.notes if cluster.is_first() else ():
        print(note, file=sys.stderr)
    return sources.train


def _write(out, parts, source: Source, about: dict[str, str]) -> None:
    """Writes on process 0; the other processes only encode."""
    if not cluster.is_first():
        for _ in parts:
            pass
        return
    count = feature_file.write(out, parts, source, about)
    left_out = len(source) - count
    more = f"; {left_out} can't be read and are left out" if left_out else ""
    print(f"{out}: features of {count} images of {source.name}{more}", file=sys.stderr)


def _print_neighbours(read: pretrained.Pretrained, found: Features, layout: Layout) -> None:
    encoder = ImageEncoder(read, found.about["output"], 32, exif_orientation=_EXIF.value)
    made_by = found.about["encoder"]
    if encoder.dim != found.features.shape[1]:
        raise ValueError(
            f"the features have length {found.features.shape[1]}, but features of {read.source} "
            f"have length {encoder.dim}; {made_by} made the file"
        )
    if made_by != read.source:
        logging.warning("%s made the features, but %s encodes the queries", made_by, read.source)
    rows = neighbours(found, encoder(_QUERY.value), _QUERY.value, _NEIGHBOURS.value, layout)
    _print(rows, ("query", "rank", "cosine", "image", "class"))


def _print(rows, columns: Sequence[str]) -> None:
    """Prints on process 0; the other processes only search."""
    if cluster.is_first():
        command_line.print_rows(rows, columns, _FORMAT.value)
    else:
        for _ in rows:
            pass


if __name__ == "__main__":
    command_line.run_main(_run, config="none", join=cluster.joined)
