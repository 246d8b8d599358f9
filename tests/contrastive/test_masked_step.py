"""The steps of masked pretraining give one result, however they are split."""

import functools

import jax
import numpy as np
import pytest

from tests.contrastive.test_train_step import STEPS, agree, losses, prepare
from tests.contrastive.test_v3_step import V3, VIT

MASKED = VIT | {
    "data__image_size": 16,
    "model__patch": 4,
    "decoder__dim": 16,
    "decoder__depth": 1,
    "decoder__heads": 2,
    "lr": 0.001,
}
RECIPES = {
    "masked": MASKED | {"pretext": "masked"},
    "both": V3 | MASKED | {"pretext": "both", "symmetric": False},
}


@functools.cache
def one_device(name: str) -> list[float]:
    return losses(1, steps=STEPS, **RECIPES[name])


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("devices", "changes"),
    [
        (8, {"mesh__fsdp": 4, "microbatches": 2}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # one more compilation each
            for case in [(2, {}), (4, {}), (8, {}), (1, {"remat": True})]
        ),
    ],
)
def test_the_losses_do_not_depend_on_how_the_batch_is_split(name, devices, changes):
    agree(losses(devices, steps=STEPS, **RECIPES[name] | changes), one_device(name))


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls(name):
    first, *_, last = one_device(name)
    assert np.isfinite(first) and last < first


def test_split_parameters_of_the_decoder_lie_on_several_devices():
    state, _, _ = prepare(8, **RECIPES["masked"] | {"decoder__dim": 64, "mesh__fsdp": 4})
    kernel = state.params["decoder"]["block1"]["fc1"]["kernel"]
    assert kernel.size == 4 * kernel.addressable_shards[0].data.size
    mean = state.opt_state[0].mu["decoder"]["block1"]["fc1"]["kernel"]
    assert mean.sharding == kernel.sharding
    assert not jax.tree.leaves(state.key_params)
