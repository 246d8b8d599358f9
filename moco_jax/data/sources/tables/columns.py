"""Chooses the columns of a table that have the images, their paths, labels and splits.

The `datasets` library notes the types of its columns in a schema ('huggingface'). Otherwise names
and types decide. What stays ambiguous is an error that names the key.
"""

import dataclasses
import json
from collections.abc import Collection, Sequence
from typing import Any

from moco_jax.data.sources.file_types import cut
from moco_jax.data.sources.folders import Keys

# Lower-case names of columns, the preferred one first.
IMAGES = "image img images picture photo jpg jpeg png webp bytes image_bytes content".split()
PATHS = (
    "file_name path file filename filepath file_path image_path img_path image image_file "
    "image_name img images name".split()
)
LABELS = (
    "label labels class class_name class_label label_name category target cls y fine_label "
    "class_id label_id".split()
)
SPLITS = "split set subset partition".split()


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of Parquet and Arrow files that are read."""

    image: str
    bytes_leaf: str  # the path of the bytes in a schema of Parquet: 'image' or 'image.bytes'
    path_leaf: str  # the path of the paths of images, '' for none
    label: str  # '' for none
    class_names: tuple[str, ...]  # of labels that are numbers; () if none are given


def pick(names: Sequence[str], known: Sequence[str], key: str, what: str, where: str) -> str:
    """Returns the one of several columns that has a known name; '' for no column.

    The first of the known names is chosen beside others.

    Raises:
      ValueError: if several columns are possible; the message names the key.
    """
    found = [name for name in names if name.lower() in known]
    preferred = [name for name in found if name.lower() == known[0]]
    found = preferred if len(preferred) == 1 else found
    if len(found) > 1:
        raise ValueError(
            f"{where}: several columns may be the {what}: {cut(found)}; set --config.data.{key} to "
            "one of them"
        )
    return found[0] if found else ""


def named(names: Collection[str], wanted: str, key: str, what: str, where: str) -> str:
    """Returns the column that a key names.

    Raises:
      ValueError: if there is no such column, or it can't be one.
    """
    if wanted not in names:
        raise ValueError(
            f"{where}: --config.data.{key}={wanted} must be a column with {what}; such columns: "
            f"{cut(list(names)) or 'none'}"
        )
    return wanted


def of_schema(schema: Any, keys: Keys, where: str) -> Columns:
    """Returns the columns of a pyarrow schema.

    Raises:
      ValueError: if there is no column of images, or it is not clear which one it is.
    """
    types = {field.name: field.type for field in schema}
    features = _features(schema.metadata or {})
    image = _image(types, features, keys, where)
    inner = {field.name: field.type for field in _fields(types[image])}
    texts = [name for name, kind in types.items() if _is_text(kind) and name.lower() in PATHS]
    if inner:
        path = f"{image}.path" if _is_text(inner.get("path")) else ""
    else:
        path = next((name for known in PATHS for name in texts if name.lower() == known), "")
    rest = {name: kind for name, kind in types.items() if name not in (image, path)}
    label = _label(rest, features, keys, where)
    leaf = f"{image}.bytes" if inner else image
    return Columns(image, leaf, path, label, _class_names(features.get(label)))


def _image(types: dict[str, Any], features: dict[str, Any], keys: Keys, where: str) -> str:
    possible = [name for name, kind in types.items() if _is_image(kind)]
    if keys.image_column:
        return named(possible, keys.image_column, "image_column", "bytes of images", where)
    marked = [name for name in possible if _kind(features.get(name)) == "Image"]
    for found in (marked, possible):
        if len(found) == 1:
            return found[0]
        if name := pick(found, IMAGES, "image_column", "image", where):
            return name
    if possible:
        raise ValueError(
            f"{where}: several columns may be the image: {cut(possible)}; set "
            "--config.data.image_column to one of them"
        )
    columns = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    raise ValueError(
        f"{where} has no column of images (bytes of image files, or a structure of bytes and "
        f"path); it has {columns[:300] or 'no columns'}"
    )


def _label(types: dict[str, Any], features: dict[str, Any], keys: Keys, where: str) -> str:
    possible = [name for name, kind in types.items() if _is_label(kind)]
    if keys.label_column:
        return named(possible, keys.label_column, "label_column", "numbers or texts", where)
    marked = [name for name in possible if _kind(features.get(name)) == "ClassLabel"]
    if len(marked) == 1:
        return marked[0]
    if marked and not any(name.lower() in LABELS for name in marked):
        raise ValueError(
            f"{where}: several columns may be the label: {cut(marked)}; set "
            "--config.data.label_column to one of them"
        )
    return pick(marked or possible, LABELS, "label_column", "label", where)


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Returns what `datasets` notes about columns, {} without a note that can be read."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> tuple[str, ...]:
    names = feature.get("names") if isinstance(feature, dict) else None
    names = list(names.values()) if isinstance(names, dict) else names
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and names else ()


def _is_image(kind: Any) -> bool:
    fields = {field.name: field.type for field in _fields(kind)}
    return _is_binary(kind) or ("bytes" in fields and _is_binary(fields["bytes"]))


def _fields(kind: Any) -> list[Any]:
    import pyarrow as pa

    return [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind) or pa.types.is_integer(kind)
