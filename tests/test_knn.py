"""kNN accuracy of an encoder on disk: equal to the monitor's; the command and its errors."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from moco_jax.data.loading import loader
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Source, Sources
from moco_jax.encoders import pretrained
from moco_jax.encoders.knn_accuracy import COLUMNS, measure, trained_on
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining.monitors.knn import KnnMonitor
from tests.conftest import run_command
from tests.encoder_files import write_encoder
from tests.in_process import run_all
from tests.tiny import tiny_config, tiny_sources

CONFIG = tiny_config(data__canvas=16, knn__temperature=0.07)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    write_encoder(path, CONFIG, head=False)
    return path


def test_accuracy_equals_that_of_the_monitor(encoder):
    read, sources, layout = pretrained.read(encoder), tiny_sources(), make_layout()
    rows = list(
        measure(
            read, sources, CONFIG.data, ks=(1, 5), temperatures=(0.07, 1.0), layout=layout,
            batch_size=30, leave_one_out=True,
        )
    )  # fmt: skip
    assert [row[1:3] for row in rows] == [(1, 0.07), (1, 1.0), (5, 0.07), (5, 1.0)] * 2
    data = [loader.load(source, CONFIG.data, layout) for source in (sources.train, sources.test)]
    monitor = KnnMonitor(CONFIG, read.encoder, *data, layout)
    variables = read.variables["params"], read.variables["batch_stats"]
    online = monitor.top1(monitor.encoded(*variables))
    assert rows[2][3] == online and 40 < online
    options = dict(ks=(200,), temperatures=(1.0,), layout=layout, leave_one_out=True)
    small = Sources(sources.test, sources.train)
    assert [row[1] for row in measure(read, small, CONFIG.data, **options)] == [32, 31]
    assert rows[2][0] == "arrays by arrays" and rows[6][0] == "arrays, each by the others"


def test_errors_say_what_is_allowed(encoder):
    read, sources = pretrained.read(encoder), tiny_sources()
    options = dict(ks=(1,), temperatures=(1.0,), layout=make_layout())
    with pytest.raises(ValueError, match="arrays has no labelled test images: give --leave_one"):
        list(measure(read, Sources(sources.train, None), CONFIG.data, **options))
    with pytest.raises(ValueError, match="a backbone has no head"):
        list(measure(read, sources, CONFIG.data, output="head", **options))
    flat = Source("flat", lambda i: b"", ["a"], None, ())
    with pytest.raises(ValueError, match="flat has no classes"):
        list(measure(read, Sources(flat, None), CONFIG.data, **options))


def test_command_prints_a_table(repository, encoder, tmp_path):
    train, test = tiny_sources().train, tiny_sources(seed=1).test
    assert test is not None
    arrays = {
        f"{prefix}{name}": values
        for prefix, source in (("", train), ("test_", test))
        for name, values in (
            ("images", np.stack([source.read(i) for i in range(len(source))])),
            ("labels", source.labels),
        )
    }
    np.savez(tmp_path / "images.npz", **arrays)
    done = run_command(repository, "moco_jax.knn", f"--encoder={encoder}",
                       f"--images={tmp_path}/images.npz", "--k=1,500",
                       "--temperature=0.1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, first, second = done.stdout.splitlines()
    assert head.split() == list(COLUMNS)
    assert first.startswith("images.npz, test by images.npz, train  1   0.1")
    assert second.split()[-3:-1] == ["96", "0.1"]
    assert done.stderr.startswith("backbone of a backbone")
    assert "\nk = 96 (asked 500): there are no more neighbours\n" in done.stderr


ERRORS = [
    ([], "--encoder must be given"),
    (["--encoder=/none"], "there is no encoder at /none"),
    (["--encoder=/none", "--k=1,x"], "--k must be whole numbers above 0, such as 1,2; got"),
    (["--encoder=/none", "--temperature=0"], "--temperature must be numbers above 0"),
    (["--encoder=/none", "--temperature=inf"], "--temperature must be numbers above 0"),
    (["--encoder=/none", "--images=/none"], "--images=/none: there is no file or folder /none"),
    (["--encoder=/none", "--pictures=x"], "--pictures is now --images"),
    (["--encoder=/none", "--config=none.py"], "there is no config file none.py"),
    (
        ["{encoder}", "--images={folder}", "--config.data.held_out=0"],
        "--config.data.held_out=0.1 to hold out some",
    ),
    (["{encoder}", "--images={folder}", "--config.held_out=0.1"], "did you mean 'data.held_out'?"),
    (
        ["{encoder}", "--images=digits", "--config.data.held_out=x"],
        "data.held_out must be a number",
    ),
    (
        ["{encoder}", "--images=digits", "--config.data.image_size=8"],
        "has no effect here; allowed:",
    ),
    (["{encoder}", "--images=digits", "--config.model.dim=8"], "model.dim has no effect here"),
    (["{encoder}", "--images={archive}"], "unpack it, and set --images="),
    (["{encoder}", "--config.data.path={archive}"], "unpack it, and set --config.data.path="),
]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder with four images of each of two classes, none of which the tiny config holds out."""
    folder = tmp_path_factory.mktemp("images") / "pets"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


def test_images_that_the_encoder_was_trained_on_are_told(pets, tmp_path):
    def opened(**changes):
        config = tiny_config(data__source="images", **{"data__path": str(pets)} | changes)
        return config, open_named(config)

    def told(used, leave_one_out=False):
        lines = trained_on(recorded, used[0], used[1], leave_one_out)
        return [line.rpartition("/")[2].partition(" images, so")[0] for line in lines]

    recorded, _ = opened(data__held_out=0.0)
    trained = "pets, held out: the encoder was trained on 2 of these 2"
    assert told(opened(data__held_out=0.25)) == [trained]
    assert told(opened(data__held_out=0.25, data__path=f"{pets}/../pets")) == [trained]
    assert told(opened(data__held_out=0.0), True) == [
        "pets: the encoder was trained on 8 of these 8"
    ]
    recorded, _ = opened(data__held_out=0.25)
    assert told(opened(data__held_out=0.25)) == []
    assert told(opened(data__held_out=0.5)) == [
        "pets, held out: the encoder was trained on 2 of these 4"
    ]
    (tmp_path / "pets").symlink_to(pets / "cat")
    assert told(opened(data__path=str(tmp_path / "pets")), True) == []  # another place


@pytest.fixture(scope="module")
def errors(repository, encoder, pets):
    place = {"encoder": f"--encoder={encoder}", "folder": pets, "archive": f"{pets}.7z"}
    pathlib.Path(f"{pets}.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    cases = [[text.format(**place) for text in arguments] for arguments, _ in ERRORS]
    return run_all(repository, "moco_jax.knn", cases, repository)


@pytest.mark.parametrize("case", range(len(ERRORS)), ids=[message for _, message in ERRORS])
def test_errors_are_one_message(errors, case):
    code, printed = errors[case]
    assert code == 2 and ERRORS[case][1] in printed
    assert "error: " in printed and "raceback" not in printed
