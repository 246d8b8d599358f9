"""The mechanisms beside MoCo's, in the step and in the loop."""

import jax
import numpy as np
import pytest

from moco_jax.pretraining import pretrain, validation
from tests.contrastive.test_train_step import agree, indices, losses, prepare, views
from tests.tiny import tiny_config, tiny_sources

END_TO_END = dict(dictionary="in_batch", key_encoder="trained")
SIMCLR = dict(dictionary="in_batch", key_encoder="shared", symmetric=True)
FOLLOWED = dict(dictionary="in_batch", key_encoder="momentum")
BANK = dict(dictionary="memory_bank", key_encoder="none", bank__negatives=128)
NCE = BANK | dict(bank__loss="nce")
MECHANISMS = {
    "end to end": END_TO_END,
    "simclr": SIMCLR,
    "in batch, momentum": FOLLOWED,
    "memory bank": BANK,
    "memory bank, nce": NCE,
}


@pytest.mark.slow  # the golden tests run the first two on 8 devices
@pytest.mark.parametrize("name", MECHANISMS)
def test_the_losses_do_not_depend_on_the_number_of_devices(name):
    changes = MECHANISMS[name]
    agree(losses(8, **changes), losses(1, **changes))


def moved(before, after) -> list[float]:
    return jax.tree.leaves(
        jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, jax.device_get(after))
    )


def test_end_to_end_trains_both_encoders_apart():
    state, step, layout = prepare(1, **END_TO_END)
    before = jax.device_get(state)
    assert before.dictionary == ()
    state, _ = step(state, *layout.put_batch((views()[0], indices(0))))
    assert all(value > 0 for value in moved(before.params, state.params))
    assert all(value > 0 for value in moved(before.key_params, state.key_params))
    # Their views differ, so do their gradients: the two were equal before.
    assert max(moved(jax.device_get(state.params), state.key_params)) > 1e-5


def test_one_encoder_for_both_views_has_one_set_of_parameters():
    state, step, layout = prepare(1, **SIMCLR)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    held = sum(x.size for x in jax.tree.leaves(state.opt_state)) - 1  # a count of steps
    assert state.key_params == {} == state.key_batch_stats and held == parameters
    before = jax.device_get(state)
    state, metrics = step(state, *layout.put_batch((views()[0], indices(0))))
    assert all(value > 0 for value in moved(before.params, state.params))
    # 126 negatives a query; a fresh network does not know much better than by chance, twice.
    assert np.log(127) < float(metrics["loss"]) < 2 * np.log(127) + 0.5


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(END_TO_END, id="end to end", marks=pytest.mark.slow),
        pytest.param(SIMCLR, id="simclr"),
        pytest.param(NCE, id="memory bank"),
    ],
)
def test_the_loop_goes_on_where_it_was(tmp_path, changes):
    def run(folder, steps):
        config = tiny_config(**changes, steps=steps, knn__every_epochs=0.0)
        if config.key_encoder == "none":
            config.views = config.views[:1]
        return pretrain.pretrain(config, folder, devices=jax.devices()[:1], sources=tiny_sources())

    run(tmp_path / "run", 2)
    resumed, whole = run(tmp_path / "run", 4), run(tmp_path / "whole", 4)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (resumed, whole)))


def test_a_queue_of_another_encoders_keys_is_refused():
    config = tiny_config(key_encoder="trained")
    with pytest.raises(ValueError, match="dictionary='queue' needs key_encoder='momentum'"):
        validation.check(config, 1)
    validation.check(tiny_config(**END_TO_END, queue_size=100), 1)  # no queue, no size to fit


def test_a_bank_has_a_slot_for_each_image(tmp_path):
    def run(images):
        config = tiny_config(**BANK, steps=1, knn__every_epochs=0.0)
        config.views = config.views[:1]
        sources = tiny_sources(images)
        return pretrain.pretrain(config, tmp_path, devices=jax.devices()[:2], sources=sources)

    features = run(100).dictionary
    assert features.shape == (128, 16)  # the next multiple of a batch of 32
    changed = "(?s)checkpoint: 100 images.*now: 101 images.*a slot for each"
    with pytest.raises(ValueError, match=changed):
        run(101)


def test_a_bank_needs_images_beside_the_batch(tmp_path):
    config = tiny_config(**BANK, steps=1, knn__every_epochs=0.0)
    config.views = config.views[:1]
    with pytest.raises(ValueError, match="32 images, as many as batch_size.*--config.batch_size="):
        pretrain.pretrain(config, tmp_path, devices=jax.devices()[:1], sources=tiny_sources(32))


def test_what_a_bank_has_no_use_for_is_refused():
    config = tiny_config(**BANK | dict(symmetric=True, bank__negatives=100, bank__loss="softmax"))
    with pytest.raises(ValueError) as error:
        validation.check(config, 8)
    message = str(error.value)
    assert "symmetric must be False" in message
    assert "bank.negatives=100 must be a multiple of the 8 devices" in message
    assert "views must be one recipe" in message
    assert "bank.loss='softmax' is unknown; allowed: info_nce, nce" in message
