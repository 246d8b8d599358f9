import jax
import numpy as np
import pytest

from moco_jax.parallel import norms
from moco_jax.parallel.mesh import make_layout
from moco_jax.parallel.platforms import by_platform


@pytest.fixture(scope="module")
def tree():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (3, 5), (7,), (128, 256)
    return {str(s): jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)}


@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("norm", [norms._separate, norms._concatenated])
def test_the_norm_is_that_of_all_values(tree, fsdp, norm, monkeypatch):
    monkeypatch.setattr(norms, "by_platform", lambda *x, **_: by_platform(*x, default=norm))
    layout = make_layout(jax.devices()[:4], fsdp=fsdp)
    got = jax.jit(lambda tree: norms.global_norm(tree, layout))(tree)
    values = np.concatenate([np.ravel(x) for x in tree.values()])
    np.testing.assert_allclose(got, np.linalg.norm(values), rtol=1e-6)


def test_a_tree_without_replicated_arrays(tree):
    layout = make_layout(jax.devices()[:4], fsdp=4)
    large = {"large": tree["(128, 256)"]}
    got = jax.jit(lambda tree: norms.global_norm(tree, layout))(large)
    np.testing.assert_allclose(got, np.linalg.norm(large["large"]), rtol=1e-6)


def test_gpus_concatenate_only_replicated_arrays(tree):
    layout = make_layout(jax.devices()[:4], fsdp=4)
    traced = jax.jit(lambda tree: norms.global_norm(tree, layout)).trace(tree)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    (concatenated,) = [line for line in text.splitlines() if "concatenate" in line]
    assert "tensor<22xf32>" in concatenated  # 3 * 5 and 7
