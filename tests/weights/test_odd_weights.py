"""Odd values, shapes, dtypes and objects in a file are one message that names file and array."""

import argparse
import contextlib
import fractions
import os
import pathlib
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from moco_jax.convert import targets
from moco_jax.weights import sources, torch_files
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from tests.tiny import tiny_config
from tests.weights.networks import assert_same, encoder, library
from tests.weights.networks import source as ours

FOUND = encoder(head=False, width=1 / 64)
ARRAYS = to_torch(FOUND.variables, NAMINGS["torchvision"], FOUND.config)


@pytest.mark.parametrize(
    "version", ["2.5.1+cu124", "1.13.0", "odd", "2.6", "2.13.0+cpu", "3.0.0a0"]
)
def test_torch_must_be_new(version, tmp_path, monkeypatch):
    """Before 2.6, weights_only=True could run code from a file."""
    loaded = []
    torch = types.SimpleNamespace(
        __version__=version,
        load=lambda *_, **__: loaded.append(True) or {},
        serialization=types.SimpleNamespace(safe_globals=contextlib.nullcontext),
    )
    monkeypatch.setattr(torch_files, "import_torch", lambda: torch)
    (tmp_path / "a.pth").write_bytes(b"\x80\x02")
    new = version in ("2.6", "2.13.0+cpu", "3.0.0a0")
    message = (
        "contains no state dict"
        if new
        else r"torch .* is installed, but torch files are read with torch 2\.6 or newer only: .*; "
        r"run pip install --upgrade 'torch>=2\.6'"
    )
    with pytest.raises(ValueError, match=message):
        sources.read(tmp_path / "a.pth")
    assert bool(loaded) == new


NAME = "layer3.0.conv2.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_arrays_with_nan_or_infinity_are_named(tmp_path, value):
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    arrays[NAME].flat[3] = arrays["bn1.bias"].flat[0] = value
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError,
        match=rf"a.safetensors: 2 of 60 arrays contain NaN or infinity: bn1.bias, {NAME}; the file",
    ):
        sources.read(tmp_path / "a.safetensors")


