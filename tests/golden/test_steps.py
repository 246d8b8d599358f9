"""Compares five float64 steps of each recipe with an independent implementation in torch."""

import functools
import importlib.util
import itertools
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from moco_jax.contrastive import masks
from moco_jax.contrastive.dictionaries import memory_bank
from moco_jax.contrastive.dictionaries.memory_bank import NCEEntries
from moco_jax.contrastive.state import TrainState
from moco_jax.models import resnet
from moco_jax.parallel import platforms
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.method import Method, make_method
from tests.golden.configs import CONFIGS
from tests.golden.names import to_flax

HERE = pathlib.Path(__file__).parent
RTOL = 1e-11  # of an array's largest value
RTOLS = {"v3_resnet": 1e-10}  # where many batch norms of small groups amplify rounding errors
SMALLEST = 1e-4  # of these values; some gradients are 0, and their rounding errors differ
STEPS, IMAGES = 5, 80  # as in generate.py; 80 images are 1 step of 64 or 2 of 32 an epoch

MASKED = ("mae", "both", "both_symmetric")
FAST_PARTS = [("v3_vit", 2, 4), ("mae", 2, 4), ("both", 4, 2)]  # one compilation each

Tree = dict


@pytest.fixture(autouse=True)
def small_resnet50(monkeypatch):
    """Makes resnet50 the network in networks_v3.py."""
    small = resnet.NETWORKS["resnet50"] | {"stage_sizes": (2, 1, 1)}
    monkeypatch.setitem(resnet.NETWORKS, "resnet50", small)


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"{name}.npz") as arrays:
        return dict(arrays)


def part(name: str, prefix: str) -> tuple[Tree, Tree]:
    """Returns (params, batch_stats) from the arrays whose names start with `prefix`."""
    arrays = {k.removeprefix(prefix): v for k, v in golden(name).items() if k.startswith(prefix)}
    return to_flax({k: v for k, v in arrays.items() if k != "queue"})


def norms_of_arrays(name: str, encoder: str) -> tuple[Tree, Tree]:
    """Returns (params, batch_stats) of an encoder with each array replaced by its norms f64[STEPS].

    The file has the norms after each step in the order of the final arrays.
    """
    prefix = f"{encoder}/"
    arrays = {k.removeprefix(prefix): v for k, v in golden(name).items() if k.startswith(prefix)}
    pairs = zip(arrays.items(), golden(name)[f"norms/{encoder}"].T, strict=True)
    like = {k: c.reshape(-1, *[1] * (v.ndim - 1)) for (k, v), c in pairs}
    return jax.tree.map(np.ravel, to_flax(like))


def entries(queue: np.ndarray | None, config: ConfigDict, z: Any = 0.0) -> Any:
    """Returns torch's queue [K, D] or bank as our dictionary's state; () without a dictionary.

    A queue becomes the ring [K // N, N, D]. A symmetric step adds the keys of both views: torch
    stores one view after the other, the ring stores the keys of an image side by side. Only this
    function depends on their order.
    """
    if queue is None or config.dictionary == "in_batch":
        return ()
    if config.dictionary == "memory_bank":
        return _slots(queue, config, z)
    views, dim = 2 if config.symmetric else 1, queue.shape[-1]
    queue = queue.reshape(-1, views, config.batch_size, dim)
    return queue.swapaxes(1, 2).reshape(len(queue), -1, dim).astype(np.float64)


