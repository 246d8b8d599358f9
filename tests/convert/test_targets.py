"""Writes and rereads weights without torch, bit for bit; errors name what is not possible."""

import ast
import json
import pathlib
import pickle
import re
import sys

import numpy as np
import pytest

from moco_jax.convert import targets
from moco_jax.encoders import pretrained
from moco_jax.training.flat_config import flatten
from moco_jax.weights import sources
from tests.weights.networks import assert_same, source

VIT = dict(name="vit_tiny", stem="patch", width=1.0, depth=1, patch=4)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize(
    ("to", "out", "model"),
    [
        ("timm", "a.safetensors", dict(name="resnet10", width=1.0)),
        ("timm", "a.safetensors", dict(name="wide_resnet50_2", width=1.0, stem="imagenet")),
        ("huggingface", "a", dict(name="resnet18", width=0.25, stem="imagenet")),
        ("huggingface", "a", dict(name="resnet50", width=0.125, stem="imagenet")),
        ("timm", "a.safetensors", VIT),
        ("timm", "a.safetensors", VIT | dict(positions="learned")),
        ("timm", "a.safetensors", VIT | dict(pool="mean")),
        ("huggingface", "a", VIT | dict(positions="learned")),
        ("huggingface", "a", VIT | dict(heads=4)),
    ],
)
def test_round_trips_are_exact(without_torch, tmp_path, to, out, model):
    given = source(**model)
    lines = targets.write(given, to, tmp_path / out)
    assert lines[0] == "load it with" and str(tmp_path / out) in "".join(lines)
    found = sources.read(tmp_path / out).pretrained
    trees = given.pretrained.variables.items()
    backbone = {k: {"backbone": tree["backbone"]} for k, tree in trees if "backbone" in tree}
    assert_same(found.variables, backbone)
    for key in ("name", "stem", "width", "patch", "heads", "depth", "pool", "positions"):
        assert found.config.model[key] == given.pretrained.config.model[key]
    assert not list(tmp_path.glob(".*"))


def test_moco_jax_files_keep_the_head_and_the_config(tmp_path):
    given = source()
    file = tmp_path / "a.safetensors"
    lines = targets.write(given, "moco_jax", file)
    assert lines[1:] == ["  import moco_jax", f'  encoder = moco_jax.load("{file}")']
    for found in (
        pretrained.read(tmp_path / "a.safetensors"),
        sources.read(tmp_path / "a.safetensors").pretrained,
    ):
        assert_same(found.variables, given.pretrained.variables)
        assert flatten(found.config) == flatten(given.pretrained.config)


def test_detectron2_files_contain_numpy_arrays_only(without_torch, tmp_path):
    printed = targets.write(
        source(name="resnet50", stem="imagenet", width=0.125), "detectron2", tmp_path / "a.pkl"
    )
    content = pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["__author__"] == "moco_jax" and content["matching_heuristics"] is True
    assert {type(x) for x in content["model"].values()} == {np.ndarray}
    assert {x.dtype for x in content["model"].values()} == {np.dtype(np.float32)}
    assert content["model"]["res3.0.conv2.weight"].shape == (16, 16, 3, 3)
    lines = [line.strip() for line in printed]
    for line in (
        "MODEL.RESNETS.DEPTH: 50",
        "MODEL.RESNETS.STRIDE_IN_1X1: False",
        "MODEL.RESNETS.RES2_OUT_CHANNELS: 32",
        "MODEL.RESNETS.STEM_OUT_CHANNELS: 8",
        "MODEL.RESNETS.WIDTH_PER_GROUP: 8",
        "MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53]",
        "MODEL.PIXEL_STD: [58.395, 57.12, 57.375]",
        "INPUT.FORMAT: RGB",
    ):
        assert line in lines


def test_detectron2_settings_of_wide_and_grouped_blocks(tmp_path):
    for name, per_group, groups in (("wide_resnet50_2", 128, 1), ("resnext50_32x4d", 4, 32)):
        lines = targets.write(
            source(name=name, stem="imagenet", width=1.0), "detectron2", tmp_path / f"{name}.pkl"
        )
        assert f"  MODEL.RESNETS.WIDTH_PER_GROUP: {per_group}" in lines
        assert f"  MODEL.RESNETS.NUM_GROUPS: {groups}" in lines


