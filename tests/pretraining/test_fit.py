"""Configs that fit themselves to the images: the chosen values are valid, the given ones stay."""

import pathlib
import re
import types

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax import config as config_lib
from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.data.augment import recipes
from moco_jax.parallel.mesh import make_layout
from moco_jax.plan import planner
from moco_jax.plan.topology import Topology
from moco_jax.pretraining import cpu_time, few_images, fit, pretrain, validation
from moco_jax.training.flat_config import flatten
from moco_jax.training.optimizers import total_steps
from tests.conftest import run_command
from tests.test_configs import get
from tests.tiny import tiny_config, tiny_sources

DOCS = pathlib.Path(__file__).parents[2] / "docs"
NUMBERS = [2, 3, 5, 8, 9, 15, 16, 17, 20, 31, 55, 64, 100, 200, 999, 5_000, 16_384, 50_000]
NUMBERS += [131_071, 131_072, 1_281_167, 5_000_000]
SHORT = {"model.name": "resnet10", "model.width": 0.125, "steps": 2, "data.image_size": 8}
SHORT |= {"model.stem": "small", "model.dim": 16, "log_every": 1}


def folder_config(repository, path: str | pathlib.Path = "/images", **changes):
    config = get(repository, "folder", str(path))
    for key, value in {k.replace("__", "."): v for k, v in changes.items()}.items():
        config.update_from_flattened_dict({key: value})
    return config


def write_images(folder: pathlib.Path, number: int, size=(12, 10), start=0) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for i in range(start, start + number):
        pixels = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def check_valid(config, images: int, devices: int) -> None:
    """Raises an error, or fails, unless the config is valid for the images without a warning."""
    assert fit.open_keys(config) == []
    validation.check(config, devices)
    few_images.check_batch(config, "images", images, devices)
    assert list(few_images.warnings(config, images, devices)) == []
    per_epoch = images // config.batch_size
    steps = total_steps(config, per_epoch)
    assert config.warmup_epochs * per_epoch < steps