def test_nothing_with_nan_is_written(tmp_path):
    """An own encoder file or a workdir may have them: a run that diverged."""
    bad = ours(name="resnet18", stem="imagenet", width=1.0)
    bad.pretrained.variables["params"]["backbone"]["stem_conv"]["kernel"][0] = np.nan
    parts = bad.pretrained.variables["params"].keys()
    for to in targets.expressible(bad.pretrained.config, parts):
        if to != "workdir":
            suffix = (*targets.TARGETS[to].suffixes, "")[0]
            with pytest.raises(ValueError, match="made for a test: 1 of .* arrays contain NaN"):
                targets.write(bad, to, tmp_path / f"out{suffix}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (NAME, np.ones((4, 4, 3, 3), np.int8), rf"got {NAME} \(of dtype int8\)"),
        (NAME, np.ones((4, 4, 3, 3), np.complex64), rf"got {NAME} \(of dtype C64\)"),
        (NAME, np.ones((4, 0, 3, 3), np.float32), rf"{NAME} has shape \(4, 0, 3, 3\), expected"),
        (NAME, np.ones((4, 4, 5, 5), np.float32), rf"{NAME} has shape \(4, 4, 5, 5\), expected"),
        (NAME, np.ones((), np.float32), rf"{NAME} has shape \(\), expected"),
        ("bn1.running_var", -np.ones(1, np.float32), "must not be negative: bn1.running_var"),
        ("conv1.weight", np.ones((0, 3, 3, 3), np.float32), "conv1.weight has shape"),
        ("conv1.weight", np.ones((1, 3), np.float32), "it lacks a stem of four axes"),
        ("layer1.0.conv2.weight", np.ones((0, 0, 3, 3), np.float32), "layer1.0.conv2.weight must"),
        ("layer1.0.conv1.weight", np.ones((), np.float32), "lacks layer1.0.conv1.weight"),
        ("layer1.0.conv2.weight", None, "layer1.0.conv2.weight must have four axes, none empty"),
        ("layer3.0.conv1.weight", None, "it lacks layer3.0.conv1.weight"),
        (NAME, None, f"missing {NAME}"),
        ("layer3.1.conv1.weight", np.ones((4, 4, 3, 3), np.float32), r"\(1, 1, 2, 1\)"),
        ("layer3.0.conv9.weight", np.ones((4, 4, 3, 3), np.float32), "unexpected layer3.0.conv9"),
    ],
)
def test_odd_arrays_are_named(tmp_path, name, array, message):
    arrays = {key: x for key, x in ARRAYS.items() if key != name}
    if array is not None:
        arrays[name] = array
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"a.safetensors.*{message}"):
        sources.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch, x: x.to_sparse(), "a sparse tensor"),
        (lambda torch, x: x.to("meta"), "a meta tensor, without values"),
        (lambda torch, x: x.to(torch.float8_e4m3fn), "of dtype float8_e4m3fn"),
        (lambda torch, x: x.to(torch.complex64), "of dtype complex64"),
        (lambda torch, x: x.to(torch.int8), "of dtype int8"),
        (lambda torch, x: torch.zeros(1).expand(x.shape), "an expanded tensor"),
        (lambda torch, x: torch.full_like(x, torch.nan), "contain NaN or infinity"),
    ],
)
def test_odd_tensors_are_named(tmp_path, make, message):
    torch = library("torch")
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in ARRAYS.items()}
    torch.save(tensors | {"fc.weight": make(torch, tensors[NAME])}, tmp_path / "a.pth")
    assert_same(sources.read(tmp_path / "a.pth").pretrained.variables, FOUND.variables)
    torch.save(tensors | {NAME: make(torch, tensors[NAME])}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=f"b.pth: .*{message}") as caught:
        sources.read(tmp_path / "b.pth")
    assert NAME in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_floats_become_float32(tmp_path, dtype, suffix):
    torch = library("torch")
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in ARRAYS.items()}
    tensors = {k: x.to(getattr(torch, dtype)) if x.ndim else x for k, x in tensors.items()}
    if suffix == ".pth":
        torch.save(tensors, tmp_path / "a.pth")
    else:
        library("safetensors.torch").save_file(tensors, tmp_path / "a.safetensors")
    found = sources.read(tmp_path / f"a{suffix}").pretrained.variables
    kernel = found["params"]["backbone"]["stem_conv"]["kernel"]
    want = tensors["conv1.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, want)
    assert kernel.dtype == np.float32


def test_a_storage_that_claims_more_than_the_file_has(tmp_path):
    """torch alone would read memory behind the file's part."""
    torch = library("torch")
    torch.save({"conv1.weight": torch.zeros(200), "x": torch.ones(3)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
    ):
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith("data.pkl"):
                data = data.replace(b"K\xc8", b"J\xff\xff\xff\x0f")  # 200 -> 2**28 - 1
            new.writestr(member.filename.replace("a/", "b/"), data)
    with pytest.raises(ValueError, match="b.pth is damaged, or not a torch file"):
        sources.read(tmp_path / "b.pth")


def test_objects_of_other_projects_are_named_with_a_way_out(tmp_path):
    """Lightning and others save their settings beside the weights."""
    torch = library("torch")
    content = {
        "state_dict": {name: torch.from_numpy(np.array(x)) for name, x in ARRAYS.items()},
        "hyper_parameters": fractions.Fraction(1),
        "callbacks": {"path": pathlib.PurePosixPath("x")},
        "pytorch-lightning_version": "2.5.0",
    }
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError) as caught:
        sources.read(tmp_path / "a.ckpt")
    assert str(caught.value) == (
        f"{tmp_path / 'a.ckpt'} contains more than arrays, and code in a file is not executed: "
        "fractions.Fraction, pathlib.PurePosixPath; save a state_dict(), not a module. If you "
        "trust the file, this saves its state_dict:\n"
        "  python -c \"import torch; c = torch.load('FILE', 'cpu', weights_only=False); "
        "torch.save(c['state_dict'], 'weights.pth')\""
    )
    del content["callbacks"]
    values = {"lr": 1, "sizes": [1, 2], "name": "x"}
    for settings in (values, argparse.Namespace(**values), argparse.Namespace(more=values)):
        content["hyper_parameters"] = settings
        torch.save(content, tmp_path / "b.ckpt")
        assert_same(sources.read(tmp_path / "b.ckpt").pretrained.variables, FOUND.variables)


@pytest.mark.parametrize("zipped", [True, False])
def test_flags_in_a_namespace_are_read_as_values(zipped, tmp_path):
    """MAE and others save the flags of their programs beside the weights."""
    torch = library("torch")
    flags = argparse.Namespace(model="mae", mask_ratio=0.75, norm_pix_loss=True, lr=None)
    flags.inner = argparse.Namespace(betas=(0.9, 0.95))
    content = {"model": {"weight": torch.ones(2)}, "args": flags, "again": flags}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = torch_files.read(tmp_path / "a.pth")
    read = {"model": "mae", "mask_ratio": 0.75, "norm_pix_loss": True, "lr": None}
    assert found["args"] == found["again"] == read | {"inner": {"betas": [0.9, 0.95]}}
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class _Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.mkdir, "made"),
        (argparse.ArgumentParser, "made"),
        (argparse.FileType("w"), "made"),
        (setattr, argparse.Namespace(), "made", 1),
        (argparse.Namespace.__setattr__, argparse.Namespace(), "__class__", dict),
        (argparse.Namespace, "made"),
    ],
)
def test_code_beside_a_namespace_does_not_run(call, tmp_path, monkeypatch):
    torch = library("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"args": argparse.Namespace(x=_Runs(*call))}, "a.pth")
    with pytest.raises(ValueError, match="contains more than arrays|damaged, or not a torch file"):
        sources.read(pathlib.Path("a.pth"))
    assert not pathlib.Path("made").exists()


def test_only_regular_files_are_read(tmp_path):

    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.pth", "zero.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            sources.read(tmp_path / name)


def test_names_in_messages_are_printable_and_short(tmp_path):
    odd = {"layer1.\x1b[31m\n": ARRAYS[NAME], "layer2." + "x" * 5000: ARRAYS[NAME]}
    save_file(ARRAYS | odd, tmp_path / "a.safetensors")
    with pytest.raises(ValueError) as caught:
        sources.read(tmp_path / "a.safetensors")
    assert r"layer1.\x1b[31m\x0a" in str(caught.value) and len(str(caught.value)) < 500


def test_numbers_that_are_no_numbers_in_a_checkpoint(tmp_path):
    """Only the encoder is needed: the rest of the file may be anything."""
    torch = library("torch")
    state = {f"encoder_q.{k}": torch.from_numpy(np.array(x)) for k, x in ARRAYS.items()}
    state |= {"encoder_q.fc.weight": torch.ones(16, 8), "encoder_q.fc.bias": torch.ones(16)}
    state |= {"queue": torch.ones(3), "queue_ptr": torch.ones(2)}
    config = tiny_config(model__width=1 / 64, model__head="linear", knn__every_epochs=0.0)
    for epoch, optimizer, message in (
        ("x", [], "a.pth contains no epoch"),
        (-1, {"param_groups": 3}, "a.pth contains no epoch"),
        (1, {"param_groups": [1]}, r"queue_ptr must be one integer"),
    ):
        content = {"epoch": epoch, "state_dict": state, "optimizer": optimizer}
        torch.save(content, tmp_path / "a.pth")
        found = sources.read(tmp_path / "a.pth", config)
        assert found.title.startswith("a pretraining checkpoint of MoCo v1 or v2")
        with pytest.raises(ValueError, match=message):
            targets.write(found, "workdir", tmp_path / "w")
