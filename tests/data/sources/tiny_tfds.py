"""Small TFDS builders, copies of their data sets in TFRecords, and a runner for `prepare`.

The import of this module registers the builders.
"""

import os
import pathlib
import re
import shlex
import struct
import subprocess
import sys

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

SPLITS = {"train": [0, 1, 0, 1, 0, 1], "validation": [1, 0], "test": [-1, -1]}
SHARDS = {
    "train": [4, 2],
    "validation": [2],
    "test": [2],
}  # records per TFRecord shard
VERSION = "1.0.0"


class TinyColours(tfds.core.GeneratorBasedBuilder):
    """Images of one colour; the test labels are hidden, as in ImageNet."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # TFDS would search for it with a package that it does not install

    def _info(self):
        features = {
            "photo": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["red", "blue"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        folder = pathlib.Path(self._data_dir_root)
        for i, label in enumerate(SPLITS[split]):
            path = folder / f"{label}.jpg"
            colour = {0: (250, 0, 0), 1: (0, 0, 250), -1: (0, 0, 0)}[label]
            Image.new("RGB", (12, 8), colour).save(path)
            yield i, {"photo": str(path), "kind": label, "file_name": f"{split} {i}"}


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """A data set without images."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a"}


class TinyArrays(TinyTexts):
    """An image array, which TFDS encodes with TensorFlow."""

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(2, 2, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self):
        yield 0, {"image": np.zeros((2, 2, 3), np.uint8)}


def records(path):
    """Returns the records of an array_record file."""
    reader = ArrayRecordReader(str(path))
    found = reader.read_all()
    reader.close()
    return found


def write_tfrecords(path, found):
    """Writes records as TFRecords, with checksums of zero."""
    frames = [struct.pack("<QI", len(data), 0) + data + bytes(4) for data in found]
    path.write_bytes(b"".join(frames))


def tfrecord_copy(data_dir, copy_dir):
    """Copies a prepared tiny_colours as TFRecords with two train shards.

    Returns:
      The folder of the version in copy_dir.
    """
    source = pathlib.Path(data_dir, "tiny_colours", VERSION)
    folder = pathlib.Path(copy_dir, "tiny_colours", VERSION)
    folder.mkdir(parents=True)
    info = (source / "dataset_info.json").read_text()
    info = info.replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
    # Formatted as in the file. Only train has 6 records: test and validation have 2.
    info, count = re.subn(r'\[\s*"6"\s*\]', '[\n        "4",\n        "2"\n      ]', info)
    assert count == 1 and '"tfrecord"' in info
    (folder / "dataset_info.json").write_text(info)
    for name in ("features.json", "kind.labels.txt"):
        (folder / name).write_bytes((source / name).read_bytes())
    for split, lengths in SHARDS.items():
        left = records(source / f"tiny_colours-{split}.array_record-00000-of-00001")
        for i, length in enumerate(lengths):
            name = f"tiny_colours-{split}.tfrecord-0000{i}-of-0000{len(lengths)}"
            write_tfrecords(folder / name, left[:length])
            left = left[length:]
        assert not left
    return folder


def run_command(command, cwd):
    """Runs `python -m moco_jax.data.prepare ...` with these builders registered."""
    python, m, module, *arguments = shlex.split(command)
    assert [python, m, module] == ["python", "-m", "moco_jax.data.prepare"]
    start = (
        "import runpy, sys; import tests.data.sources.tiny_tfds; "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        cwd=cwd,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=1000,
    )