@pytest.mark.parametrize("devices", range(1, 9))
@pytest.mark.parametrize("images", NUMBERS)
def test_the_chosen_values_are_valid(repository, images, devices):
    for size in ("", ",small"):
        config, lines = fit.fit(folder_config(repository, f"/images{size}"), images, [60], devices)
        assert lines[0].startswith(f"chosen for {images:,} images; --config.KEY=VALUE ")
        assert all(re.fullmatch(r"  \S+ \S+: .{,80}", line) for line in lines[1:])
        if images < max(2, devices):
            with pytest.raises(ValueError, match="give more images"):
                few_images.check_batch(config, "images", images, devices)
            continue
        check_valid(config, images, devices)
        others = (images // config.batch_size - 1) * keys_per_step(config)
        assert config.queue_size <= max(others, keys_per_step(config))
        if images >= 8 * devices:
            assert config.bn_groups > 1
            assert config.batch_size <= images // 2


@pytest.mark.parametrize("images", [20, 200, 5_000, 50_000])
def test_small_sets_have_enough_steps_but_not_endless_epochs(repository, images):
    config, _ = fit.fit(folder_config(repository), images, [224], 1)
    steps = total_steps(config, images // config.batch_size)
    assert steps >= 20_000 or config.epochs == 2000
    assert config.epochs <= 2000


@pytest.mark.parametrize("images", [131_072, 1_281_167, 5_000_000])
def test_large_sets_have_the_papers_values(repository, images):
    ours, paper = (
        fit.fit(folder_config(repository), images, [375], 8)[0],
        get(repository, "imagenet"),
    )
    for key in ("batch_size", "bn_groups", "queue_size", "momentum", "epochs", "warmup_epochs"):
        assert ours[key] == paper[key], key
    assert ours.data.image_size == paper.data.image_size
    assert ours.data.eval_resize == paper.data.eval_resize


GIVEN = [
    {"batch_size": 16},
    {"batch_size": 16, "bn_groups": 4},
    {"bn_groups": 4},
    {"queue_size": 96},
    {"queue_size": 64, "batch_size": 8},
    {"momentum": 0.5},
    {"epochs": 3.0},
    {"steps": 7},
    {"warmup_epochs": 0.5},
    {"data__image_size": 48},
    {"data__eval_resize": 40},
    {"data__image_size": 300},
    {"model__stem": "small"},
    {"knn__every_epochs": 0.0},
    {"symmetric": True},
    {"symmetric": True, "queue_size": 96},
    {"dictionary": "in_batch", "key_encoder": "shared"},
    {"microbatches": 4},
    {"microbatches": 3, "batch_size": 48},
    {"microbatches": 32},
    {"microbatches": 3, "model__name": "vit_tiny"},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_given_values_win_and_the_others_fit_them(repository, given, devices):
    config = folder_config(repository, **given)
    validation.check(fit.trial(config, devices), devices)
    for images in (200, 5_000):
        fitted, lines = fit.fit(config, images, [60], devices)
        check_valid(fitted, images, devices)
        flat = flatten(fitted)
        for key, value in given.items():
            key = key.replace("__", ".")
            assert flat[key] == value
            assert not any(line.startswith(f"  {key} ") for line in lines)
    if "steps" in given:
        assert fitted.epochs is None


def test_keys_without_effect_have_no_line(repository):
    def lines(**changes):
        found = fit.fit(folder_config(repository, **changes), 5_000, [60], 1)[1]
        return [line.strip() for line in found]

    def named(key, found):
        return [line for line in found if line.startswith(f"{key} ")]

    every = lines()
    assert all(named(key, every) for key in ("bn_groups", "queue_size", "momentum"))
    v3 = lines(dictionary="in_batch")
    assert named("queue_size", v3) == []
    assert named("momentum", v3) == ["momentum 0.99: MoCo v3's, which has no queue"]
    assert named("momentum", lines(dictionary="in_batch", key_encoder="shared")) == []
    masked = lines(pretext="masked")
    assert named("queue_size", masked) == named("momentum", masked) == []
    assert named("bn_groups", lines(model__name="vit_tiny")) == []


@pytest.mark.parametrize(
    ("sides", "size", "resize"),
    [
        ([28] * 5, 32, 32),
        ([60], 64, 64),
        ([100, 90, 2000], 96, 110),
        ([120], 128, 146),
        ([512], 224, 256),
        ([1], 32, 32),
        ([], 224, 256),
    ],
)
def test_sizes_follow_the_images(repository, sides, size, resize):
    config, _ = fit.fit(folder_config(repository), 100, sides, 1)
    assert (config.data.image_size, config.data.eval_resize) == (size, resize)


def test_eval_resize_follows_a_given_image_size(repository):
    config, lines = fit.fit(folder_config(repository, data__image_size=64), 100, [300], 1)
    assert config.data.eval_resize == 64
    assert any(line.startswith("  data.eval_resize 64: ") for line in lines)


def test_a_set_config_is_not_changed():
    config = config_lib.base()
    config.epochs = 1
    fitted, lines = fit.fit(config, 20, [32], 1)
    assert flatten(fitted) == flatten(config) and lines == []


@pytest.mark.parametrize("key", ["batch_size", "momentum", "data.image_size", "epochs"])
def test_none_is_an_error_where_the_experiment_does_not_leave_it_to_the_data(key):
    config = config_lib.base()
    config_lib.leave_to_data(config, [key])
    config.fits_data = False
    if key != "epochs":
        config.epochs = 1
    with pytest.raises(ValueError, match=f"{key}=None"):
        validation.check(config, 1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch_size=7", "batch_size=7 must be a multiple of the 8 devices"),
        ("momentum=2", "momentum=2.0 must lie between 0 and 1"),
        ("queue_size=0", "queue_size=0 must be a whole number"),
        ("bn_groups=3", "bn_groups=3 must be a multiple or a divisor of the 8 devices"),
        ("epochs=-1", "epochs=-1.0 must be a number above 0"),
    ],
)
def test_a_wrong_value_is_reported_before_the_images_are_listed(repository, argument, message):
    key, _, value = argument.partition("=")
    config = folder_config(repository, "/no/such/folder")
    config.update_from_flattened_dict({key: config.get_type(key)(value)})
    with pytest.raises(ValueError) as error:
        fit.prepared(config, 8)
    assert message in str(error.value)
    assert "1 problem:" in str(error.value)


def test_a_run_of_twenty_images_resumes_with_its_values(repository, tmp_path, capsys):
    images = write_images(tmp_path / "images", 20)
    config = folder_config(repository, images)
    config.update_from_flattened_dict(SHORT)
    config.views = (recipes.cifar(),) * 2  # compiled faster
    pretrain.pretrain(config, tmp_path / "w", devices=jax.devices()[:1])
    printed = capsys.readouterr().out
    assert "\nchosen for 20 images; --config.KEY=VALUE sets another value:\n" in printed
    assert "\n  batch_size 8: about an eighth of the images, 8 to 64\n" in printed
    begun = fit.recorded(tmp_path / "w")
    assert (begun["batch_size"], begun["queue_size"], begun["data.eval_resize"]) == (8, 8, 8)

    write_images(images, 400, start=20)
    config.update_from_flattened_dict({"steps": 4, "data.may_change": True})
    assert fit.fit(config, 420, [10], 1)[0].batch_size > 8
    state = pretrain.pretrain(config, tmp_path / "w", devices=jax.devices()[:1])
    assert int(state.step) == 4
    printed = capsys.readouterr().out
    assert "as in the checkpoint: data.eval_resize=8, batch_size=8, bn_groups=2" in printed
    now = fit.recorded(tmp_path / "w")
    assert {k: v for k, v in now.items() if now[k] != begun.get(k)} == {
        "steps": 4,
        "data.may_change": True,
    }


def test_a_resume_without_a_length_keeps_that_of_its_checkpoint(repository, tmp_path):
    config = folder_config(repository)
    taken, values = fit.take(config, {"epochs": None, "steps": 12, "momentum": 7.0})
    assert (taken.steps, taken.epochs, taken.momentum) == (12, None, None)
    assert values == {"steps": 12}


@pytest.fixture(scope="module")
def begun(repository, tmp_path_factory):
    """The images and the workdir of a run on 20 images."""
    folder = tmp_path_factory.mktemp("begun")
    images = write_images(folder / "images", 20)
    config = folder_config(repository, images)
    config.update_from_flattened_dict(SHORT)
    config.views = (recipes.cifar(),) * 2
    pretrain.pretrain(config, folder / "w", devices=jax.devices()[:1])
    return images, folder / "w"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, ["batch_size: 8 in the checkpoint, 12 now", "drop the flags"]),
        ({"queue_size": 16}, ["queue_size: 8 in the checkpoint, 16 now", "drop the flags"]),
        (
            {"batch_size": 24, "queue_size": 48},
            ["batch_size: 8 in the checkpoint, 24 now\n  queue_size: 8 in", "drop the flags"],
        ),
        ({"bn_groups": 5}, ["bn_groups=5", "The run in {} has ", "batch_size=8"]),
    ],
    ids=str,
)
def test_flags_that_differ_from_the_run_in_the_workdir(repository, begun, changes, message):
    images, workdir = begun
    config = folder_config(repository, images)
    config.update_from_flattened_dict(SHORT | changes)
    with pytest.raises(ValueError) as error:
        pretrain.pretrain(config, workdir, devices=jax.devices()[:1])
    for text in (*message, str(workdir), "another --workdir"):
        assert text.format(workdir) in str(error.value)


