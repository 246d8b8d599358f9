"""Writes a report as a page: one HTML file that opens without a network.

    python -m moco_jax.report --workdir=runs/digits
    python -m moco_jax.report --workdir=runs/a,runs/b --out=compare.html
    python -m moco_jax.report --features=features.npz --images=FOLDER

The page of a run has the verdict, the curves of training and health with what good and bad look
like, its images, and the configuration. Several workdirs are compared: their curves lie over each
other. The page of a file of features has their map, neighbours, classes and near-duplicates.
"""

import pathlib

from absl import flags

from moco_jax import config as config_lib
from moco_jax.encoders import feature_file
from moco_jax.encoders.images import open_split, where
from moco_jax.pages import space, writing
from moco_jax.pages.record import read
from moco_jax.terminal import command_line, progress
from moco_jax.training.remote.reading import fetched

_WORKDIR = flags.DEFINE_list(
    "workdir", None, "Workdirs of runs or their URLs, separated by commas."
)
_FEATURES = flags.DEFINE_string(
    "features", None, "File that `moco_jax.embed --out` wrote, in place of --workdir."
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "The images of --features: a folder, an archive, shards, an .npz, digits or tfds:<name>; "
    "default: where they were.",
)
_SPLIT = flags.DEFINE_string(
    "split", "train", "Split of the images of --features; default: the one that was encoded."
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "File to write; default report.html in the first workdir, <name>_report.html in the current "
    "folder for a workdir in a bucket, or .html beside --features.",
)
_MOST_IMAGES = flags.DEFINE_integer(
    "most_images",
    writing.IMAGES,
    "Most images on the map of the features, of the first run; 0: no map.",
    lower_bound=0,
    upper_bound=10_000,
)


def main() -> None:
    if bool(_WORKDIR.value) == bool(_FEATURES.value):
        command_line.fail("give one of --workdir, such as --workdir=runs/digits, and --features")
    for flag in ("images", "split"):
        if _WORKDIR.value and flags.FLAGS[flag].present:
            command_line.fail(f"--{flag} has no effect without --features")
    names = _WORKDIR.value or []
    if not all(names):
        command_line.fail("--workdir has an empty name between its commas")
    file = pathlib.Path(_FEATURES.value or "").expanduser()
    default = writing.place(names[0]) if names else file.with_suffix(".html")
    out = command_line.on_disk(_OUT.value) if _OUT.value else default
    if names:
        with command_line.naming(f"--workdir={','.join(names)}"):
            folders = [fetched(name) for name in names]
            read(folders)
        writing.check(out)
        writing.write(folders, out, images=_MOST_IMAGES.value)
    else:
        _write_features(file, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


def _write_features(file: pathlib.Path, out: pathlib.Path) -> None:
    from moco_jax.pages import document  # imports Bokeh

    with command_line.naming(f"--features={file}"), progress.phase(f"reading {file}"):
        features = feature_file.read(file)
    writing.check(out)
    if min(len(features.names), _MOST_IMAGES.value) < space.FEWEST:
        command_line.fail(
            f"the map needs {space.FEWEST} images; --features={file} has {len(features.names)}, "
            f"--most_images={_MOST_IMAGES.value}"
        )
    recorded = {key: str(features.about.get(key) or "") for key in ("images", "split")}
    images = _IMAGES.value or recorded["images"]
    if not images:
        command_line.fail(f"--images must be given: --features={file} does not name its images")
    given = flags.FLAGS["split"].present
    split = _SPLIT.value if given else recorded["split"] or _SPLIT.value
    source_of = f"--images={images}" if _IMAGES.value else f"--features={file} has images={images}"
    config = config_lib.base()
    with command_line.naming(f"{source_of}, {'--' if given else ''}split={split}"):
        changes = where(images)
        source, _ = open_split(config, changes, split)
        config.data.update(changes)
        encoded = space.encoded_before(features, source, config.data, _MOST_IMAGES.value)
    writing.replace(out, lambda: document.features_page(encoded, file.name))


if __name__ == "__main__":
    command_line.run_main(main, config="none")
