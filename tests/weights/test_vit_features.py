"""A ViT's features against timm's, with random weights that are mapped by hand."""

import jax
import numpy as np
import pytest

from moco_jax.models.vit import vit
from tests.weights.networks import library


def _layer(module) -> dict[str, np.ndarray]:
    weight = module.weight.detach().numpy()
    bias = module.bias.detach().numpy()
    if weight.ndim == 1:
        return {"scale": weight, "bias": bias}
    kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    return {"kernel": kernel, "bias": bias}


def _params(network) -> dict:
    params: dict = {
        "cls_token": network.cls_token.detach().numpy(),
        "patch_embed": _layer(network.patch_embed.proj),
        "norm": _layer(network.norm if network.global_pool == "token" else network.fc_norm),
    }
    for i, block in enumerate(network.blocks):
        params[f"block{i + 1}"] = {
            "norm1": _layer(block.norm1),
            "qkv": _layer(block.attn.qkv),
            "proj": _layer(block.attn.proj),
            "norm2": _layer(block.norm2),
            "fc1": _layer(block.mlp.fc1),
            "fc2": _layer(block.mlp.fc2),
        }
    return params


def _positions(torch, size: int, dim: int):
    """Returns MoCo v3's embeddings [1, 1 + size^2, dim] as its code makes them."""
    slow, fast = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    omega = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    angles = [x.flatten()[:, None] * omega for x in (slow, fast)]
    waves = [wave(x) for x in angles for wave in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, dim), torch.cat(waves, 1)])[None]


@pytest.mark.parametrize(("pool", "size"), [("cls", 32), ("mean", 48)])
def test_features_are_those_of_timm(pool, size):
    torch, timm = library("torch"), library("timm")
    torch.manual_seed(0)
    network = timm.models.VisionTransformer(
        img_size=size,
        patch_size=16,
        embed_dim=192,
        depth=2,
        num_heads=3,
        num_classes=0,
        global_pool="token" if pool == "cls" else "avg",
        fc_norm=pool == "mean",
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        network.pos_embed.copy_(_positions(torch, size // 16, 192))
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    params = _params(network)
    ours = vit("vit_tiny", depth=2, pool=pool)
    shapes = jax.eval_shape(lambda x: ours.init(jax.random.key(0), x, train=False), images)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes["params"])
    found = jax.jit(lambda p, x: ours.apply({"params": p}, x, train=False))(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
