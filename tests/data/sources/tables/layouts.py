"""Writes the same images as a folder, Parquet, Arrow, a list, and a folder with metadata."""

import csv
import io
import json
import pathlib
import random
import unicodedata
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image


class Item(NamedTuple):
    """An image of a data set."""

    split: str
    label: str
    name: str
    data: bytes


def png(seed: int, side: int = 8) -> bytes:
    """Returns a small image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def items(classes=("cat", "a b", "a"), splits=("train", "test"), count=4, side=8) -> list[Item]:
    """Returns images of all splits and classes, shuffled."""
    found = [
        Item(split, label, f"{i}.png", b"")
        for split in splits
        for label in classes
        for i in range(count)
    ]
    found = [item._replace(data=png(seed, side)) for seed, item in enumerate(found)]
    random.Random(0).shuffle(found)
    return found


def schema(class_names=()) -> pa.Schema:
    """Returns the schema that `datasets` writes; without class names labels are texts."""
    features: dict = {"image": {"_type": "Image"}}
    label = pa.string()
    if class_names:
        features["label"] = {"names": list(class_names), "_type": "ClassLabel"}
        label = pa.int64()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    note = json.dumps({"info": {"features": features}})
    return pa.schema([("image", image), ("label", label)], {"huggingface": note})


def table(found: list[Item], class_names=(), paths=True) -> pa.Table:
    """Returns a table as `datasets` makes it."""
    images = [{"bytes": item.data, "path": item.name if paths else None} for item in found]
    numbers = [class_names.index(i.label) if class_names else i.label for i in found]
    return pa.table({"image": images, "label": numbers}, schema=schema(class_names))


def of_split(found: list[Item], split: str) -> list[Item]:
    return [item for item in found if item.split == split]


def splits(found: list[Item]) -> list[str]:
    return sorted({item.split for item in found})


def plain(name: str) -> str:
    """Returns a name in the Unicode form in which names of classes are compared."""
    return unicodedata.normalize("NFC", name)


def folder(root: pathlib.Path, found: list[Item]) -> pathlib.Path:
    for item in found:
        path = root / item.split / item.label / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
    return root


def parquet(root: pathlib.Path, found: list[Item], class_names=(), **options) -> pathlib.Path:
    """Writes two files of each split, in row groups of 3 images that can be read by offset."""
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 3} | options
    (root / "data").mkdir(parents=True)
    for split in splits(found):
        whole = table(of_split(found, split), class_names)
        half = len(whole) // 2
        for number, part in enumerate((whole.slice(0, half), whole.slice(half))):
            file = root / f"data/{split}-0000{number}-of-00002-0ab1.parquet"
            pyarrow.parquet.write_table(part, file, **options)
    return root


def arrow(root: pathlib.Path, found: list[Item], class_names=()) -> pathlib.Path:
    """Writes what `datasets.save_to_disk` does."""
    for split in splits(found):
        (root / split).mkdir(parents=True)
        whole = table(of_split(found, split), class_names)
        with (
            pa.OSFile(str(root / split / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, whole.schema) as writer,
        ):
            writer.write_table(whole, max_chunksize=3)
        (root / split / "state.json").write_text("{}")
        (root / split / "dataset_info.json").write_text("{}")
    (root / "dataset_dict.json").write_text(json.dumps({"splits": splits(found)}))
    return root


def csv_list(path: pathlib.Path, found: list[Item], folder_name: str) -> pathlib.Path:
    """Writes a list beside the folder of the images."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for item in found:
            place = f"{folder_name}/{item.split}/{item.label}/{item.name}"
            writer.writerow([place, item.label, item.split])
    return path


def flat_with_metadata(root: pathlib.Path, found: list[Item]) -> pathlib.Path:
    """Writes a folder without class folders, and metadata.jsonl in each split."""
    for number, split in enumerate(splits(found)):
        (root / split).mkdir(parents=True)
        rows = []
        for item in of_split(found, split):
            name = f"{item.label}-{item.name}".replace("/", "_")
            (root / split / name).write_bytes(item.data)
            rows.append({"file_name": name, "label": item.label})
        if number % 2:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / split / "metadata.jsonl").write_text(lines)
        else:
            with (root / split / "metadata.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["file_name", "label"])
                writer.writeheader()
                writer.writerows(rows)
    return root


FORMATS = {
    "parquet": lambda root, found: parquet(root / "parquet", found),
    "parquet_compressed": lambda root, found: parquet(
        root / "compressed", found, compression="snappy", use_dictionary=True
    ),
    "parquet_v2_pages": lambda root, found: parquet(
        root / "v2", found, data_page_version="2.0", data_page_size=64
    ),
    "class_label": lambda root, found: parquet(
        root / "labels", found, sorted({item.label for item in found}, key=plain)
    ),
    "arrow": lambda root, found: arrow(root / "arrow", found),
    "list": lambda root, found: csv_list(root / "list.csv", found, "folder"),
    "metadata": lambda root, found: flat_with_metadata(root / "flat", found),
}