@pytest.mark.parametrize(
    ("to", "out", "model", "message"),
    [
        ("huggingface", "a", dict(stem="small"), "can't express stem 'small'"),
        (
            "huggingface",
            "a",
            dict(name="resnext50_32x4d", stem="imagenet", width=0.25),
            "can't express resnext50_32x4d .it has no groups",
        ),
        ("timm", "a.safetensors", {}, "timm must have model.width=1, got 0.125"),
        ("torchvision", "a.pth", {}, "torchvision must have model.width=1, got 0.125"),
        ("moco", "a.pth.tar", {}, "reference must have model.width=1, got 0.125"),
        ("detectron2", "a.pkl", {}, "can't express resnet10 with stem 'small' .it has depths 18"),
        (
            "detectron2",
            "a.pkl",
            dict(name="resnet18", stem="imagenet", width=0.25),
            "depth 18 must have model.width=1, got 0.25",
        ),
        ("workdir", "a", {}, "made for a test is an encoder"),
        ("onnx", "a", {}, "unknown --to=onnx; allowed: moco_jax, workdir, torchvision"),
        ("timm", "a.pth", {}, "must end in .safetensors for --to=timm"),
        ("moco_jax", "no/a.safetensors", {}, "the folder of --out=.*a.safetensors does not exist"),
    ],
)
def test_error_says_what_a_target_can_not_express(tmp_path, to, out, model, message):
    with pytest.raises(ValueError, match=message):
        targets.write(source(**model), to, tmp_path / out)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "able"),
    [
        (dict(width=0.125), "moco_jax"),  # the small stem: neither timm nor Hugging Face
        (dict(name="resnet50", width=0.5, stem="imagenet"), "moco_jax, huggingface, detectron2"),
        (dict(name="resnet18", width=1.0), "moco_jax, torchvision, timm, moco, moco_encoder"),
        (
            dict(name="wide_resnet50_2", width=1.0, stem="imagenet"),
            "moco_jax, torchvision, timm, detectron2, moco, moco_encoder",
        ),
        (VIT, "moco_jax, timm, huggingface, moco, moco_encoder, mae"),
        (VIT | dict(stem="conv", patch=16), "moco_jax, moco, moco_encoder"),
    ],
)
def test_errors_name_the_targets_that_can_express_the_network(tmp_path, model, able):
    given = source(**model)
    for to, target in targets.TARGETS.items():
        out = tmp_path / f"{to}{(target.suffixes or ('',))[0]}"
        if to in able.split(", "):
            targets.check_network(to, given)
        elif to != "workdir":
            with pytest.raises(ValueError) as error:
                targets.write(given, to, out)
            assert str(error.value).startswith(f"--to={to}: ")
            assert str(error.value).endswith(f"; allowed for this network: {able}")


def test_lines_to_paste_are_quoted(tmp_path):
    out = tmp_path / 'my "best" one.safetensors'
    lines = targets.write(source(), "moco_jax", out)
    [path] = re.findall(r"moco_jax.load\((.*)\)", "\n".join(lines))
    assert ast.literal_eval(path) == str(out)


def test_nothing_is_overwritten(tmp_path):
    for to, name in (("moco_jax", "a.safetensors"), ("huggingface", "a")):
        out = tmp_path / name
        out.mkdir() if to == "huggingface" else out.write_text("mine")
        with pytest.raises(ValueError, match=r"already exists; remove it or change --out"):
            targets.write(source(name="resnet18", stem="imagenet"), to, out)
    assert (tmp_path / "a.safetensors").read_text() == "mine" and not any(
        (tmp_path / "a").iterdir()
    )


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def fail(path, *_):
        pathlib.Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(pretrained, "write", fail)
    with pytest.raises(OSError, match="no space"):
        targets.write(source(), "moco_jax", tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())


def test_error_without_torch_says_how_to_install_it(without_torch, tmp_path):
    message = r"pip install 'moco-jax\[convert\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        targets.write(source(width=1.0), "torchvision", tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"PK")
    with pytest.raises(ModuleNotFoundError, match=message):
        sources.read(tmp_path / "b.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["b.pth"]


def test_config_json_is_hugging_faces_own_for_resnet_50(tmp_path):
    targets.write(
        source(name="resnet50", stem="imagenet", width=1.0), "huggingface", tmp_path / "a"
    )
    content = json.loads((tmp_path / "a" / "config.json").read_text())
    assert content["embedding_size"] == 64 and content["hidden_sizes"] == [256, 512, 1024, 2048]
    assert content["depths"] == [3, 4, 6, 3] and content["layer_type"] == "bottleneck"
    assert content["downsample_in_bottleneck"] is content["downsample_in_first_stage"] is False
