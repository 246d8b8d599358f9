"""The section of the page about the space of features: map, list, neighbours, classes, pairs."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from moco_jax.pages import plots
from moco_jax.pages.space import SIDE, Encoded, Space, closest_pairs

_QUERIES, _NEIGHBOURS, _PAIRS = 8, 6, 8
_MOST_CLASSES = 20  # whose confusion is a table
_LISTED = 10  # best and worst classes, if there are more
_SMALL = {True: 32, False: 24}  # pixels of an image of the map: few images, or many
_MANY = 4000


class Sheet(NamedTuple):
    """Thumbnails side by side in one image.

    Attributes:
      uri: its bytes.
      side: pixels of a thumbnail.
      columns: thumbnails in a row.
    """

    uri: str
    side: int
    columns: int


def section(encoded: Encoded, space: Space, drawn: dict[str, Any]) -> dict[str, Any]:
    """Returns what the template shows; adds the map to `drawn`."""
    drawn["plot-space"] = plots.scatter(space.places)
    rows, pairs = _neighbour_rows(encoded, space), closest_pairs(space, _PAIRS)
    shown = [i for row in rows for i in row["images"]] + [i for a, b, _ in pairs for i in (a, b)]
    large = _sheet(encoded.thumbnails, shown, SIDE)
    places = {image: at for at, image in enumerate(shown)}

    def tile(image: int, text: str = "") -> dict[str, str]:
        at = places[image]
        left, top = at % large.columns * SIDE, at // large.columns * SIDE
        return {"place": f"-{left}px -{top}px", "name": _named(encoded, image), "text": text}

    few = len(encoded.names) <= _MANY
    return {
        "id": "space",
        "title": "The space of features",
        "about": encoded.about,
        "method": space.method,
        "small": _sheet(encoded.thumbnails, range(len(encoded.names)), _SMALL[few]),
        "large": large,
        "data": _data(encoded, space),
        "neighbours": [
            [tile(row["images"][0], "query")]
            + [tile(i, f"{c:.2f}") for i, c in zip(row["images"][1:], row["cosines"], strict=True)]
            for row in rows
        ],
        "pairs": [[tile(a), tile(b, f"{cosine:.3f}")] for a, b, cosine in pairs],
        **_classes(encoded, space),
    }


def _named(encoded: Encoded, image: int) -> str:
    if encoded.labels is None:
        return encoded.names[image]
    return f"{encoded.names[image]}, {encoded.class_names[encoded.labels[image]]}"


def _data(encoded: Encoded, space: Space) -> dict[str, Any]:
    """Returns what the page's script reads: names, and the groups that colour the map."""
    groups = {"cluster": {"of": space.clusters.tolist(), "names": None}}
    if encoded.labels is not None:
        by_class = {"of": encoded.labels.tolist(), "names": list(encoded.class_names)}
        groups = {"class": by_class} | groups
    return {"names": encoded.names, "groups": groups}


def _neighbour_rows(encoded: Encoded, space: Space) -> list[dict[str, Any]]:
    """Returns queries with their neighbours: one query of each class, or cluster, in turn."""
    groups = space.clusters if encoded.labels is None else encoded.labels
    first = [int(np.flatnonzero(groups == group)[0]) for group in np.unique(groups)]
    queries = first[:_QUERIES]
    return [
        {
            "images": [query, *map(int, space.neighbours[query][:_NEIGHBOURS])],
            "cosines": list(map(float, space.cosines[query][:_NEIGHBOURS])),
        }
        for query in queries
    ]


def _classes(encoded: Encoded, space: Space) -> dict[str, Any]:
    """Returns tables of the kNN classification, none without classes."""
    if encoded.labels is None or space.predicted is None:
        return {}
    names, labels = encoded.class_names, encoded.labels
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, space.predicted), 1)
    totals = counts.sum(axis=1)
    accuracy = 100 * np.diag(counts) / np.maximum(totals, 1)
    found: dict[str, Any] = {"top1": f"{100 * (labels == space.predicted).mean():.1f}"}
    if len(names) <= _MOST_CLASSES:
        found["confusion"] = {
            "columns": ["class", *names, "correct, %"],
            "rows": [
                (name, *map(int, row), f"{percent:.0f}")
                for name, row, percent in zip(names, counts, accuracy, strict=True)
            ],
        }
        return found
    order = [int(i) for i in np.argsort(-accuracy, kind="stable") if totals[i]]
    rows = [_class_row(names, counts, i) for i in (*order[:_LISTED], *order[-_LISTED:])]
    columns = ["best and worst classes", "correct, %", "images", "most often taken for"]
    return found | {"extremes": {"columns": columns, "rows": rows}}


def _class_row(names: Sequence[str], counts: np.ndarray, i: int) -> tuple[str, str, int, str]:
    others = counts[i].copy()
    others[i] = 0
    taken = names[int(others.argmax())] if others.any() else ""
    percent = 100 * counts[i, i] / counts[i].sum()
    return names[i], f"{percent:.0f}", int(counts[i].sum()), taken


def _sheet(thumbnails: np.ndarray, images: Sequence[int], side: int) -> Sheet:
    columns = max(1, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    sheet = np.zeros((rows * side, columns * side, 3), np.uint8)
    for at, image in enumerate(images):
        top, left = at // columns * side, at % columns * side
        picture = Image.fromarray(thumbnails[image])
        if side != SIDE:
            picture = picture.resize((side, side), Image.Resampling.BOX)
        sheet[top : top + side, left : left + side] = np.asarray(picture)
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "WEBP", quality=75)
    uri = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Sheet(uri, side, columns)


def stylesheet(shown: dict[str, Any]) -> Markup:
    """Returns the rules with the sheets of thumbnails.

    They are no CSS variables: Chromium drops a variable of more than 2 MB.
    """
    small, large = shown["small"], shown["large"]
    side = f"width: {small.side}px; height: {small.side}px"
    return Markup(
        f".small {{ {side}; background-image: url({small.uri}); }} "
        f".large {{ background-image: url({large.uri}); }}"
    )
