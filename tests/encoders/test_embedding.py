"""Features of a source follow the EXIF orientation of its images."""

import io

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.sources.source import Source
from moco_jax.encoders import pretrained
from moco_jax.encoders.embedding import duplicates, embed
from moco_jax.encoders.feature_file import Features
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


def test_the_most_similar_pairs_come_first():
    angles = np.radians([0, 40, 10, 90, 40, 400])  # 400 is 40
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    names = np.array(list("abcdef"))
    found = Features(rows, names, None, (), {"encoder": "e", "output": "backbone"})
    pairs = list(duplicates(found, 0.8, make_layout()))
    cosines = [cosine for cosine, *_ in pairs]
    assert cosines == sorted(cosines, reverse=True)
    assert [first + second for _, first, second in pairs[3:]] == ["ac", "bc", "ce", "cf"]
    assert {first + second for _, first, second in pairs[:3]} == {"be", "bf", "ef"}
    assert list(duplicates(found, 1.1, make_layout())) == []
    assert repr(found) == "<Features f32[6, 2] of 6 images, no classes; backbone of e>"
