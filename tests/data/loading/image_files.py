"""Image files made with Pillow, and the pixels that its own loader returns."""

import io

import numpy as np
from PIL import Image


def smooth_image(height, width):
    """Returns a smooth random RGB image, which JPEG compresses with little loss."""
    blobs = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, image_format, **options):
    """Returns the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def pil_loader(data):
    """Returns the pixels of torchvision's default loader."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
