"""What a Python program calls: pretrain, evaluate, embed, load and configs."""

import html
import inspect
import io
import os
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

import moco_jax
from moco_jax.parallel import cluster
from moco_jax.segmentation import config as segmentation_config
from moco_jax.supervised import config as supervised_config
from tests.conftest import run_command
from tests.encoder_files import write_encoder
from tests.pages.test_report import workdir
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an encoder and images of two classes."""
    place = tmp_path_factory.mktemp("api")
    write_encoder(place / "encoder.safetensors", tiny_config(data__canvas=16))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("a", "b"):
            (place / "images" / split / kind).mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
                image.save(place / "images" / split / kind / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def encoder(folder):
    return moco_jax.load(folder / "encoder.safetensors")


def test_features_of_a_folder_have_names_and_labels(folder, encoder):
    found = moco_jax.embed(encoder, folder / "images", split="test")
    images = folder / "images/test"
    assert found.names.tolist() == [f"{images}/{kind}/{n}.png" for kind in "ab" for n in range(3)]
    assert found.labels is not None and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.class_names == ("a", "b")
    np.testing.assert_allclose(found.features, encoder(list(found.names)), atol=5e-3)


def test_what_was_found_is_printed(encoder, capsys):
    moco_jax.embed(encoder, "digits", split="test")
    assert capsys.readouterr().out.startswith("digits/test: 1200 images")


def test_a_path_is_an_encoder_too(folder, encoder):
    paths = [folder / "images/train/a/0.png"]
    found = moco_jax.embed(folder / "encoder.safetensors", paths, output="head")
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-5)
    assert found.about["output"] == "head"
    expected = moco_jax.load(folder / "encoder.safetensors", output="head")
    np.testing.assert_allclose(found.features, expected(paths), atol=1e-5)
    assert moco_jax.embed(expected, paths).about["output"] == "head"


@pytest.mark.parametrize("kind", [list, iter, tuple])
def test_features_of_a_list_have_the_names_of_its_paths(folder, encoder, kind):
    path = folder / "images/train/a/0.png"
    pixels = np.asarray(Image.open(path))
    found = moco_jax.embed(encoder, kind([path, pixels, str(path)]))
    assert found.names.tolist() == [str(path), "1", str(path)] and found.labels is None
    np.testing.assert_allclose(found.features, np.tile(found.features[:1], (3, 1)), atol=1e-5)


def test_features_of_an_array_have_numbers_as_names(encoder):
    found = moco_jax.embed(encoder, np.zeros((2, 8, 8, 3), np.uint8))
    assert found.names.tolist() == ["0", "1"] and found.features.shape == (2, encoder.dim)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ("none", {}, FileNotFoundError, "images='none': there is no file or folder none"),
        ([], {"split": "test"}, ValueError, "split='test' has no effect on a list"),
        ("digits", {"split": "val"}, ValueError, "no such split; allowed: train, test"),
        (["none.png"], {}, FileNotFoundError, "none.png"),
        (b"image", {}, ValueError, "got one image (bytes); give [image]"),
        (3, {}, ValueError, "images must be a list or an array, got int"),
        (np.zeros((8, 8, 3), np.uint8), {}, ValueError, "for a single image give [image]"),
    ],
)
def test_images_that_cant_be_embedded(encoder, images, options, error, message):
    with pytest.raises(error) as raised:
        moco_jax.embed(encoder, images, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("function", "config", "message"),
    [
        ("pretrain", "configs/digits.py", "config must be a ConfigDict, got str"),
        ("evaluate", None, "config must be a ConfigDict, got NoneType"),
        ("pretrain", supervised_config.linear(), "moco_jax.evaluate takes it"),
        ("pretrain", segmentation_config.base(), "moco_jax.evaluate takes it"),
        ("evaluate", tiny_config(), "moco_jax.pretrain takes it"),
    ],
)
def test_a_config_of_another_function_is_refused(function, config, message, tmp_path):
    with pytest.raises(ValueError) as raised:
        getattr(moco_jax, function)(config, tmp_path / "run")
    assert message in str(raised.value) and not (tmp_path / "run").exists()


def test_a_run_in_a_thread_gives_its_encoder_to_an_evaluation(tmp_path, capsys):
    found = []
    config = tiny_config(steps=2, knn__every_epochs=0.0)
    # Signals can be caught by the main thread only.
    thread = threading.Thread(
        target=lambda: found.append(moco_jax.pretrain(config, tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert found and found[0].source.endswith("(tiny, step 2)")
    linear = supervised_config.linear()
    linear.pretrained, linear.cached, linear.data.source = str(tmp_path / "run"), True, "digits"
    linear.iterations = 3
    rows = moco_jax.evaluate(linear, tmp_path / "linear")
    assert isinstance(rows, list) and 0 <= rows[0].top1 <= 100
    assert "step 2/2" in capsys.readouterr().out


def test_all_functions_have_types_and_are_listed():
    for name in ("load", "pretrain", "evaluate", "embed"):
        function = getattr(moco_jax, name)
        assert name in dir(moco_jax) and inspect.getdoc(function)
        signature = inspect.signature(function)
        kinds = [parameter.annotation for parameter in signature.parameters.values()]
        assert inspect.Signature.empty not in [*kinds, signature.return_annotation]
    with pytest.raises(AttributeError, match="has no attribute 'none'"):
        _ = moco_jax.none


def test_importing_the_package_does_not_import_jax(repository):
    code = "import sys, moco_jax, moco_jax.configs as c; c.names(); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr


def test_experiments_are_found_beside_the_package(repository):
    from moco_jax import configs

    assert configs.digits.get_config().name == "digits"
    assert configs.cifar10.get_config("simclr").name == "cifar10_simclr"
    assert set(configs.names()) == {file.stem for file in (repository / "configs").glob("*.py")}
    with pytest.raises(AttributeError, match="no experiment 'none'; allowed: cifar10, "):
        _ = configs.none


def _copy(repository, folder):
    """Returns a copy of what an installation reads: building writes into it."""
    names = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "moco_jax", "configs"]
    folder.mkdir()
    subprocess.run(["cp", "-r", *[repository / name for name in names], folder], check=True)
    return folder


@pytest.mark.slow
def test_an_editable_install_is_a_path(repository, tmp_path):
    """Python finds a clone named moco_jax in the current folder before what a hook would find."""
    source = _copy(repository, tmp_path / "moco_jax")
    code = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        (path,) = [name for name in file.namelist() if name.endswith(".pth")]
        assert file.read(path).decode().strip() == str(source)


@pytest.mark.slow
def test_an_installed_wheel_has_the_experiments_once(repository, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = _copy(repository, tmp_path / "source")
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "--wheel-dir", tmp_path, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True
    )
    assert [str(file.relative_to(target)) for file in target.rglob("digits.py")] == [
        "moco_jax/configs/files/digits.py",
        "moco_jax/data/sources/digits.py",
    ]
    assert (target / "moco_jax/py.typed").exists()
    code = (
        "import moco_jax; from moco_jax import configs\n"
        "print(moco_jax.__file__, configs.digits.get_config().name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{target}/moco_jax/__init__.py digits\n", done.stderr
    done = run_command(target, "moco_jax.main", "--config=digits.py", "--config.lr=-1",
                       cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and "lr=-1" in done.stderr
    assert f"config {target}/moco_jax/configs/files/digits.py" in done.stderr


def test_lines_fit_the_terminal_of_a_program(monkeypatch):
    assert moco_jax.pretrain  # the functions are loaded on demand

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    cluster.say("3 classes: " + "cat, " * 40)
    assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_the_report_of_runs_is_a_file_that_a_notebook_shows(tmp_path):
    folders = [workdir(tmp_path / name) for name in ("first", "second")]
    report = moco_jax.report(folders[0], most_images=0)
    assert report.path == folders[0] / "report.html"
    shown = report._repr_html_()
    assert html.unescape(shown.split('srcdoc="')[1].split('" style=')[0]) == report.path.read_text()
    report = moco_jax.report(folders, tmp_path / "both.html", most_images=0)
    assert "2 runs, curves overlaid" in (tmp_path / "both.html").read_text()
    with pytest.raises(ValueError, match="is no workdir of a run"):
        moco_jax.report(tmp_path)
    metrics = (folders[0] / "metrics.jsonl").read_text()
    for out, problem in (("metrics.jsonl", "must end in .html"), ("none/a.html", "no folder")):
        with pytest.raises(ValueError, match=f"^out=.*{problem}"):
            moco_jax.report(folders[0], folders[0] / out)
    assert (folders[0] / "metrics.jsonl").read_text() == metrics
    for nothing in ([], "", None, 5, [""]):
        with pytest.raises(ValueError, match="workdirs=.*allowed: the workdir of a run"):
            moco_jax.report(nothing)
    with pytest.raises(ValueError, match="most_images=-3 must be 0 or more"):
        moco_jax.report(folders[0], most_images=-3)