@pytest.mark.parametrize("number", [4, 30])
def test_other_images_under_the_same_default_workdir(
    repository, begun, tmp_path, monkeypatch, number
):
    images, workdir = begun
    monkeypatch.chdir(tmp_path)
    others = write_images(tmp_path / images.name, number, start=50)
    config = folder_config(repository, others)
    assert config.name == folder_config(repository, images).name
    config.update_from_flattened_dict(SHORT)
    with pytest.raises(ValueError) as error:
        pretrain.pretrain(config, workdir, devices=jax.devices()[:1])
    for text in (f"{number} images", str(images), str(others), str(workdir), "another --workdir"):
        assert text in str(error.value)


def test_a_path_with_a_comma_is_a_path(repository, tmp_path):
    for name in ("a,small", "b,c"):
        config = folder_config(repository, write_images(tmp_path / name, 1))
        assert config.data.path == str(tmp_path / name)
        assert config.model.name == "resnet50"
        small = folder_config(repository, f"{tmp_path / name},small")
        assert small.data.path == str(tmp_path / name) and small.model.name == "resnet10"
        assert small.name == config.name + "_small"
    with pytest.raises(ValueError, match="'smal' is no variant; allowed: .*b,c,small"):
        folder_config(repository, f"{tmp_path / 'b,c'},smal")


