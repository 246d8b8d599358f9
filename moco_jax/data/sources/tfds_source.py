"""Opens data sets prepared by TensorFlow Datasets (TFDS), without TensorFlow.

Only the random-access formats (array_record, parquet) can be read by index. Images are returned
encoded: TFDS needs OpenCV to decode them, and our own decoder is faster.
"""

import json
import os
import pathlib
import re
import shlex
from typing import Any

import numpy as np

from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import NumberedNames, Opened, Source
from moco_jax.text import shortened

_CHUNK = 1024  # records read at once to collect labels
RANDOM_ACCESS = frozenset({"array_record", "parquet"})
_NAME = re.compile(r"\w+(/[^/:=,]+)?(:[\d.*]+|/[\d.*]+)?")
# The features of TFDS itself. TFDS imports the module of any other class that a file names.
_FEATURES = frozenset(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "audio_feature.Audio",
        "bounding_boxes.BBoxFeature",
        "class_label_feature.ClassLabel",
        "dataset_feature.Dataset",
        "feature.Tensor",
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "labeled_image.LabeledImage",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
        "translation_feature.Translation",
        "translation_feature.TranslationVariableLanguages",
        "video_feature.Video",
    )
)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_KEYS = "--config.data.path is the folder, --config.data.source=tfds:... the name"
_MAX_JSON_BYTES = 256 << 20
_MAX_NESTING = 100


def holds_dataset(path: str, name: str) -> bool:
    """Returns whether a folder is a TFDS data directory that has the data set 'name[/config]'."""
    return os.path.isdir(os.path.join(path, name.partition(":")[0]))


def open_tfds(
    name: str, data_dir: str = "", train_split: str = "train", test_split: str = "test"
) -> Opened:
    """Returns the splits of a prepared data set.

    All labels are read in one pass, which takes about 40 us per record.

    Args:
      name: the TFDS name, such as 'cifar10' or 'imagenet_resized/64x64:0.1.0'.
      data_dir: the TFDS data directory; '' for the default (~/tensorflow_datasets).
      train_split: a split or a slice of one, such as 'train[:10%]'.
      test_split: '' for none. If 'test' is absent or has no labels, 'validation' is used.

    Raises:
      ValueError: if the name or a split is unknown, there is no image feature, or the data set is
        not prepared in a random-access format; the message has the command that prepares it.
    """
    builder = open_builder(name, data_dir)
    _check_prepared(builder, name, data_dir)
    train = _split_source(builder, name, train_split, "train_split")
    if test_split == "test":
        found = [split for split in ("test", "validation") if split in builder.info.splits]
    else:
        found = [test_split] if test_split else []
    unlabelled = []
    for split in found:
        test = _split_source(builder, name, split, "test_split")
        about = "; ".join(f"{name} has no labels" for name in unlabelled)
        if test.labels is not None:
            return Opened(train, test, train_in=train_split, test_in=split, about_test=about)
        unlabelled.append(split)
    about = "; ".join(f"{name} has no labels" for name in unlabelled)
    return Opened(train, None, train_in=train_split, about_test=about)


def how_to_prepare(name: str, data_dir: str) -> str:
    """Returns a message with the command that makes a data set readable by index."""
    data_dir = os.path.expanduser(data_dir)
    command = ["python", "-m", "moco_jax.data.prepare", f"--name={name}"]
    command += [f"--data_dir={data_dir}"] if data_dir else []
    return (
        f"Run this once:\n  {shlex.join(command)}\n"
        f"then run your command again{f' with data.path={data_dir}' if data_dir else ''}"
    )


