"""Checksums of a state: equal on host and devices, different for every change."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moco_jax.parallel.mesh import make_layout
from moco_jax.training.integrity import checksums

DTYPES = ["bool", "int8", "uint8", "int32", "uint32", "float32", "bfloat16", "float16"]
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (4, 3), (2, 3, 4, 5)]


def array(shape, dtype, seed=0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 50, shape)
    return np.asarray(values).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_devices_agree(dtype):
    state = {str(shape): array(shape, dtype) for shape in SHAPES}
    on_devices = checksums.summarize(jax.tree.map(jnp.asarray, state))
    assert on_devices == checksums.summarize_host(state)
    assert not on_devices.not_finite


def test_a_checksum_does_not_depend_on_the_sharding():
    layout = make_layout(jax.devices())
    x = array((16, 24), "float32")
    split = [PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data")]
    states = [{"x": jax.device_put(x, NamedSharding(layout.mesh, spec))} for spec in split]
    found = [checksums.summarize(state) for state in states]
    assert found == [checksums.summarize_host({"x": x})] * 3


def test_every_change_of_one_bit_changes_it():
    x = array((5,), "float32")
    whole = checksums.host_checksum(x)
    for bit in range(8 * x.nbytes):
        changed = np.frombuffer(x.tobytes(), np.uint8).copy()
        changed[bit // 8] ^= 1 << bit % 8
        assert checksums.host_checksum(changed.view(np.float32)) != whole


def test_changes_of_several_words_change_it():
    x = array((64,), "float32")
    found = {checksums.host_checksum(x), checksums.host_checksum(x[::-1])}
    for i in range(63):
        swapped, negated = x.copy(), x.copy()
        swapped[[i, i + 1]] = x[[i + 1, i]]
        negated[[i, i + 1]] *= -1  # the highest bits of two words
        found |= {checksums.host_checksum(swapped), checksums.host_checksum(negated)}
    assert len(found) == 2 + 2 * 63


def test_a_long_array_is_hashed_in_parts(monkeypatch):
    x = array((1000,), "uint8")
    whole = checksums.host_checksum(x)
    monkeypatch.setattr(checksums, "_CHUNK", 7)
    assert checksums.host_checksum(x) == whole


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_are_not_finite_are_named(bad, dtype):
    state = {"a": {"good": array((3, 4), dtype), "bad": array((3, 4), dtype)}, "n": np.int32(3)}
    state["a"]["bad"][1, 2] = bad
    on_devices = checksums.summarize(jax.tree.map(jnp.asarray, state))
    assert on_devices.not_finite == ["a/bad"] == checksums.summarize_host(state).not_finite


def test_names_are_the_same_for_a_state_and_for_nested_dicts():
    from moco_jax.contrastive.state import TrainState

    parts: dict = {
        "params": {"k": np.ones(2)},
        "batch_stats": {},
        "opt_state": ({"m": np.ones(1)},),
    }
    state = TrainState(**parts, step=jnp.int32(1), key_params={}, key_batch_stats={}, dictionary=2)
    assert {"step", "params/k", "opt_state/0/m", "dictionary"} == checksums.named(state).keys()
    assert checksums.named({"params": parts["params"]}).keys() == {"params/k"}


def test_unequal_arrays_are_listed():
    saved = {"a": ["float32", [1], 1], "b": ["float32", [1], 1], "c": ["float32", [1], 1]}
    found = {"a": ["float32", [1], 1], "b": ["float32", [2], 1], "d": ["float32", [1], 1]}
    assert checksums.unequal(saved, found) == ["b", "c", "d"]
    assert checksums.listed(["a", "b"]) == "a, b"
    assert checksums.listed("abcde") == "a, b, c and 2 more"
