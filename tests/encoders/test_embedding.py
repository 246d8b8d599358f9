"""Features of a source follow the EXIF orientation of its images."""

import io

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.sources.source import Source
from moco_jax.encoders import pretrained
from moco_jax.encoders.embedding import embed
from moco_jax.parallel.mesh import make_layout
from tests.encoder_files import write_encoder
from tests.tiny import tiny_config


@pytest.mark.parametrize("megabytes", [0, 100], ids=["streamed", "resident"])
def test_images_are_upright_by_default_whatever_the_run_did(megabytes, tmp_path):
    changes = {"data__resident_megabytes": megabytes, "data__exif_orientation": False}
    write_encoder(tmp_path / "a.safetensors", tiny_config(data__canvas=16, **changes))
    encoder = pretrained.read(tmp_path / "a.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)

    def features(image, **options):
        source = Source("one", lambda index: image, ["0"], None, ())
        parts = embed(encoder, source, make_layout(), output="backbone", batch_size=8, **options)
        return np.concatenate([part.features for part in parts])

    turned = np.ascontiguousarray(np.rot90(pixels, -1))
    np.testing.assert_array_equal(features(file.getvalue()), features(turned))
    stored = features(file.getvalue(), exif_orientation=False)
    np.testing.assert_array_equal(stored, features(pixels))
    assert (stored != features(turned)).any()
