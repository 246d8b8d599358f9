"""The command prints what it recognised and wrote, and reports errors in one message."""

import functools

import pytest

from moco_jax.encoders import pretrained
from tests.conftest import run_command
from tests.in_process import run_all
from tests.weights.networks import assert_same, encoder


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


ERRORS = [
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
        "--training_images is for --to=workdir, --to=moco, --to=mae only, got --to=huggingface",
    ),
]


@pytest.fixture(scope="module")
def errors(repository, tmp_path_factory):
    """The exit code and message of each case, and the files that are left."""
    folder = tmp_path_factory.mktemp("errors")
    pretrained.write(folder / "in.safetensors", encoder(name="resnet18", stem="imagenet"))
    paths = {"IN": str(folder / "in.safetensors"), "OUT": str(folder / "out")}
    cases = [
        [argument.replace("IN", paths["IN"]).replace("OUT", paths["OUT"]) for argument in arguments]
        for arguments, _ in ERRORS
    ]
    results = run_all(repository, "moco_jax.convert", cases, repository)
    return results, [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("case", range(len(ERRORS)), ids=[message for _, message in ERRORS])
def test_errors_are_one_clear_message(errors, case):
    results, left = errors
    code, printed = results[case]
    assert code == 2 and ERRORS[case][1] in printed
    assert printed.startswith("error: ") and "Traceback" not in printed
    assert left == ["in.safetensors"]
