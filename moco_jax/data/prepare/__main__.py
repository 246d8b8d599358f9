"""Makes data readable by index: TFDS data sets, and any images as shards.

    python -m moco_jax.data.prepare --name=cifar10
    python -m moco_jax.data.prepare --name=imagenet2012 --data_dir=/data --manual_dir=/downloads
    python -m moco_jax.data.prepare --from=/data/imagenet --to=shards --out=/data/small --side=256

With --name, TFDS downloads and prepares a data set that is absent, and one in TFRecords is
converted in place, without TensorFlow.

With --from, all images and labels are copied into shards of tar files with an index, in the order
of the source. The images keep their bytes, unless --side or --quality is given.
"""

import pathlib
import re

from absl import flags
from ml_collections import ConfigDict

from moco_jax.data.loading import loader
from moco_jax.data.prepare import shards, tfds
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources import opening
from moco_jax.data.sources.folders import CLASS_FOLDERS
from moco_jax.terminal import command_line
from moco_jax.terminal.paths import is_url

_NAME = flags.DEFINE_string("name", None, "TFDS name, such as cifar10 or voc/2012:5.0.0.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS data directory; default that of TFDS.")
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", "", "Folder of files downloaded by hand; default <data_dir>/downloads/manual."
)
_FROM = flags.DEFINE_string(
    "from",
    None,
    "Images to convert: a path as data.path has it, digits or tfds:<name>.",
)
_TO = flags.DEFINE_enum("to", None, ["shards"], "What the images of --from are converted to.")
_OUT = flags.DEFINE_string("out", None, "Folder for the shards: new, or of the same conversion.")
_SIDE = flags.DEFINE_integer(
    "side",
    None,
    "Images whose shorter side is larger are encoded again with this side, in pixels.",
    lower_bound=1,
)
_QUALITY = flags.DEFINE_integer(
    "quality",
    None,
    "JPEG quality of images that are encoded again, 90 with --side alone. Without --side, all "
    "images are encoded again at their size.",
    lower_bound=1,
    upper_bound=100,
)
_IMAGES = flags.DEFINE_integer("images_per_shard", 4096, "Images in a shard.", lower_bound=1)
_TRAIN = flags.DEFINE_string("train_split", "train", "As data.train_split.")
_TEST = flags.DEFINE_string("test_split", "test", "As data.test_split.")
_CLASS_FOLDERS = flags.DEFINE_enum(
    "class_folders", "first", list(CLASS_FOLDERS), "As data.class_folders."
)
_EXCLUDE = flags.DEFINE_string("exclude", "", "As data.exclude.")
_IMAGE_COLUMN = flags.DEFINE_string("image_column", "", "As data.image_column.")
_LABEL_COLUMN = flags.DEFINE_string("label_column", "", "As data.label_column.")
_BAD = flags.DEFINE_float(
    "max_bad_fraction",
    0.01,
    "Largest fraction of unreadable images in a split, which are left out.",
    lower_bound=0,
    upper_bound=1,
)
# Flags of the other use of the command.
_OF_NAME, _OF_FROM = ("data_dir", "manual_dir"), (
    "to", "out", "side", "quality", "images_per_shard", "train_split", "test_split",
    "class_folders", "exclude", "image_column", "label_column", "max_bad_fraction",
)  # fmt: skip
_MESSAGE = re.compile(
    r"(--config\.)?\bdata\.(path|source|\w+_split|class_folders|exclude|\w+_column)\b"
)


def convert(origin: str, out: str) -> None:
    """Converts the images of --from to --out, as the other flags say."""
    named = origin == "digits" or origin.startswith("tfds:")
    try:
        sources = opening.open_sources(
            source=origin if named else "images",
            path=_DATA_DIR.value if named else origin,
            held_out=0.0,
            seed=0,
            train_split=_TRAIN.value,
            test_split=_TEST.value,
            class_folders=_CLASS_FOLDERS.value,
            exclude=_EXCLUDE.value,
            image_column=_IMAGE_COLUMN.value,
            label_column=_LABEL_COLUMN.value,
            max_bad_fraction=_BAD.value,
        )
    except (OSError, ValueError) as error:
        text = str(error).replace(", or the path after the config file", "")
        text = _MESSAGE.sub(lambda found: f"--{_flag(found[2])}", text)
        raise (type(error) if isinstance(error, OSError) else ValueError)(text) from error
    print("\n".join(sources.notes), flush=True)
    shards.convert(
        sources,
        pathlib.Path(out).expanduser(),
        Encoding(_SIDE.value, _QUALITY.value),
        images_per_shard=_IMAGES.value,
        max_bad_fraction=_BAD.value,
        threads=loader.threads(ConfigDict({"threads": 0}), sources.train.remote),
    )


def _flag(key: str) -> str:
    return "from" if key in ("path", "source") else key


def _refuse(names: tuple[str, ...], needed: str) -> None:
    """Ends the command if a flag is given that has no effect."""
    for name in names:
        if flags.FLAGS[name].present:
            command_line.fail(f"--{name} has no effect without --{needed}")


def main() -> None:
    if _NAME.value and _FROM.value:
        command_line.fail("--name and --from can't be given together")
    if _NAME.value:
        _refuse(_OF_FROM, "from")
        tfds.prepare(_NAME.value, _DATA_DIR.value, _MANUAL_DIR.value)
    elif _FROM.value:
        _refuse(_OF_NAME if not _FROM.value.startswith("tfds:") else _OF_NAME[1:], "name")
        if not (_TO.value and _OUT.value):
            command_line.fail("--from needs --to and --out, such as --to=shards --out=/data/shards")
        if is_url(_OUT.value):
            command_line.fail(
                f"--out={_OUT.value} must be a folder on a disk; copy the tars, their .moco-index "
                "files and shards.json to the bucket afterwards"
            )
        convert(_FROM.value, _OUT.value)
    else:
        command_line.fail("--name or --from must be given, such as --name=cifar10")


if __name__ == "__main__":
    command_line.run_main(
        main, config="none", interrupted="interrupted; run the same command again to continue"
    )