def test_weeks_on_a_cpu_are_said_with_the_command_for_a_small_network(repository):
    config, _ = fit.fit(folder_config(repository, "/my images"), 5_000, [500], 1)
    lines = cpu_time.warn(config, 20_000, "cpu")
    assert re.match(r"warning: on this CPU the run takes about \d+ (days|weeks): ", lines[0])
    command = "  python -m moco_jax.main --config='configs/folder.py:/my images,small'"
    assert lines[-1] == command
    assert cpu_time.warn(config, 20_000, "gpu") == []
    small, _ = fit.fit(folder_config(repository, "/my images,small"), 1_000, [500], 1)
    assert cpu_time.warn(small, total_steps(small, 1_000 // small.batch_size), "cpu") == []


def test_only_a_first_start_says_how_long_the_run_takes(monkeypatch):
    run = pretrain.build(tiny_config(), make_layout(), tiny_sources())
    monkeypatch.setattr(cpu_time, "warn", lambda config, steps, platform: [f"{steps} {platform}"])
    state = types.SimpleNamespace(step=0, params={})
    assert list(pretrain._introduce(run, state))[-1] == f"{len(run.order)} cpu"
    state.step = 3
    assert not list(pretrain._introduce(run, state))[-1].endswith("cpu")


def test_the_table_of_the_documentation_has_the_chosen_values(repository):
    text = (DOCS / "data.md").read_text()
    table = re.search(r"(?m)^\| images \|.*\n\|[-|]*\n((?:\|.*\n)+)", text)
    assert table
    header = [cell.strip() for cell in table[0].splitlines()[0].strip("|").split("|")][1:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]
    numbers = [int(number.replace(",", "")) for number in header]
    assert numbers == [20, 200, 5_000, 1_300_000]
    fitted = [flatten(fit.fit(folder_config(repository), n, [500], 1)[0]) for n in numbers]
    shown = {f"`{key}`": [f"{flat[key]:,g}" for flat in fitted] for key in DOCUMENTED}
    steps = [
        round(f["epochs"]) * (n // f["batch_size"]) for f, n in zip(fitted, numbers, strict=True)
    ]
    shown["steps"] = [f"{n:,}" for n in steps]
    assert {name: cells for name, *cells in rows} == shown


DOCUMENTED = ["batch_size", "bn_groups", "queue_size", "momentum", "epochs", "warmup_epochs"]
DOCUMENTED += ["knn.every_epochs"]


def test_a_plan_fits_the_number_of_training_images(repository):
    places = [Topology("h100", (n,)) for n in (1, 3)]
    config = folder_config(repository, "/no/such/folder")
    cases = planner.prepare(config, places, training_images=5_000)
    assert [case.config.batch_size for case in cases] == [64, 63]
    cases = planner.prepare(config, places[:1], images_per_chip=32, training_images=5_000)
    assert (cases[0].config.batch_size, cases[0].config.queue_size) == (32, 2048)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("moco_jax.data.preview", ["--images=1", "--draws=1", "--out={}/views.png"]),
        ("moco_jax.data.benchmark", ["--steps=1", "--seconds=0"]),
        ("moco_jax.ablate", ["--study=momentum", "--values=0.9", "--out={}/study"]),
        ("moco_jax.plan", ["--topology=h100:1", "--training_images=30"]),
    ],
)
def test_other_commands_fit_the_config_too(repository, tmp_path, module, arguments):
    images = write_images(tmp_path / "images", 30)
    small = [f"--config.{key}={value}" for key, value in SHORT.items()]
    arguments = [argument.format(tmp_path) for argument in arguments]
    done = run_command(
        repository, module, f"--config=configs/folder.py:{images}", *small, *arguments
    )
    assert done.returncode == 0, done.stderr
    if module != "moco_jax.data.preview":  # which needs the image size alone
        assert "chosen for 30 images;" in done.stderr