def open_builder(name: str, data_dir: str):
    """Returns the TFDS builder of a data set, prepared or not; `open_tfds` documents the arguments.

    Raises:
      ValueError: if the name, the version or the config is unknown, or a file of the data set names
        a class that is not of TFDS.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"data.source='tfds:{name}': allowed: 'tfds:<name>', 'tfds:<name>/<config>', each also "
            "with ':<version>'"
        )
    # Imported here: the import takes a second, and no other source needs it.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    folders = file_utils.list_data_dirs(data_dir or None)
    for folder in folders:
        check_classes(folder, name)
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        listed = set(builder.info.as_proto.alternative_file_formats)
        if listed - formats(builder):
            # A builder from code loses these formats (TFDS 4.9.10); one from the files has them.
            builder = tfds.builder_from_directory(builder.data_dir)
        return builder
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"TFDS knows no data set {name!r}, and {data_dir or 'its data directory'} has none of "
            "that name; see https://www.tensorflow.org/datasets/catalog/overview for the names"
        ) from error
    except OSError:
        raise
    except Exception as error:  # an unknown version or config, damaged files, or no TensorFlow
        where = ", ".join(map(str, folders))
        what = shortened(error) or type(error).__name__
        raise ValueError(f"TFDS can't open {name!r} in {where}: {what}; {_KEYS}") from error


def check_classes(data_dir: str | os.PathLike, name: str) -> None:
    """Raises a ValueError if a file of a data set names a class that is not a feature of TFDS.

    features.json and dataset_info.json name Python classes. TFDS imports their modules, also from
    the working directory, which would run code that comes with the data.

    Raises:
      ValueError: also if a file is damaged or too large, or the folder is not on this machine.
    """
    if "://" in os.fspath(data_dir):
        raise ValueError(f"the TFDS data directory {data_dir} must be a folder of this machine")
    wanted = _squeezed(re.split("[/:]", name)[0])
    root = pathlib.Path(data_dir)
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if _squeezed(folder.name) != wanted:
            continue
        for depth in ("", "*/", "*/*/", "*/*/*/"):  # <name>/<config>/<version>
            for file in ("features.json", "dataset_info.json"):
                for path in sorted(folder.glob(depth + file)):
                    _check_json(path)


def _squeezed(name: str) -> str:
    """Returns a name as TFDS compares it: 'MyData' is 'my_data'."""
    return name.replace("_", "").lower()


def _check_json(path: pathlib.Path) -> None:
    try:
        content = json.loads(read_file(path, _MAX_JSON_BYTES))
        if path.name == "dataset_info.json":
            content = content.get("features", {})
        found = _foreign_class(content, _MAX_NESTING)
    except (ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if found:
        raise ValueError(
            f"{path} names the class {found!r}, whose module TFDS would import, and so run; "
            "allowed: the features of TFDS. If you trust the data set, convert it to a folder of "
            "image files"
        )


def _foreign_class(node: Any, levels: int) -> str:
    """Returns the first name of a class that is not a feature of TFDS, or ''.

    A feature may hold others, and their description may be JSON in a string.
    """
    if levels < 0:
        raise ValueError(f"it is nested more than {_MAX_NESTING} deep")
    if isinstance(node, str) and node.lstrip()[:1] in ("{", "["):
        try:
            node = json.loads(node)
        except ValueError:  # a text
            return ""
    if isinstance(node, list):
        return next(filter(None, (_foreign_class(item, levels - 1) for item in node)), "")
    if not isinstance(node, dict):
        return ""
    for key in _CLASS_KEYS:
        if isinstance(node.get(key), str) and node[key] not in _FEATURES:
            return node[key]
    return next(filter(None, (_foreign_class(value, levels - 1) for value in node.values())), "")


def formats(builder) -> set[str]:
    """Returns the file formats of a prepared data set, such as 'tfrecord'."""
    return {file_format.value for file_format in builder.info.available_file_formats()}


def not_prepared(builder, name: str) -> str:
    """Returns the error message for a data set that is not prepared; lists its other versions."""
    text = f"the TFDS data set {name!r} is not prepared: nothing in {builder.data_path}"
    others = sorted(path.parent.name for path in builder.data_path.parent.glob("*/features.json"))
    if not others:
        return text
    names = ", ".join(f"{name.partition(':')[0]}:{version}" for version in others)
    return f"{text} (other versions are prepared: {names})"


def _check_prepared(builder, name: str, data_dir: str) -> None:
    """Raises a ValueError with the command to run if the data set can't be read by index."""
    found = formats(builder)
    if not builder.info.splits:
        problem = not_prepared(builder, name)
    elif not found & RANDOM_ACCESS:
        problem = (
            f"the TFDS data set {name!r} in {builder.data_path} is prepared as "
            f"{', '.join(sorted(found))}, which can't be read by index"
        )
        if "tfrecord" in found:
            problem += "; it can be converted in place, without TensorFlow"
        else:
            data_dir = f"{data_dir or '~/tensorflow_datasets'}_array_record"
    else:
        return
    raise ValueError(f"{problem}. {how_to_prepare(name, data_dir)}")


def _split_source(builder, name: str, split: str, key: str) -> Source:
    """Returns a split as a source of encoded images with labels; `key` is its key of `data`."""
    import tensorflow_datasets as tfds

    image_key, label_key, skipped = _features(builder, name)
    where = f"--config.data.{key}={split} of the TFDS data set {name!r} in {builder.data_path}"
    try:
        records = builder.as_data_source(
            split=split, decoders={key: tfds.decode.SkipDecoding() for key in skipped}
        )
        length = len(records)
    except ValueError as error:
        raise ValueError(f"{where} can't be read: {shortened(error)}") from error
    if not length:
        raise ValueError(f"{where} is empty")
    labels = _labels(records, label_key, builder.data_path) if label_key else None
    names = NumberedNames(f"{name}/{split}", length)
    class_names = () if labels is None else tuple(builder.info.features[label_key].names)

    def read(index: int) -> bytes:
        try:
            return records[index][image_key]
        except Exception as error:  # the readers of TFDS raise many types on damaged files
            what = str(error) or type(error).__name__
            raise OSError(f"TFDS can't read record {index} of {split}: {what}") from error

    return Source(f"tfds:{name}, {split}", read, names, labels, class_names)


def _features(builder, name: str) -> tuple[str, str | None, list[str]]:
    """Returns the keys of the image feature, the label feature (or None), and all image features.

    If there are several of a type, 'image' and 'label' are preferred.
    """
    import tensorflow_datasets as tfds

    # The order in features.json has no meaning, so the features are sorted by name.
    found = builder.info.features
    features = dict(sorted(found.items())) if isinstance(found, tfds.features.FeaturesDict) else {}
    images = [key for key, kind in features.items() if type(kind) is tfds.features.Image]
    labels = [key for key, kind in features.items() if type(kind) is tfds.features.ClassLabel]
    if not images:
        kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        raise ValueError(
            f"the TFDS data set {name!r} in {builder.data_path} has no feature of type Image; it "
            f"has {kinds or 'none'}. {_KEYS}"
        )
    image = "image" if "image" in images else images[0]
    label = "label" if "label" in labels else next(iter(labels), None)
    return image, label, images


def _labels(records, key: str, where: object) -> np.ndarray | None:
    """Returns the labels int32 [N]; None if any is -1, which marks hidden labels in TFDS."""
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), _CHUNK):
        chunk = list(range(start, min(start + _CHUNK, len(records))))
        try:
            labels[chunk] = [record[key] for record in records.__getitems__(chunk)]
        except Exception as error:  # the readers of TFDS raise many types on damaged files
            what = str(error) or type(error).__name__
            raise ValueError(
                f"TFDS can't read the labels of records {start} to {chunk[-1]} in {where}: {what}"
            ) from error
    return None if labels.min() < 0 else labels
