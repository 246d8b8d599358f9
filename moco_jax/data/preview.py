"""Draws images beside their augmented views.

    python -m moco_jax.data.preview --config=configs/digits.py --out=views.png
    python -m moco_jax.data.preview --config=configs/folder.py:/path/to/images --images=12

Each row has the original image, then draws of the query view and of the key view. If queries are
masked (pretext=masked or both), the visible patches of each are beside it.
"""

import os

from absl import flags
from PIL import Image

from moco_jax.data.augment.view_size import view_size
from moco_jax.data.loading.loader import shorter_sides
from moco_jax.data.sources.file_types import counted
from moco_jax.data.sources.opening import open_whole
from moco_jax.data.view_table import columns, view_table
from moco_jax.terminal import command_line, signals

_OUT = flags.DEFINE_string("out", "views.png", "File to write: .png or .jpg.")
_IMAGES = flags.DEFINE_integer("images", 6, "Images, selected by config.seed.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 3, "Draws of each view.", lower_bound=1)
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # by the ending of --out


def main() -> None:
    config = command_line.config("pretrain")
    out = command_line.on_disk(_OUT.value)
    if out.suffix.lower() not in _FORMATS:
        raise ValueError(f"--out={out} must end in {', '.join(_FORMATS)}")
    if out.is_dir():
        raise ValueError(f"--out={out} is a folder; give a file that ends in .png or .jpg")
    command_line.check_out(out)
    sources = open_whole(config)
    command_line.tell(sources.notes)
    if config.data.image_size is None and config.fits_data:
        size, _ = view_size(shorter_sides(sources.train, config.data), config.data.eval_resize)
        config.data.image_size = size
        command_line.tell([f"data.image_size {size}, as in training: --config.data.image_size=..."])
    image = view_table(config, sources.train, _IMAGES.value, _DRAWS.value)
    unfinished = out.with_name(f"{out.name}.unfinished")
    replaced = " (replaced)" if out.exists() else ""
    with signals.unfinished(unfinished):
        Image.fromarray(image).save(unfinished, _FORMATS[out.suffix.lower()])
        os.replace(unfinished, out)
    shown = ", ".join(counted(_DRAWS.value, name) for name in columns(config))
    print(f"{out}{replaced}: a row is the original, {shown}")


if __name__ == "__main__":
    command_line.run_main(main)
