"""What the network of a run sees: images, views and reconstructions, as parts of the page."""

import base64
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from moco_jax import config as config_lib
from moco_jax.data.sources.opening import open_whole
from moco_jax.data.view_table import columns, view_table
from moco_jax.pages.record import Record
from moco_jax.training.flat_config import unflatten

_IMAGES, _DRAWS = 6, 2


class Picture(NamedTuple):
    """An image of the page.

    Attributes:
      uri: its bytes.
      alt: what it shows, for those who can't see it.
      caption: below it.
    """

    uri: str
    alt: str
    caption: str


def pictures(records: Sequence[Record], views: bool) -> tuple[list[Picture], list[str]]:
    """Returns images of the runs, their views if asked, and lines about what can't be shown."""
    found, problems = [], []
    for record in records:
        if views and record.task == "pretrain":
            try:
                found.append(_views(record))
            except (OSError, ValueError, TypeError) as error:  # the config may be of any kind
                problems.append(f"{record.name}: its images can't be opened: {error}")
        file = record.folder / "reconstructions.png"
        if file.is_file():
            try:
                found.append(_reconstructions(record, file))
            except (OSError, ValueError, SyntaxError) as error:  # Pillow's errors
                problems.append(f"{record.name}: {file.name} can't be read: {error}")
    return found, problems


def _reconstructions(record: Record, file: pathlib.Path) -> Picture:
    with Image.open(file, formats=["PNG"]) as image:
        uri = _uri(np.asarray(image.convert("RGB")))
    alt = "Rows of images, their visible patches and their reconstructions"
    return Picture(uri, alt, f"{record.name}: {alt[0].lower()}{alt[1:]}.")


def _views(record: Record) -> Picture:
    config = unflatten(record.config, config_lib.base())
    source = open_whole(config).train
    image = view_table(config, source, _IMAGES, _DRAWS)
    names = ", ".join(columns(config))
    caption = f"{record.name}: a row is an image of {source.name}, then {_DRAWS} draws of: {names}."
    return Picture(_uri(image), f"{_IMAGES} rows: an image, then draws of its {names}", caption)


def _uri(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