def _slots(bank: np.ndarray, config: ConfigDict, z: Any) -> np.ndarray | NCEEntries:
    """Returns torch's bank [N, D] padded to a multiple of the batch; with NCE also its Z."""
    rows = -(-len(bank) // config.batch_size) * config.batch_size
    features = np.concatenate([bank, np.ones((rows - len(bank), bank.shape[1]))])
    return features if config.bank.loss == "info_nce" else NCEEntries(features, np.float64(z))


def five_steps(name: str, devices: int, microbatches: int = 1) -> dict[str, Any]:
    """Returns the state and metrics after five steps, with the keys of `expected`."""
    config = CONFIGS[name]()
    config.microbatches = microbatches
    layout = make_layout(jax.devices()[:devices])
    method = make_method(config, layout, IMAGES)
    params, batch_stats = part(name, "start/")
    key_encoder = method.key_encoder
    key_params = key_encoder.init_key_params(params)
    state = TrainState(
        step=np.zeros((), np.int32),
        params=params,
        batch_stats=batch_stats,
        key_params=key_params,
        key_batch_stats=key_encoder.init_key_params(batch_stats),
        opt_state=method.optimizer.init(key_encoder.trainable(params, key_params)),
        dictionary=entries(golden(name).get("start/queue"), config),
    )
    state = jax.device_put(state, method.state_shardings(state))
    step = jax.jit(
        method.train_step(),
        compiler_options={"xla_backend_optimization_level": 0},  # compilation dominates the time
    )

    metrics, norms = [], []
    no_indices = np.zeros((STEPS, config.batch_size), np.int64)  # only a bank reads them
    batches = [v for k, v in golden(name).items() if k.startswith("views/")]
    for *views, indices in zip(*batches, golden(name).get("indices", no_indices), strict=True):
        views = tuple(v.astype(np.float64) for v in views)
        state, seen = step(state, *layout.put_batch((views, indices.astype(np.int32))))
        metrics.append(seen)
        norms.append(jax.tree.map(np.linalg.norm, encoders(state)) if has_norms(name) else ())
    trees = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "key_params": state.key_params,
        "key_batch_stats": state.key_batch_stats,
        "buffer": buffers(state.opt_state, config),
        "queue": {"ring": state.dictionary},
        "metrics": {k: jnp.stack([m[k] for m in metrics]) for k in measured(name)},
        "schedules": schedules(name, method),
        "norms": jax.tree.map(lambda *steps: np.stack(steps), *norms),
    }
    return jax.device_get(trees)


def has_norms(name: str) -> bool:
    return "norms/query" in golden(name)


def measured(name: str) -> list[str]:
    """Returns the names of the metrics in a file."""
    metrics = ("loss", "contrastive_loss", "masked_loss", "grad_norm")
    return [k for k in metrics if k in golden(name)]


def encoders(state: TrainState) -> Any:
    return (state.params, state.batch_stats), (state.key_params, state.key_batch_stats)


def schedules(name: str, method: Method) -> Tree:
    """Returns the values of each step, f64[STEPS], of the schedules in a file."""
    functions = {"lr": method.schedule, "momentum": method.momentum}
    return {
        k: np.array([float(f(i)) for i in range(STEPS)])
        for k, f in functions.items()
        if k in golden(name)
    }


def buffers(opt_state: Any, config: ConfigDict) -> Any:
    """Returns the optimizer's averages of the gradients of the trained parameters."""
    if config.optimizer != "adamw":
        return optax.tree.get(opt_state, "trace")
    both = [dict(optax.tree.get(opt_state, k)) for k in ("mu", "nu")]
    for moments in both if config.model.freeze_patch else ():
        moments["backbone"] = {k: v for k, v in moments["backbone"].items() if k != "patch_embed"}
    return both


