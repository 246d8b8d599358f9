"""The command prints what it recognised and wrote, and reports errors in one message."""

import functools

import pytest

from moco_jax.encoders import pretrained
from tests.conftest import run_command
from tests.convert.networks import assert_same, encoder


@pytest.fixture
def run(repository, tmp_path):
    pretrained.write(tmp_path / "in.safetensors", encoder(name="resnet18", stem="imagenet"))
    return functools.partial(run_command, repository, "moco_jax.convert")


def test_prints_what_it_recognised_and_wrote(run, tmp_path):
    source, out = tmp_path / "in.safetensors", tmp_path / "out"
    done = run(f"--source={source}", "--to=huggingface", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{source}: an encoder of moco_jax",
        "  resnet18, width 0.125, imagenet stem, 0.18 M parameters; "
        "mlp head 64-16, 0.01 M parameters",
        "  left out: the head",
        f"wrote {out} (huggingface)",
        "load it with",
        "  import transformers",
        f'  model = transformers.AutoModel.from_pretrained("{out}")',
    ]
    back = tmp_path / "back.safetensors"
    done = run(f"--source={out}", "--to=moco_jax", f"--out={back}")
    assert done.returncode == 0, done.stderr
    want = pretrained.read(source).variables
    for kind, tree in pretrained.read(back).variables.items():
        assert_same(tree, {"backbone": want[kind]["backbone"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source, --to and --out must be given"),
        (["--source=IN", "--to=timm", "--out=IN"], "in.safetensors already exists"),
        (["--source=no.pth", "--to=moco_jax", "--out=OUT.safetensors"], "no.pth does not exist"),
        (["--source=IN", "--to=jax", "--out=OUT"], "unknown --to=jax; allowed: moco_jax"),
        (["--source=IN", "--to=workdir", "--out=OUT"], "--to=workdir needs the experiment"),
        (
            ["--source=IN", "--to=huggingface", "--out=OUT", "--config=configs/digits.py"],
            "contains its own config",
        ),
        (
            ["--source=IN", "--to=huggingface", "--out=OUT", "--training_images=9"],
            "--training_images is for --to=workdir only, got --to=huggingface",
        ),
    ],
)
def test_errors_are_one_clear_message(run, tmp_path, arguments, message):
    paths = {"IN": str(tmp_path / "in.safetensors"), "OUT": str(tmp_path / "out")}
    for word, path in paths.items():
        arguments = [argument.replace(word, path) for argument in arguments]
    done = run(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
