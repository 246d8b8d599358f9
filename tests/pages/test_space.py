"""The space of features: neighbours, classes, near-duplicates, and the sheets of thumbnails."""

import base64
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moco_jax import config
from moco_jax.encoders import feature_file
from moco_jax.encoders.feature_file import FeatureRows
from moco_jax.encoders.images import open_split, where
from moco_jax.pages import space as space_file
from moco_jax.pages.space import SIDE, Encoded, closest_pairs, encoded_before, explore
from moco_jax.pages.space_section import section
from moco_jax.parallel.mesh import make_layout

COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)


def encoded(classes=3, each=8, labelled=True, seed=0) -> Encoded:
    """Returns images whose features lie around one direction for each class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    directions = np.linalg.qr(random.normal(size=(64, 64)))[0][:classes]
    features = 3 * directions[labels] + 0.1 * random.normal(size=(len(labels), 64))
    thumbnails = np.broadcast_to(
        COLORS[labels % 3][:, None, None], (len(labels), SIDE, SIDE, 3)
    ).copy()
    names = [f"image {i}" for i in range(len(labels))]
    class_names = tuple(f"class {i}" for i in range(classes)) if labelled else ()
    found = labels if labelled else None
    return Encoded(
        features.astype(np.float32), thumbnails, names, found, class_names, "some images"
    )


def test_neighbours_classes_and_clusters_are_those_of_the_features():
    images = encoded()
    found = explore(images, make_layout())
    unit = images.features / np.linalg.norm(images.features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    np.testing.assert_array_equal(found.neighbours[:, 0], cosines.argmax(axis=1))
    np.testing.assert_allclose(found.cosines[:, 0], cosines.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.predicted, images.labels)
    assert len({tuple(found.clusters[images.labels == c]) for c in range(3)}) == 3
    assert all(len(set(found.clusters[images.labels == c])) == 1 for c in range(3))


def test_pca_keeps_the_distances_of_a_plane(monkeypatch):
    monkeypatch.setattr(space_file, "_umap", lambda: None)
    angles = np.linspace(0, 3, 20)
    plane = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1).astype(np.float32)
    places, method = space_file._map(plane)
    assert method == "PCA"
    distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=2)  # noqa: E731
    np.testing.assert_allclose(distances(places), distances(plane), atol=1e-5)


def test_a_folder_named_umap_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "umap").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    assert space_file._umap() is None or hasattr(space_file._umap(), "fit_transform")


def test_features_of_one_value_have_a_map():
    places, _ = space_file._map(np.ones((9, 1), np.float32))
    assert places.shape == (9, 2)


def test_the_most_similar_images_come_first_and_once():
    images = encoded()
    images.features[5] = images.features[2] * 2  # the same direction
    found = closest_pairs(explore(images, make_layout()), 4)
    assert found[0][:2] == (2, 5) and found[0][2] == pytest.approx(1, abs=1e-5)
    assert len({pair[:2] for pair in found}) == len(found) == 4
    assert [pair[2] for pair in found] == sorted((pair[2] for pair in found), reverse=True)


def opened(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_each_tile_shows_the_thumbnail_of_its_image():
    images, drawn = encoded(), {}
    shown = section(images, explore(images, make_layout()), drawn)
    assert list(drawn) == ["plot-space"]
    sheet = opened(shown["large"].uri)
    for tile in [tile for row in shown["neighbours"] for tile in row]:
        left, top = (-int(part.removesuffix("px")) for part in tile["place"].split())
        center = sheet[top + SIDE // 2, left + SIDE // 2].astype(int)
        index = int(tile["name"].split(",")[0].removeprefix("image "))
        assert np.abs(center - images.thumbnails[index][0, 0]).max() < 12
    small = shown["small"]
    side, columns = small.side, small.columns
    for index in (0, 9, 23):
        y, x = (index // columns + 0.5) * side, (index % columns + 0.5) * side
        center = opened(small.uri)[int(y), int(x)].astype(int)
        assert np.abs(center - images.thumbnails[index][0, 0]).max() < 12


def test_few_classes_have_a_table_and_many_the_best_and_worst():
    images = encoded()
    found = explore(images, make_layout())
    assert found.predicted is not None
    found.predicted[:2] = 1  # two images of class 0
    shown = section(images, found, {})
    assert shown["confusion"]["rows"][0] == ("class 0", 6, 2, 0, "75")
    assert shown["top1"] == "91.7" and "extremes" not in shown
    images = encoded(classes=30, each=4)
    found = explore(images, make_layout())
    assert found.predicted is not None
    found.predicted[:3] = 7
    shown = section(images, found, {})
    assert shown["extremes"]["rows"][-1] == ("class 0", "25", 4, "class 7")
    assert len(shown["extremes"]["rows"]) == 20 and "confusion" not in shown


def test_images_without_classes_have_clusters_alone():
    images = encoded(labelled=False)
    shown = section(images, explore(images, make_layout()), {})
    assert list(shown["data"]["groups"]) == ["cluster"] and "top1" not in shown
    assert shown["neighbours"][0][0]["name"].startswith("image ")


def test_a_few_images_have_a_map_too():
    images = encoded(classes=1, each=8)
    shown = section(images, explore(images, make_layout()), {})
    assert len(shown["neighbours"]) == 1 and len(shown["neighbours"][0]) == 7


def saved(folder, count=20, **about):
    """Writes features of images in a folder, by their names; returns the file and the folder."""
    images = folder / "images"
    (images / "a").mkdir(parents=True)
    (images / "b").mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(
            images / "ab"[i % 2] / f"{i}.png"
        )
    (source, _) = open_split(config.base(), where(images), None)
    rows = [FeatureRows(np.eye(count, 30, dtype=np.float32), np.arange(count)[::-1].copy())]
    about = {"encoder": "an encoder", "output": "backbone"} | about
    feature_file.write(folder / "features.npz", rows, source, about)
    return folder / "features.npz", images, source


def data_of(images):
    found = config.base().data
    found.update(where(images))
    return found


def test_features_meet_the_images_of_their_names(tmp_path):
    file, images, source = saved(tmp_path)
    found = encoded_before(feature_file.read(file), source, data_of(images), 12)
    assert len(found.names) == 12 and found.class_names == ("a", "b")
    for name, thumbnail, label in zip(found.names, found.thumbnails, found.labels, strict=True):
        number = int(name.split("/")[-1].removesuffix(".png"))
        assert (thumbnail == 10 * number).all() and label == number % 2


def run_report(*arguments):
    start = [sys.executable, "-m", "moco_jax.report", *arguments]
    return subprocess.run(start, capture_output=True, text=True)


def test_the_command_shows_features(tmp_path):
    file, images, _ = saved(tmp_path, images=str(tmp_path / "images"), split="train")
    done = run_report(f"--features={file}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "features.html").read_text()
    assert "Report: features.npz" in page and 'id="plot-space"' in page and "an encoder" in page
    assert 'id="verdict"' not in page
    images.rename(tmp_path / "moved")
    done = run_report(f"--features={file}")
    assert done.returncode == 2 and f"--features={file} has images={images}" in done.stderr
    done = run_report(f"--features={file}", f"--images={tmp_path / 'moved'}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "moved" / "a" / "0.png").unlink()
    done = run_report(f"--features={file}", f"--images={tmp_path / 'moved'}")
    assert done.returncode == 2 and "/moved, split=train: " in done.stderr, done.stderr
    assert "has 19 of the 20 images" in done.stderr and "a/0.png is not there" in done.stderr


def test_features_without_their_place_need_it(tmp_path):
    file, images, _ = saved(tmp_path)
    done = run_report(f"--features={file}")
    assert done.returncode == 2 and "--images must be given" in done.stderr
    done = run_report(f"--features={file}", f"--images={images}", "--most_images=5")
    assert done.returncode == 2 and "the map needs 8 images" in done.stderr
