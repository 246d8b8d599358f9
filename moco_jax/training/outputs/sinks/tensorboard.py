"""TensorBoard event files, in the formats of tensorboardX.

clu's writers import TensorFlow (600 MB, and it takes GPU memory). The thread of tensorboardX's
writer ends when the disk is full, and then its queue blocks the run; only its formats are used.
"""

import io
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import histogram, scalar

from moco_jax.training.outputs.appending import Appended

_BINS = 64  # of a histogram, evenly spaced


class TensorBoard:
    """Writes a new event file in `tensorboard/` of a workdir."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Writes the head of the file.

        Args:
          folder: the workdir.
          first_step: TensorBoard hides points of earlier files from this step on, which a killed
            run wrote.
        """
        self._file = Appended(folder / "tensorboard" / _event_file(), stays_open=True)
        now = time.time()
        start = SessionLog(status=SessionLog.START)
        self._file.write(
            _record(Event(wall_time=now, file_version="brain.Event:2"))
            + _record(Event(wall_time=now, step=first_step, session_log=start))
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write(step, [value for name, x in values.items() for value in scalar(name, x).value])

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        tags = [name] if len(images) == 1 else [f"{name}/{i}" for i in range(len(images))]
        found = [Summary.Value(tag=tag, image=_png(x)) for tag, x in zip(tags, images, strict=True)]
        self._write(step, found)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        self._write(step, histogram(name, np.asarray(values, np.float64), _BINS).value)

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, values) -> None:
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._file.write(_record(event))


def _event_file() -> str:
    """Returns the name of a new TensorBoard file."""
    return f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"


def _record(event: Event) -> bytes:
    """Returns an event in the format of TFRecord files."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checks[0] + data + checks[1]


def _png(image: np.ndarray):
    """Returns the summary of an image uint8[H, W, 3]."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    height, width, channels = image.shape
    return Summary.Image(
        height=height,
        width=width,
        colorspace=channels,
        encoded_image_string=content.getvalue(),
    )
