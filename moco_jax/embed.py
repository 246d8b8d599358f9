"""Encodes images; finds their nearest neighbours and near-duplicates.

    python -m moco_jax.embed --encoder=runs/cifar10 --images=FOLDER --out=features.npz
    python -m moco_jax.embed --encoder=runs/cifar10 --features=features.npz --query=a.jpg
    python -m moco_jax.embed --features=features.npz --duplicates=0.95

Images that can't be read are left out; the first ten are named. Results go to the standard output,
messages to the standard error.
"""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, decoding_of
from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import Source
from moco_jax.encoders import feature_file, pretrained
from moco_jax.encoders.embedding import duplicates, embed, neighbours
from moco_jax.encoders.feature_file import FeatureRows, Features
from moco_jax.encoders.image_encoder import ImageEncoder
from moco_jax.encoders.images import open_split
from moco_jax.models.encoder import FEATURES
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.terminal import arguments, command_line, logs, paths, progress
from moco_jax.text import printable

_ENCODER = flags.DEFINE_string(
    "encoder", None, "Workdir, checkpoint or .safetensors file, or its URL."
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "A folder, an archive, shards, an .npz, digits or tfds:<name>; default: the training split of "
    "the encoder's run, with the images that the run held out.",
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
_UNUSED = ("held_out", "test_split", "exif_orientation", "max_bad_fraction")  # keys of `data`
_FORMAT = flags.DEFINE_enum("format", "table", command_line.FORMATS, "Of the printed rows.")


def _run() -> None:
    searched = bool(_QUERY.value) or _DUPLICATES.value is not None
    _check_flags(searched)
    out = command_line.on_disk(_OUT.value) if _OUT.value else None
    if out:
        feature_file.check_writable(out, _OVERWRITE.value)
    if _IMAGES.value:
        command_line.image_changes(_IMAGES.value)  # before anything is read
    queries = [_query(path) for path in _QUERY.value]
    read = None
    if _ENCODER.value:
        with command_line.naming(f"--encoder={_ENCODER.value}"):
            read = pretrained.read(_ENCODER.value)
        _check_queries(queries, read.config)
    layout = make_layout()
    if _FEATURES.value:
        with command_line.naming(f"--features={_FEATURES.value}"):
            with progress.phase(f"reading {_FEATURES.value}"):
                found = feature_file.read(pathlib.Path(_FEATURES.value).expanduser())
    else:
        assert read is not None
        config = command_line.images_config(read.config, _IMAGES.value, _UNUSED)
        source = _open(read.config, config)
        about = {"encoder": read.source, "output": _OUTPUT.value} | _where(config)
        parts = embed(
            read,
            source,
            layout,
            data=config.data,
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
        _print_duplicates(found, _DUPLICATES.value, layout)
    else:
        assert read is not None
        _print_neighbours(read, found, queries, layout)


def _check_flags(searched: bool) -> None:
    """Raises a ValueError for flags that are missing, contradict each other or have no effect."""
    if not _ENCODER.value and (_QUERY.value or not _FEATURES.value):
        raise ValueError("--encoder must be given, such as --encoder=runs/cifar10")
    for flag in ("images", "split", "out", "output", "batch_size"):
        if _FEATURES.value and flags.FLAGS[flag].present:
            raise ValueError(
                f"--features can't be combined with --{flag}: it is read instead of encoding"
            )
    if _FEATURES.value and arguments.names_config():
        raise ValueError("--features can't be combined with --config: nothing is encoded")
    if _QUERY.value and _DUPLICATES.value is not None:
        raise ValueError("--query and --duplicates can't be combined: give one of them")
    if not searched and not _OUT.value:
        raise ValueError(
            "one of --out=features.npz, --query=a.jpg and --duplicates=0.95 must be given"
        )
    for flag, needed, given in (
        ("neighbours", "--query", _QUERY.value),
        ("overwrite", "--out", _OUT.value),
        ("format", "--query or --duplicates", searched),
    ):
        if flags.FLAGS[flag].present and not given:
            raise ValueError(f"--{flag} has no effect without {needed}")


def _query(path: str) -> bytes:
    """Returns the contents of a query's file, before hours of encoding."""
    with command_line.naming(f"--query={path}"):
        return read_file(os.path.expanduser(path))


def _check_queries(queries: Sequence[bytes], config: ConfigDict) -> None:
    """Raises a ValueError for a query that is not an image."""
    how = decoding_of(config.data)
    for path, data in zip(_QUERY.value, queries, strict=True):
        try:
            decode(data, how)
        except BadImage as error:
            raise ValueError(f"--query={path} can't be read: {error}") from error


def _open(recorded: ConfigDict, config: ConfigDict) -> Source:
    """Returns the images of one split of the config's data set, see `images_config`."""
    changes = command_line.image_changes(_IMAGES.value) if _IMAGES.value else {}
    split, differs = None, config.data.train_split != recorded.data.train_split
    with contextlib.ExitStack() as stack:
        tell = stack.enter_context(command_line.opening(_IMAGES.value))
        if flags.FLAGS["split"].present:
            split = _SPLIT.value
            stack.enter_context(command_line.naming(f"--split={split}"))
        elif differs:
            split = config.data.train_split
        source, notes = open_split(config, changes, split)
        tell(notes)
    return source


def _where(config: ConfigDict) -> dict[str, str]:
    """Returns what a later command needs to find the images: values for --images and --split."""
    images = config.data.source
    if images == "images":
        images = paths.each(os.path.abspath, config.data.path)
    given = flags.FLAGS["split"].present or _IMAGES.value
    return {"images": images, "split": _SPLIT.value if given else config.data.train_split}


def _write(out, parts, source: Source, about: dict[str, str]) -> None:
    """Writes on process 0; the other processes only encode."""
    if not cluster.is_first():
        for _ in parts:
            pass
        return
    count = feature_file.write(out, parts, source, about)
    left_out = len(source) - count
    bad = "1 image can't be read and is" if left_out == 1 else f"{left_out} can't be read and are"
    more = f"; {bad} left out" if left_out else ""
    command_line.tell([f"{out}: features of {count} images of {source.name}{more}"])


def _print_neighbours(
    read: pretrained.Pretrained, found: Features, queries: Sequence[bytes], layout: Layout
) -> None:
    encoder = ImageEncoder(read, found.about["output"], 32, exif_orientation=_EXIF.value)
    made_by = found.about["encoder"]
    if encoder.dim != found.features.shape[1]:
        raise ValueError(
            f"the features have length {found.features.shape[1]}, but features of {read.source} "
            f"have length {encoder.dim}; {made_by} made the file"
        )
    if made_by != read.source:
        logs.warning("%s made the features, but %s encodes the queries", made_by, read.source)
    count = len(found.names)
    if count < _NEIGHBOURS.value:
        command_line.tell([f"{count} neighbours (asked {_NEIGHBOURS.value}): there are no more"])
    names = list(map(printable, _QUERY.value))
    rows = neighbours(found, encoder(queries), names, _NEIGHBOURS.value, layout)
    _print(rows, ("query", "rank", "cosine", "image", "class"))


def _print_duplicates(found: Features, threshold: float, layout: Layout) -> None:
    pairs = duplicates(found, threshold, layout)
    first = list(itertools.islice(pairs, 1))
    if not first:
        what = f"no pair of {len(found.names)} images has a cosine of at least {threshold}"
        command_line.tell([what])
    _print(itertools.chain(first, pairs), ("cosine", "first", "second"))


def _print(rows, columns: Sequence[str]) -> None:
    """Prints on process 0; the other processes only search."""
    if cluster.is_first():
        command_line.print_rows(rows, columns, _FORMAT.value)
    else:
        for _ in rows:
            pass


if __name__ == "__main__":
    command_line.run_main(_run, config="recorded", join=cluster.joined)
