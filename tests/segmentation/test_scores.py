"""Compares mIoU and pixel accuracy with numbers by hand and with scikit-learn."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from moco_jax.parallel.mesh import make_layout
from moco_jax.segmentation.scores import confusion, make_confusion, make_count, scores
from moco_jax.segmentation.streamed import SceneData
from moco_jax.segmentation.voc import open_scenes
from tests.segmentation import scenes


def test_scores_of_a_matrix_by_hand():
    found = scores(np.array([[50, 10, 0], [5, 30, 5], [0, 0, 0]]))
    # Class 0: 50 / (60 + 55 - 50); class 1: 30 / (40 + 40 - 30); class 2 does not occur.
    np.testing.assert_allclose(found.ious, [100 * 50 / 65, 60.0, np.nan])
    assert found.miou == pytest.approx((100 * 50 / 65 + 60) / 2)
    assert found.accuracy == pytest.approx(80.0)


def test_a_class_that_is_never_found_counts_as_0():
    found = scores(np.array([[8, 0], [2, 0]]))
    assert found.miou == pytest.approx((80 + 0) / 2) and found.accuracy == pytest.approx(80)


def test_scores_of_no_pixels_are_nan():
    assert np.isnan(scores(np.zeros((3, 3), int)).miou)


def test_confusion_matches_scikit_learn():
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, 5, (3, 7, 8)).astype(np.int32)
    masks = rng.integers(0, 5, (3, 7, 8)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.2] = 255
    counted = np.array([True, True, False])
    found = jax.jit(lambda *a: confusion(*a, 5))(predictions, masks, counted)
    valid = (masks != 255) & counted[:, None, None]
    expected = sklearn.metrics.confusion_matrix(masks[valid], predictions[valid], labels=range(5))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_pixel_of_a_set_is_counted_once(devices, tmp_path):
    scenes.make(tmp_path, train=1, val=11)
    layout = make_layout(jax.devices()[:devices])
    found = open_scenes(str(tmp_path), "val", "SegmentationClass", scenes.CLASSES, 2)
    # The network predicts from one channel, often wrongly; 11 images do not fill 2 batches.
    network = types.SimpleNamespace(
        classifier=types.SimpleNamespace(classes=scenes.CLASSES),
        apply=lambda variables, images, train: jax.nn.one_hot(_predict(images[..., 0]), 4),
    )
    data = SceneData(found, 2, layout)
    count = make_count(data, network, lambda images, sizes: images, 8, layout)
    count_all = make_confusion(data, count, 8, scenes.CLASSES)
    truth, predictions = [], []
    for i in range(11):
        image, mask = found.read(i)
        prediction = np.asarray(_predict(image[..., 0]))
        truth.append(mask[mask != 255])
        predictions.append(prediction[mask != 255])
    truth, predictions = np.concatenate(truth), np.concatenate(predictions)
    expected = sklearn.metrics.confusion_matrix(truth, predictions, labels=range(4))
    np.testing.assert_array_equal(count_all({}), expected)
    iou = sklearn.metrics.jaccard_score(truth, predictions, labels=range(4), average=None)
    assert scores(expected).miou == pytest.approx(100 * iou.mean())


def _predict(red):
    return jnp.where(red > 130, 1, jnp.where(red > 55, 0, 2))
