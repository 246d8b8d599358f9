"""Writes a data set of `data_sets` in every format, in the order in which its items come."""

import csv
import io
import json
import pathlib
import tarfile
import zipfile

from moco_jax.data.prepare import shards as conversion
from moco_jax.data.prepare.encoding import Encoding
from tests.data.sources.stores import open_images
from tests.data.sources.tables import layouts
from tests.data.sources.tables.layouts import Item

Items = list[Item]
_HEADER = ["path", "label", "split"]


def path_of(item: Item) -> str:
    return f"{item.split}/{item.label}/{item.name}"


def folder(root: pathlib.Path, items: Items) -> pathlib.Path:
    return layouts.folder(root / "folder", items)


def tar(root: pathlib.Path, items: Items, form: int = tarfile.PAX_FORMAT) -> pathlib.Path:
    file = root / "x.tar"
    with tarfile.open(file, "w", format=form, errors="surrogateescape") as archive:
        for item in items:
            member = tarfile.TarInfo(path_of(item))
            member.size = len(item.data)
            archive.addfile(member, io.BytesIO(item.data))
    return file


def gnu_tar(root: pathlib.Path, items: Items) -> pathlib.Path:
    return tar(root, items, tarfile.GNU_FORMAT)


def zip_file(root: pathlib.Path, items: Items) -> pathlib.Path:
    file = root / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for item in items:
            archive.writestr(path_of(item), item.data)
    return file


def converted(root: pathlib.Path, items: Items) -> pathlib.Path:
    """Writes what `data.prepare` makes of the folder."""
    sources = open_images(folder(root, items))
    out = root / "converted"
    conversion.convert(
        sources, out, Encoding(), images_per_shard=3, max_bad_fraction=0.0, threads=1
    )
    return out


def with_names(root: pathlib.Path, items: Items) -> pathlib.Path:
    """Writes shards with the names of classes beside the images, as for webdataset."""
    out = root / "with names"
    out.mkdir()
    order = sorted(items, key=lambda item: (item.split, layouts.plain(item.label), path_of(item)))
    for split in layouts.splits(items):
        with tarfile.open(out / f"a-{split}-0.tar", "w") as archive:
            for number, item in enumerate(layouts.of_split(order, split)):
                for ending, data in (("jpg", item.data), ("cls", item.label.encode())):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return out


def csv_list(root: pathlib.Path, items: Items) -> pathlib.Path:
    folder(root, items)
    return layouts.csv_list(root / "list.csv", items, "folder")


def tsv_list(root: pathlib.Path, items: Items) -> pathlib.Path:
    folder(root, items)
    file = root / "list.tsv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, delimiter="\t")
        writer.writerow(_HEADER)
        writer.writerows([f"folder/{path_of(item)}", item.label, item.split] for item in items)
    return file


def jsonl_list(root: pathlib.Path, items: Items, ascii_only: bool = True) -> pathlib.Path:
    folder(root, items)
    rows = [(f"folder/{path_of(item)}", item.label, item.split) for item in items]
    lines = [
        json.dumps(dict(zip(_HEADER, row, strict=True)), ensure_ascii=ascii_only) for row in rows
    ]
    file = root / "list.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def plain_jsonl_list(root: pathlib.Path, items: Items) -> pathlib.Path:
    return jsonl_list(root, items, ascii_only=False)


def metadata(root: pathlib.Path, items: Items) -> pathlib.Path:
    """Writes a folder of each split without classes, and metadata there."""
    out = root / "metadata"
    numbers = {item: number for number, item in enumerate(sorted(items, key=path_of))}
    for split in layouts.splits(items):
        (out / split).mkdir(parents=True)
        with (out / split / "metadata.jsonl").open("w") as file:
            for item in layouts.of_split(items, split):
                name = f"{numbers[item]:03} {item.name}"
                (out / split / name).write_bytes(item.data)
                print(json.dumps({"file_name": name, "label": item.label}), file=file)
    return out


FORMATS = {
    "tar": tar,
    "tar of GNU": gnu_tar,
    "zip": zip_file,
    "converted shards": converted,
    "shards with names": with_names,
    "parquet": layouts.FORMATS["parquet"],
    "compressed parquet": layouts.FORMATS["parquet_compressed"],
    "parquet with ClassLabel": layouts.FORMATS["class_label"],
    "arrow": layouts.FORMATS["arrow"],
    "csv": csv_list,
    "tsv": tsv_list,
    "jsonl": jsonl_list,
    "jsonl in UTF-8": plain_jsonl_list,
    "metadata": metadata,
}
# Those that do not keep spaces at the ends of names of classes.
WITHOUT_SPACES = ("csv", "tsv", "shards with names")
# Those that can have names which are no UTF-8.
OF_BYTES = ("tar", "tar of GNU", "converted shards")
