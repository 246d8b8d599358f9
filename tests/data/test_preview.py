import io
import subprocess
import sys

import numpy as np
from PIL import Image

from moco_jax.data.augment import recipes
from moco_jax.data.sources.source import Source
from moco_jax.data.view_table import view_table
from tests.tiny import tiny_config, tiny_sources


def test_each_row_starts_with_the_original():
    config = tiny_config(data__image_size=32, data__canvas=16)
    config.views = tuple((recipe[0],) for recipe in config.views)
    grid = view_table(config, tiny_sources().train, images=2, draws=3)
    assert grid.shape == (2 * 68, 7 * 68, 3) and grid.dtype == np.uint8  # 32 enlarged to 64, and 4
    # A 10 x 12 image fills 27 of 32 rows. The rows below are white, and no view has white.
    assert (grid[2 * 27 : 64, :64] == 255).all() and not (grid[:50, :64] == 255).all(-1).any()
    assert not (grid[:64, 68 : 68 + 64] == 255).all(-1).any()
    first, second = grid[:64, 68:132], grid[:64, 136:200]
    assert (first != second).any()


def test_erased_boxes_and_moved_images_look_as_the_network_sees_them():
    """Around the mean of pixels, with their standard deviation; moved images show the mean."""
    config = tiny_config(data__image_size=64, data__canvas=16)
    config.data.mean, config.data.std = (0.8, 0.5, 0.2), (0.02, 0.02, 0.02)
    crop = {"op": "random_resized_crop", "scale": (0.5, 1.0), "ratio": (1.0, 1.0)}
    black = Source("black", lambda i: np.zeros((16, 16, 3), np.uint8), ["0"] * 32, None, ())
    for op in ({"op": "erase", "p": 1.0}, {"op": "rand_augment", "magnitude": 10.0, "p": 1.0}):
        config.views = ((crop, op), (crop,))
        grid = view_table(config, black, images=16, draws=1)
        first = grid.reshape(16, 68, 3, 68, 3)[:, :64, 1, :64].astype(float)
        found = first[np.abs(first / 255 - config.data.mean).max(axis=-1) < 0.1]
        np.testing.assert_allclose(found.mean(axis=0) / 255, config.data.mean, atol=0.01)
        assert len(found) > 500


def test_a_view_that_takes_the_crop_of_another_shows_the_same_part():
    config = tiny_config(data__image_size=64, data__canvas=16)
    config.views = (recipes.cmae_query(margin=8), recipes.cmae_key(shift=0)[:1])
    grid = view_table(config, tiny_sources().train, images=2, draws=2)
    _, first, second, *same = (grid[:, left : left + 64] for left in range(0, 5 * 68, 68))
    np.testing.assert_array_equal((first, second), same)
    assert (first != second).any()


def test_unreadable_images_are_skipped(caplog, capsys):
    source = tiny_sources(4).train
    rows = [source.read(0), b"no image", source.read(2), source.read(3)]
    broken = Source("mixed", rows.__getitem__, ["0", "1", "2", "3"], None, ())
    grid = view_table(tiny_config(data__canvas=16), broken, images=4, draws=1)
    assert len(grid) == 3 * 68
    assert "3 images (asked 4): no more can be read" in capsys.readouterr().err
    assert caplog.text.count("skipped 1 ") == 1


def test_images_are_upright_as_the_config_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (16, 8), "red").save(file, "PNG", exif=exif)
    source = Source("turned", [file.getvalue()].__getitem__, ["0"], None, ())
    for upright in (True, False):
        config = tiny_config(data__image_size=32, data__exif_orientation=upright)
        original = view_table(config, source, images=1, draws=1)[:64, :64]
        red = (original == (255, 0, 0)).all(-1)
        assert red.any(0).sum() == (32 if upright else 64)  # columns with the image


def test_dark_16_bit_images_are_warned_of(caplog):
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)).save(file, "PNG")
    source = Source("deep", lambda i: file.getvalue(), ["0", "1"], None, ())
    view_table(tiny_config(), source, images=2, draws=1)
    assert caplog.text.count("--config.data.bit_depth=12") == 1


def test_command(repository, tmp_path):
    run = lambda *more: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "moco_jax.data.preview", "--config=configs/digits.py", *more],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    done = run(f"--out={tmp_path / 'views.png'}", "--images=2", "--draws=1")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "views.png") as image:
        assert image.size == (3 * 68, 2 * 68)
    done = run(f"--out={tmp_path / 'views.jpg'}", "--images=1", "--draws=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'views.jpg'}: a row is the original, 1 query view")
    done = run(f"--out={tmp_path / 'views.jpg'}", "--images=1", "--draws=1")
    assert done.stdout.startswith(f"{tmp_path / 'views.jpg'} (replaced): a row is")
    with Image.open(tmp_path / "views.jpg") as image:
        assert image.format == "JPEG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["views.jpg", "views.png"]
    wrong = run(f"--out={tmp_path / 'v.txt'}")
    assert wrong.returncode == 2 and "v.txt must end in .png, .jpg, .jpeg" in wrong.stderr
    (tmp_path / "folder.png").mkdir()
    wrong = run(f"--out={tmp_path / 'folder.png'}")
    assert wrong.returncode == 2 and "folder.png is a folder; give a file" in wrong.stderr
    missing = run("--config.data.path=/no/such/place")
    assert missing.returncode == 2 and "no file or folder /no/such/place" in missing.stderr


def test_visible_patches_of_queries_follow_their_views():
    config = tiny_config(pretext="both", model__patch=8, data__image_size=64, data__canvas=16)
    config.update_from_flattened_dict({"mask.fraction": 0.75, "mask.block": 2})
    grid = view_table(config, tiny_sources().train, images=2, draws=1)
    _, query, masked, key = (grid[:64, left : left + 64] for left in range(0, 4 * 68, 68))
    hidden = (masked == 127).all(axis=-1)
    np.testing.assert_array_equal(masked[~hidden], query[~hidden])
    assert hidden.mean() == 0.75
    assert set(hidden.reshape(4, 16, 4, 16).mean(axis=(1, 3)).ravel()) == {0, 1}  # whole blocks
    assert not (key == 127).all(axis=-1).any()
