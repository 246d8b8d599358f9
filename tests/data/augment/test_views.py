"""Views are deterministic and independent of padding and devices; recipes are checked."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moco_jax.data.augment import erasing, photometric, recipes, views
from moco_jax.data.augment.recipe_checks import check_recipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 16


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 24, 30, 3), dtype=np.uint8)
    sizes = np.stack([rng.integers(12, 25, 8), rng.integers(12, 31, 8)], axis=1).astype(np.int32)
    return images, sizes


@pytest.fixture(scope="module")
def second_view():
    """The view with all operations, compiled once."""
    return jax.jit(views.make_view(recipes.v3_second(), SIZE, MEAN, STD))


def test_same_key_same_views(second_view, batch):
    first = second_view(jax.random.key(0), *batch)
    assert first.shape == (8, SIZE, SIZE, 3) and first.dtype == jnp.float32
    np.testing.assert_array_equal(first, second_view(jax.random.key(0), *batch))
    other = second_view(jax.random.key(1), *batch)
    assert np.all(np.any(np.asarray(first != other), axis=(1, 2, 3)))


def test_pixels_outside_an_image_are_never_read(second_view, batch):
    images, sizes = batch
    cleared = np.zeros_like(images)
    for row, image, (height, width) in zip(cleared, images, sizes, strict=True):
        row[:height, :width] = image[:height, :width]
    key = jax.random.key(2)
    np.testing.assert_array_equal(second_view(key, cleared, sizes), second_view(key, *batch))
    central = jax.jit(views.evaluation_view(SIZE, 18, MEAN, STD))
    np.testing.assert_array_equal(central(cleared, sizes), central(images, sizes))


@pytest.fixture(scope="module")
def training_view():
    """The view with RandAugment and random erasing, compiled once."""
    return jax.jit(views.make_view(recipes.deit(), SIZE, MEAN, STD))


@pytest.fixture(scope="module")
def moved_view():
    """The view that takes the crop of another one, compiled once."""
    pair = (recipes.cmae_query(margin=4), recipes.cmae_key(shift=3))
    draw = views.make_all(pair, SIZE, MEAN, STD)
    return jax.jit(lambda *arrays: draw(*arrays)[1])


@pytest.mark.parametrize("recipe", ["second_view", "training_view", "moved_view"])
def test_sharded_views_equal_views_of_one_device(request, recipe, batch):
    second_view = request.getfixturevalue(recipe)
    if len(jax.devices()) < 2:
        pytest.skip("needs several devices, such as 8 virtual ones of a CPU")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    key = jax.device_put(jax.random.key(3), NamedSharding(mesh, PartitionSpec()))
    result = second_view(key, *spread)
    assert result.sharding.spec == PartitionSpec("data")
    np.testing.assert_array_equal(result, second_view(jax.random.key(3), *batch))
    program = second_view.lower(key, *spread).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program


def test_views_of_several_recipes_are_those_of_each_with_its_own_key(batch):
    pair, key = (recipes.v3_first(), recipes.mae()), jax.random.key(5)
    together = jax.jit(views.make_all(pair, SIZE, MEAN, STD))(key, *batch)
    for i, recipe in enumerate(pair):
        alone = jax.jit(views.make_view(recipe, SIZE, MEAN, STD))
        np.testing.assert_allclose(
            together[i], alone(jax.random.fold_in(key, i), *batch), atol=1e-6
        )


@pytest.mark.parametrize("inner", [dict, ml_collections.ConfigDict], ids=["dict", "ConfigDict"])
def test_views_of_one_crop_differ_by_the_shift(batch, inner):
    """Moved to the right and down, in the same mirroring; without a shift they are equal."""
    config, shift, key = ml_collections.ConfigDict(), 3, jax.random.key(6)
    crops = (*recipes.cmae_query(margin=4), {"op": recipes.CROP, "of_view": 0, "shift": shift})
    crops += ({"op": recipes.CROP, "of_view": 0},)
    config.views = tuple((inner(crop),) for crop in crops)
    draw = jax.jit(views.make_all(config.views, SIZE, (0,) * 3, (1 / 255,) * 3))
    first, second, third = (np.asarray(view) for view in draw(key, *batch))
    np.testing.assert_array_equal(first, third)
    places = set()
    for a, b in zip(first, second, strict=True):
        distance = {
            (y, x): np.abs(a[y:, x:] - b[: SIZE - y, : SIZE - x]).max()
            for y in range(shift + 1) for x in range(shift + 1)
        }  # fmt: skip
        place = min(distance, key=distance.get)
        assert distance[place] < 1.1  # levels
        places.add(place)
    assert len(places) > 4
    again = draw(jax.random.key(7), *batch)
    assert (np.asarray(again[0]) != first).any(axis=(1, 2, 3)).all()


def test_an_op_at_the_end_does_not_change_earlier_draws(batch):
    key = jax.random.key(4)
    plain, flipped = (
        jax.jit(views.make_view((*recipes.v2()[:1], *more), SIZE, (0,) * 3, (1,) * 3))(key, *batch)
        for more in ((), ({"op": "flip", "p": 1.0},))
    )
    # Compared as levels: two programs may divide by 255 with a different last bit.
    np.testing.assert_array_equal(np.rint(plain[:, :, ::-1] * 255), np.rint(flipped * 255))


def test_moved_images_are_filled_with_the_mean_of_pixels(batch):
    """Every pixel of a black image is black or the fill, or between them at an edge."""
    recipe = (*recipes.supervised()[:1], {"op": "rand_augment", "magnitude": 9.0, "p": 1.0})
    view = jax.jit(views.make_view(recipe, SIZE, MEAN, (1.0,) * 3))
    found = [view(jax.random.key(seed), np.zeros_like(batch[0]), batch[1]) for seed in range(8)]
    levels = np.rint((np.concatenate(found) + np.float32(MEAN)) * 255).astype(int).reshape(-1, 3)
    assert (levels == [124, 116, 104]).all(axis=1).any()


def test_erased_pixels_are_standard_normal_after_the_normalisation(batch):
    recipe = (recipes.supervised()[0], {"op": "erase", "p": 1.0})
    view = jax.jit(views.make_view(recipe, SIZE, (0.5,) * 3, (0.01,) * 3))
    key = jax.random.key(0)
    result = np.asarray(view(key, np.zeros_like(batch[0]), batch[1]))
    noise = result[result > -49]  # a black pixel is -50
    assert len(noise) > 300 and abs(noise.mean()) < 0.2 and 0.85 < noise.std() < 1.15
    places = erasing.boxes(jax.random.split(jax.random.fold_in(key, 1))[1], len(result), SIZE, 1.0)
    assert len(noise) == 3 * int((places[:, 2] * places[:, 3]).sum())


def test_views_are_normalized(batch):
    images = np.full_like(batch[0], 51)
    central = views.evaluation_view(SIZE, SIZE, (0.1, 0.2, 0.4), (0.5, 0.25, 0.1), jnp.bfloat16)
    result = jax.jit(central)(images, batch[1])
    assert result.dtype == jnp.bfloat16
    # 51 / 255 = .2
    expected = np.broadcast_to([0.2, 0.0, -2.0], result.shape)
    np.testing.assert_allclose(np.asarray(result, np.float32), expected, atol=0.01)


def test_evaluation_view_with_a_small_resize_is_an_error():
    with pytest.raises(ValueError, match="at least image_size=32, got 24"):
        views.evaluation_view(32, 24, MEAN, STD)


@pytest.mark.parametrize(
    "name",
    ["v1", "v2", "v3_first", "v3_second", "cifar", "supervised", "deit", "mae", "cmae_query"],
)
def test_recipes_of_the_papers_are_valid(name):
    assert check_recipe(getattr(recipes, name)()) == []


def test_recipes_of_masked_pretraining():
    crop = {"op": "random_resized_crop", "scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3)}
    crop["interpolation"] = "bicubic"
    assert recipes.mae() == (crop, {"op": "flip", "p": 0.5})
    assert recipes.cmae_query() == (crop | {"flip": 0.5, "margin": 32},)
    assert recipes.cmae_key()[0] == {"op": "random_resized_crop", "of_view": 0, "shift": 31}
    assert [step["op"] for step in recipes.cmae_key()[1:]] == ["color_jitter", "grayscale", "blur"]
    assert check_recipe(recipes.cmae_key(), [recipes.cmae_query()]) == []
    assert "interpolation" not in recipes.supervised()[0] | recipes.deit()[0]


def test_recipes_and_ops_have_the_same_names():
    assert set(recipes.PARAMETERS) - {recipes.CROP, recipes.ERASE} == set(photometric.OPS)


@pytest.mark.parametrize("inner", [dict, ml_collections.ConfigDict], ids=["dict", "ConfigDict"])
def test_recipes_in_a_config(batch, inner):
    config = ml_collections.ConfigDict()
    config.views = tuple(tuple(inner(step) for step in recipe) for recipe in (recipes.v2()[:1],))
    config.lock()
    view = views.make_view(config.views[0], SIZE, MEAN, STD)
    plain = views.make_view(recipes.v2()[:1], SIZE, MEAN, STD)
    key = jax.random.key(0)
    both = jax.jit(lambda key, *batch: (view(key, *batch), plain(key, *batch)))(key, *batch)
    np.testing.assert_array_equal(*both)


CROP = recipes.v2()[0]


@pytest.mark.parametrize(
    "recipe, problem",
    [
        ((), "the first op must be 'random_resized_crop', got None"),
        (({"op": "flip", "p": 0.5},), "the first op must be 'random_resized_crop', got 'flip'"),
        ((CROP, CROP), "a crop must be the first op"),
        ((CROP, {"op": "erase"}, {"op": "flip"}), "op 1 ('erase'): it changes normalised images"),
        ((CROP, {"op": "rand_augment"}), "parameter 'magnitude' is missing"),
        ((CROP, {"op": "rand_augment", "magnitude": 11}), "a number in [0, 10], got 11"),
        ((CROP, {"op": "solarise"}), "unknown op (did you mean 'solarize'?); allowed: random_"),
        ((CROP, {"p": 0.5}), "unknown op"),
        ((CROP, "flip"), "must be a mapping with a key 'op', got 'flip'"),
        ((CROP, {"op": "flip", "prob": 0.5}), "unknown parameter 'prob'"),
        ((CROP, {"op": "blur", "p": 0.5}), "parameter 'sigma' is missing"),
        ((CROP, {"op": "flip", "p": 1.5}), "p must be a number in [0, 1], got 1.5"),
        ((CROP, {"op": "flip", "p": True}), "p must be a number in [0, 1], got True"),
        ((CROP | {"scale": (0.8, 0.2)},), "scale must be (lowest, highest)"),
        ((CROP | {"scale": (0.2, 1.2)},), "both in (0, 1], got (0.2, 1.2)"),
        ((CROP | {"scale": (0.0, 1.0)},), "both in (0, 1], got (0.0, 1.0)"),
        ((CROP | {"ratio": 1.0},), "ratio must be (lowest, highest)"),
        (
            (CROP | {"interpolation": "cubic"},),
            "interpolation must be 'bilinear' or 'bicubic', got 'cubic'",
        ),
        ((CROP | {"interpolation": 3},), "interpolation must be 'bilinear' or 'bicubic', got 3"),
        ((CROP | {"flip": 2},), "flip must be a number in [0, 1], got 2"),
        ((CROP | {"margin": 0.5},), "margin must be a whole number of at least 0, got 0.5"),
        ((CROP | {"margin": -1},), "margin must be a whole number of at least 0, got -1"),
        ((CROP | {"margin": True},), "margin must be a whole number of at least 0, got True"),
        (
            (CROP | {"shift": 1},),
            "shift must be at most margin=0 of the crop that it moves in, got",
        ),
        ((CROP | {"margin": 4, "shift": 5},), "shift must be at most margin=4"),
        ((CROP | {"of_view": 0},), "parameter 'scale' is that of the crop of_view=0; leave it out"),
        (({"op": "random_resized_crop", "of_view": 0},), "allowed: none, this is the first view"),
        (({"op": "random_resized_crop", "of_vew": 0},), "did you mean 'of_view'?"),
        ("v2", "a recipe must be a sequence of mappings"),
    ],
)
def test_error_describes_the_problem_of_a_recipe(recipe, problem):
    with pytest.raises(ValueError) as error:
        views.make_view(recipe, SIZE, MEAN, STD)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "crop, problem",
    [
        ({"of_view": 2}, "allowed: 0 or 1, got 2"),
        ({"of_view": -1}, "of_view must be a whole number of at least 0, got -1"),
        ({"of_view": "0"}, "of_view must be a whole number of at least 0, got '0'"),
        ({"of_view": 1}, "of_view must be a view with a crop of its own, got 1, of_view there"),
        ({"of_view": 0, "shift": 5}, "shift must be at most margin=4"),
        ({"of_view": 0, "margin": 4}, "parameter 'margin' is that of the crop of_view=0"),
    ],
)
def test_error_describes_the_problem_of_the_crop_of_another_view(crop, problem):
    named = {"op": recipes.CROP}
    earlier = ((CROP | {"margin": 4},), (named | {"of_view": 0},))
    with pytest.raises(ValueError) as error:
        views.make_all((*earlier, (named | crop,)), SIZE, MEAN, STD)
    assert problem in str(error.value)


def test_a_wrong_view_is_reported_once():
    earlier = [({"op": recipes.CROP, "scale": 1},), "v2"]
    for number in range(2):
        assert check_recipe(({"op": recipes.CROP, "of_view": number},), earlier) == []


def test_all_problems_of_a_recipe_are_listed():
    recipe = (CROP, {"op": "flip", "p": 2}, {"op": "bluur"})
    assert len(check_recipe(recipe)) == 2
