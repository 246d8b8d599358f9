"""Labels and paths of Parquet and Arrow columns as arrays."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from moco_jax.data.sources.class_names import named_classes, sorted_classes
from moco_jax.data.sources.source import NO_LABEL
from moco_jax.data.sources.tables.rows import text_array

_CHUNK = 1 << 16


def of_column(
    column: Any, names: tuple[str, ...], where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels int32 [N], NO_LABEL for null and -1, and class names.

    Args:
      column: a pyarrow ChunkedArray of integers or texts.
      names: of the classes, by number; () if the values are the names.
      where: for messages.

    Raises:
      ValueError: if a number has no class name.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if names and pa.types.is_integer(column.type):
        numbers = column.fill_null(NO_LABEL).to_numpy().astype(np.int64)
        if len(numbers) and (numbers.max() >= len(names) or numbers.min() < NO_LABEL):
            bad = numbers[(numbers >= len(names)) | (numbers < NO_LABEL)][0]
            raise ValueError(
                f"{where}: the label {bad} has no class name; the schema names {len(names)} "
                "classes, from 0"
            )
        return named_classes(numbers, names)
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    labels = encoded.indices.fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
    values = encoded.dictionary.to_pylist()
    hidden = [i for i, value in enumerate(values) if value in (-1, "")]
    labels = np.where(np.isin(labels, hidden), NO_LABEL, labels)
    kept = [value for value in values if value not in (-1, "")]
    if hidden:  # the values after it move up
        new = np.cumsum([value not in (-1, "") for value in values]) - 1
        labels = np.where(labels == NO_LABEL, NO_LABEL, new[labels])
    return sorted_classes(labels, [str(value) for value in kept])


def paths_of(column: Any) -> np.ndarray | None:
    """Returns the paths of a pyarrow ChunkedArray of texts, None if a row has none."""
    if not len(column) or column.null_count:
        return None
    paths = text_array(_texts(column), len(column))
    return paths if (paths != "").all() else None


def _texts(column: Any) -> Iterator[str]:
    """Yields the texts, without holding all as Python objects."""
    for start in range(0, len(column), _CHUNK):
        yield from column.slice(start, _CHUNK).to_pylist()


def row_names(
    paths: np.ndarray | None, labels: np.ndarray, class_names: tuple[str, ...], name: str
) -> Callable[[np.ndarray], list[str]]:
    """Returns a function: rows int64 [M] -> the names of their images.

    A path without a folder gets the split and its class as folders, which the images may have had
    before they became a table. Without paths the rows are numbered.
    """

    classes = [*(text.replace("/", "_") for text in class_names), ""]  # the last is of NO_LABEL
    folders = ["".join(f"{part}/" for part in (name, own) if part) for own in classes]

    def of_paths(rows: np.ndarray) -> list[str]:
        assert paths is not None
        own = zip(paths[rows].tolist(), labels[rows].tolist(), strict=True)
        return [path if "/" in path else folders[label] + path for path, label in own]

    numbered = lambda rows: [f"{name}/{row}" for row in rows.tolist()]  # noqa: E731
    return numbered if paths is None else of_paths
