"""mIoU and pixel accuracy: written out, and by scikit-learn over a whole set."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from moco_jax.parallel.mesh import make_layout
from moco_jax.segmentation.scores import confusion, make_confusion, scores
from moco_jax.segmentation.streamed import SceneData
from moco_jax.segmentation.voc import open_scenes
from tests.segmentation import scenes


def test_scores_of_a_written_out_matrix():
    found = scores(np.array([[50, 10, 0], [5, 30, 5], [0, 0, 0]]))
    # Class 0: 50 / (60 + 55 - 50); class 1: 30 / (40 + 40 - 30); class 2 does not occur.
    np.testing.assert_allclose(found.ious, [100 * 50 / 65, 60.0, np.nan])
    assert found.miou == pytest.approx((100 * 50 / 65 + 60) / 2)
    assert found.accuracy == pytest.approx(80.0)


def test_a_class_that_is_never_found_counts_as_0():
    found = scores(np.array([[8, 0], [2, 0]]))
    assert found.miou == pytest.approx((80 + 0) / 2) and found.accuracy == pytest.approx(80)


def test_nothing_to_count_is_no_number():
    assert np.isnan(scores(np.zeros((3, 3), int)).miou)


def test_confusion_is_scikit_learns():
    rng = np.random.default_rng(0)
    guesses = rng.integers(0, 5, (3, 7, 8)).astype(np.int32)
    masks = rng.integers(0, 5, (3, 7, 8)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.2] = 255
    counted = np.array([True, True, False])
    found = jax.jit(lambda *a: confusion(*a, 5))(guesses, masks, counted)
    valid = (masks != 255) & counted[:, None, None]
    expected = sklearn.metrics.confusion_matrix(masks[valid], guesses[valid], labels=range(5))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_pixel_of_a_set_is_counted_once(devices, tmp_path):
    scenes.make(tmp_path, train=1, val=11)
    layout = make_layout(jax.devices()[:devices])
    found = open_scenes(str(tmp_path), "val", "SegmentationClass", scenes.CLASSES, 2)
    # A network that tells classes by one channel, often wrong; 11 images don't fill 2 batches.
    network = types.SimpleNamespace(
        classifier=types.SimpleNamespace(classes=scenes.CLASSES),
        apply=lambda variables, images, train: jax.nn.one_hot(_guess(images[..., 0]), 4),
    )
    whole = make_confusion(
        SceneData(found, 2, layout), network, lambda images, sizes: images, 8, layout
    )
    truth, guesses = [], []
    for i in range(11):
        image, mask = found.read(i)
        guess = np.asarray(_guess(image[..., 0]))
        truth.append(mask[mask != 255])
        guesses.append(guess[mask != 255])
    truth, guesses = np.concatenate(truth), np.concatenate(guesses)
    expected = sklearn.metrics.confusion_matrix(truth, guesses, labels=range(4))
    np.testing.assert_array_equal(whole({}), expected)
    iou = sklearn.metrics.jaccard_score(truth, guesses, labels=range(4), average=None)
    assert scores(expected).miou == pytest.approx(100 * iou.mean())


def _guess(red):
    return jnp.where(red > 130, 1, jnp.where(red > 55, 0, 2))