def expected(name: str) -> dict[str, Any]:
    """Returns torch's state and metrics after five steps."""
    arrays = golden(name)
    params, batch_stats = part(name, "query/")
    key_params, key_batch_stats = part(name, "key/")
    config, buffer = CONFIGS[name](), part(name, "buffer/")[0]
    if config.optimizer == "adamw":
        buffer = [part(name, f"{k}/")[0] for k in ("exp_avg", "exp_avg_sq")]
    if config.key_encoder == "trained":
        buffer = buffer, part(name, "key_buffer/")[0]
    if config.key_encoder in ("shared", "none"):
        key_params = key_batch_stats = {}
    return {
        "params": params,
        "batch_stats": batch_stats,
        "key_params": key_params,
        "key_batch_stats": key_batch_stats,
        "buffer": buffer,
        "queue": {"ring": entries(arrays.get("queue"), config, arrays.get("z", 0.0))},
        "metrics": {k: arrays[k] for k in measured(name)},
        "schedules": {k: arrays[k] for k in ("lr", "momentum") if k in arrays},
        "norms": tuple(norms_of_arrays(name, e) for e in ("query", "key"))
        if has_norms(name)
        else (),
    }


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest value."""
    assert got.dtype == want.dtype == np.float64 and got.shape == want.shape
    return float(np.abs(got - want).max() / max(np.abs(want).max(), SMALLEST))


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("v1", 8),
        ("v2", 8),
        ("cifar_symmetric", 8),
        ("end_to_end", 8),
        ("simclr", 8),
        ("bank", 8),
        ("bank_nce", 8),
        ("v3_resnet", 8),
        ("v3_vit", 8),
        ("mae", 8),
        ("both", 8),
        ("both_symmetric", 8),
        ("v2", 1),
        *(
            pytest.param(name, devices, marks=pytest.mark.slow)  # one more compilation each
            for name, devices in [
                ("v1", 1),
                ("cifar_symmetric", 1),
                *itertools.product(("v3_resnet", "v3_vit", *MASKED), (1, 2, 4)),
            ]
        ),
    ],
)
def test_five_steps_match_torch(name, devices, monkeypatch):
    assert_steps_match(name, devices, monkeypatch)


@pytest.mark.parametrize(
    ("name", "devices", "microbatches"),
    [
        pytest.param(*case, marks=() if case in FAST_PARTS else pytest.mark.slow)
        for case in [
            *itertools.product(("v3_vit", "mae"), (1, 2, 4, 8), (2, 4)),
            *itertools.product(("both",), (1, 2, 4, 8), (2,)),
        ]
    ],
)
def test_five_steps_with_micro_batches_match_torch(name, devices, microbatches, monkeypatch):
    assert_steps_match(name, devices, monkeypatch, microbatches)


@pytest.mark.parametrize(
    "name", ["v1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v3_vit", "mae"))]
)
def test_five_steps_with_the_gpu_implementation_match_torch(name, monkeypatch):
    monkeypatch.setitem(platforms._NAMES, "cpu", "gpu")
    text = jax.jit(platforms.materialized).lower(jnp.zeros(1)).as_text()
    assert "optimization_barrier" in text
    assert_steps_match(name, 1, monkeypatch)


def assert_steps_match(name, devices, monkeypatch, microbatches=1):
    drawn = golden(name).get("drawn", np.zeros((STEPS, 1)))  # replaces random draws by torch's
    for function in ("draw_others", "draw_noise"):
        monkeypatch.setattr(
            memory_bank, function, lambda config, images, batch: jnp.asarray(drawn)[batch.step]
        )
    noise = golden(name).get("noise", np.zeros((STEPS, 1)))
    monkeypatch.setattr(
        masks,
        "draw",
        lambda config, rows, columns, batch, view: jnp.asarray(noise)[batch.step, view],
    )
    with jax.enable_x64(True):
        got = five_steps(name, devices, microbatches)
    differences = jax.tree.map(difference, got, expected(name))
    largest = {kind: max(jax.tree.leaves(tree), default=0.0) for kind, tree in differences.items()}
    print(name, devices, {kind: f"{value:.1e}" for kind, value in largest.items()})
    assert max(largest.values()) < RTOLS.get(name, RTOL), largest


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_the_script_reproduces_the_golden_files(tmp_path):
    command = [sys.executable, "-m", "tests.golden.generate", str(tmp_path)]
    subprocess.run(command, cwd=HERE.parents[1], check=True)
    for name in CONFIGS:
        with np.load(tmp_path / f"{name}.npz") as written:
            assert set(written) == set(golden(name))
            for key, array in golden(name).items():
                assert written[key].dtype == array.dtype
                bound = 1e-9 * max(np.abs(array).max(initial=0), SMALLEST)  # a queue may be [0, D]
                np.testing.assert_allclose(written[key], array, rtol=0, atol=bound, err_msg=key)
