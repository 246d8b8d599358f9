"""Fits a config to its images: fills the keys that are None, and says what it chose and why.

The rule has two parts. From 131,072 images (twice the paper's queue) on, the values are those of
MoCo v2 on ImageNet. Fewer images get a shorter queue, a smaller batch and more epochs.
"""

import contextlib
import copy
import dataclasses
import pathlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from moco_jax.config import FITTED, RULES, base
from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.data.augment import view_size
from moco_jax.data.loading.loader import shorter_sides
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Source, Sources
from moco_jax.encoders.pretrained import PRETRAIN_KIND
from moco_jax.models.backbones import BACKBONES, STEMS
from moco_jax.models.encoder import has_batch_norm
from moco_jax.models.pretexts import effective
from moco_jax.parallel import cluster
from moco_jax.pretraining import validation
from moco_jax.training import checks
from moco_jax.training.batch_size import nearest_batch, power_of_two
from moco_jax.training.comparison import check_structure, differences
from moco_jax.training.flat_config import flatten
from moco_jax.training.integrity import checkpoint_files

PAPER_QUEUE = 65536
PAPER_IMAGES = 2 * PAPER_QUEUE  # from here on the paper's values: the queue is half an epoch
_LARGE_BATCH_IMAGES = 16384  # from here on the paper's batch
_SHORT_QUEUE = 4096  # longest one below PAPER_IMAGES, as in the CIFAR-10 demo of the authors
_STEPS = 20_000  # of a run at least ...
_MOST_EPOCHS = 2000  # ... if they are not more epochs than these
_PAPER_EPOCHS = 200
_WARMUP_EPOCHS = 5.0
_EVALUATIONS = 40  # of a run
_TRIAL_IMAGES = 10_000
_WIDTH = 80  # columns of a line that names many values


def open_keys(config: ConfigDict) -> list[str]:
    """Returns the keys that are None and that the config leaves to the images.

    `epochs` stands for the length of the run: it is one of them if `steps` is None too.
    """
    if not config.get("fits_data", False):
        return []
    absent = [key for key in FITTED if _get(config, key) is None]
    return [key for key in absent if key != "epochs" or config.steps is None]


def fit(
    config: ConfigDict, images: int, sides: Iterable[int], devices: int
) -> tuple[ConfigDict, list[str]]:
    """Returns the config with its open keys filled, and lines about them below a heading.

    A key without effect, such as `queue_size` without a queue, has no line.
    Values that are set stay, and the others are chosen to fit them. If no value is valid, as with
    fewer images than devices, the result is one that validation or the run refuses.

    Args:
      config: not changed; see `open_keys`.
      images: number of training images.
      sides: the shorter sides of some of them, in pixels.
      devices: number of devices that split the batch.
    """
    config, lines = copy.deepcopy(config), []
    open_now, known = set(open_keys(config)), _Known(images, list(sides), devices)
    for key, choose in _CHOICES.items():
        if key in open_now:
            value, why = choose(effective(config), known)
            config.update_from_flattened_dict({key: value})
            if why:
                lines.append(f"  {key} {_shown(value)}: {why}")
    if lines:
        lines.insert(0, f"chosen for {known.are}; --config.KEY=VALUE sets another value:")
    return config, lines


def fit_source(config: ConfigDict, source: Source, devices: int) -> tuple[ConfigDict, list[str]]:
    """Returns the config fitted to training images as process 0 sees them, and lines about it."""

    def measure() -> tuple[int, list[int]]:
        measured = "data.image_size" in open_keys(config)
        return len(source), shorter_sides(source, config.data) if measured else []

    images, sides = cluster.on_first(measure)
    return fit(config, images, sides, devices)


def trial(config: ConfigDict, devices: int) -> ConfigDict:
    """Returns a config fitted to imagined images: what is wrong with it is wrong with any."""
    return fit(config, _TRIAL_IMAGES, (), devices)[0]


def recorded(folder: str | pathlib.Path) -> dict[str, Any]:
    """Returns the recipe of the newest checkpoint in a workdir, {} without one."""
    checkpoints = pathlib.Path(folder).expanduser() / "checkpoints"
    return checkpoint_files.newest_recipe(checkpoints, PRETRAIN_KIND)


def take(config: ConfigDict, recipe: dict[str, Any]) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns the config with its open keys taken from a recipe, and these values."""
    config, taken = copy.deepcopy(config), {}
    for key in open_keys(config):
        for name in ("epochs", "steps") if key == "epochs" else (key,):
            value, rule = recipe.get(name), RULES.get(name, checks.positive)
            if value is not None and not rule(value):
                taken[name] = value
    config.update_from_flattened_dict(taken)
    return config, taken


def prepared(
    config: ConfigDict,
    devices: int,
    sources: Sources | None = None,
    folder: str | pathlib.Path | None = None,
    opened: Callable[[ConfigDict], Sources] = open_named,
    structure: tuple[str, ...] = (),
) -> tuple[ConfigDict, Sources | None, list[str]]:
    """Returns a config without open keys, validated, its images and lines about chosen values.

    Images are opened only if keys are open. A resumed run keeps the values of its checkpoint.

    Args:
      config: of the run.
      devices: number of devices that split the batch.
      sources: images; None opens those of the config if keys are open.
      folder: workdir of the run; None if there is none.
      opened: opens the images.
      structure: keys of which a resumed run can't change the value; see `comparison.Kind`.

    Raises:
      ValueError: for problems of the config or of the images, or if they don't fit the run in the
        workdir.
      OSError: for images that are absent or can't be read.
    """
    lines: list[str] = []
    resumed = contextlib.nullcontext()
    if folder is not None and open_keys(config):
        recipe = cluster.on_first(lambda: recorded(folder))
        config, taken = take(config, recipe)
        if taken:
            changed = differences(flatten(base()) | recipe, flatten(config))
            check_structure(pathlib.Path(folder), changed, structure)
            listed = ", ".join(f"{key}={_shown(value)}" for key, value in taken.items())
            found = f"as in the checkpoint: {listed}"
            lines = textwrap.wrap(found, _WIDTH, subsequent_indent="  ")
            resumed = _explained(f"The run in {folder} has {listed}")
            sources = opened(config) if sources is None else sources
            _check_batch(config, recipe, sources.train, folder)
    with resumed:
        if open_keys(config):
            validation.check(trial(config, devices), devices, warns=False)
            sources = opened(config) if sources is None else sources
            config, found = fit_source(config, sources.train, devices)
            lines += found
        validation.check(config, devices, warns=False)
    return config, sources, lines


@contextlib.contextmanager
def _explained(why: str) -> Iterator[None]:
    """Adds to a ValueError of the block where values come from that the user did not give."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}\n{why}. Give another --workdir for a new run.") from None


def _check_batch(
    config: ConfigDict, recipe: dict[str, Any], train: Source, folder: str | pathlib.Path
) -> None:
    """Raises a ValueError if the images of a resumed run are fewer than its batch."""
    batch = config.batch_size
    if checks.is_whole(batch) and len(train) < batch:
        raise ValueError(
            f"{train.name} has {len(train)} images, fewer than batch_size={batch} of the run in "
            f"{folder}, which has the images of {recipe.get('data.path') or 'another source'}. "
            "Give another --workdir for a new run."
        )


@dataclasses.dataclass(frozen=True)
class _Known:
    """What the choices depend on besides the config: the images and the devices."""

    images: int
    sides: Sequence[int]
    devices: int

    @property
    def are(self) -> str:
        return f"{self.images:,} image{'s' * (self.images != 1)}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _get(config: ConfigDict, key: str) -> Any:
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config[name]


def _given(value: Any) -> int | None:
    """Returns a value that is set and valid; validation names one that is not valid."""
    return int(value) if value is not None and checks.is_whole(value) else None


def _image_size(config: ConfigDict, known: _Known) -> tuple[int, str]:
    size, median = view_size.view_size(known.sides, _given(config.data.eval_resize))
    if median is None:
        return size, "the paper's; no image was measured"
    return size, f"nearest to {median:g} pixels, the median of the shorter sides"


def _eval_resize(config: ConfigDict, known: _Known) -> tuple[int, str]:
    size = _given(config.data.image_size) or view_size.SIZES[-1]
    whole = size <= view_size.SMALL
    why = "evaluation uses the whole centre square" if whole else "image_size x 256/224"
    return view_size.eval_resize(size), why


def _batch(config: ConfigDict, known: _Known) -> tuple[int, int]:
    """Returns the batch and its groups."""
    images, views = known.images, 2 if config.symmetric else 1
    target = 256 if images >= _LARGE_BATCH_IMAGES else min(64, power_of_two(images // 8, 8))
    spare = int(config.dictionary == "memory_bank")  # negatives come from other images
    queue = _given(config.queue_size) if config.dictionary == "queue" else None
    parts, normalises = _given(config.microbatches) or 1, has_batch_norm(config)
    # Without batch norm, the parts split the batch only.
    return nearest_batch(
        max(2, min(target, images // 2)),
        images - spare,
        known.devices if normalises else known.devices * parts,
        batch=_given(config.batch_size),
        groups=_given(config.bn_groups) if normalises else 1,
        parts=parts if normalises else 1,
        divides=0 if not queue or queue % views else queue // views,
    )


def _batch_size(config: ConfigDict, known: _Known) -> tuple[int, str]:
    size = _batch(config, known)[0]
    large = known.images >= _LARGE_BATCH_IMAGES
    few = "about half of the images, which are few" if size < 8 else ""
    why = "the paper's" if large else few or "about an eighth of the images, 8 to 64"
    return size, why + (f", on {known.devices} devices" if known.devices > 1 else "")


def _bn_groups(config: ConfigDict, known: _Known) -> tuple[int, str]:
    groups = _batch(config, known)[1]
    if not has_batch_norm(config):
        return groups, ""
    each = (_given(config.batch_size) or groups) // groups
    return groups, f"batch norm over {each} images each"


def _queue_size(config: ConfigDict, known: _Known) -> tuple[int, str]:
    keys = keys_per_step(config) if _given(config.batch_size) else 1
    size, why = _queue(keys, known)
    return size, why if config.dictionary == "queue" else ""


def _queue(keys: int, known: _Known) -> tuple[int, str]:
    if known.images >= PAPER_IMAGES:
        return _multiple(PAPER_QUEUE, keys), "the paper's"
    half = power_of_two(known.images // 2, 1)
    if keys > half:
        return keys, "the keys of one step, the shortest queue"
    if half > _SHORT_QUEUE:
        return _multiple(_SHORT_QUEUE, keys), f"the longest below {PAPER_IMAGES:,} images"
    return _multiple(
        half, keys
    ), "at most half of the images, so that few keys are of a query's own image"


def _momentum(config: ConfigDict, known: _Known) -> tuple[float, str]:
    value, why = _ema_momentum(config, known)
    return value, why if config.key_encoder == "momentum" else ""


def _ema_momentum(config: ConfigDict, known: _Known) -> tuple[float, str]:
    if known.images >= PAPER_IMAGES:
        return 0.999, "the paper's"
    if config.dictionary != "queue":
        return 0.99, "MoCo v3's, which has no queue"
    return 0.99, "less than the paper's 0.999, since the queue is short"


def _per_epoch(config: ConfigDict, known: _Known) -> int:
    return max(1, known.images // (_given(config.batch_size) or 1))


def _epochs(config: ConfigDict, known: _Known) -> tuple[float, str]:
    each = _per_epoch(config, known)
    needed = -(-_STEPS // each)
    needed = -(-needed // 10) * 10
    epochs = max(_PAPER_EPOCHS, min(_MOST_EPOCHS, needed))
    return float(epochs), f"{epochs * each:,} steps of {each:,} an epoch"


def _length(config: ConfigDict, known: _Known) -> float:
    """Returns the length of the run in epochs."""
    if config.steps is not None and not checks.positive(config.steps):
        return config.steps / _per_epoch(config, known)
    if config.epochs is not None and not checks.positive(config.epochs):
        return config.epochs
    return float(_PAPER_EPOCHS)


def _warmup(config: ConfigDict, known: _Known) -> tuple[float, str]:
    if known.images >= PAPER_IMAGES:
        return 0.0, "the paper's"
    most = round(_length(config, known) / 10, 3)
    return min(_WARMUP_EPOCHS, most), "epochs in which lr rises, at most a tenth of the run"


def _every_epochs(config: ConfigDict, known: _Known) -> tuple[float, str]:
    every = max(5.0, round(_length(config, known) / _EVALUATIONS, 1))
    return every, f"epochs between kNN evaluations, at most {_EVALUATIONS} a run"


def _stem(config: ConfigDict, known: _Known) -> tuple[str, str]:
    stems = BACKBONES[config.model.name].stems if config.model.name in BACKBONES else STEMS
    if "small" not in stems:
        return stems[0], f"of {config.model.name}"
    size = _given(config.data.image_size) or view_size.SIZES[-1]
    small = size <= view_size.SIZES[0]
    return "small" if small else "imagenet", f"for views of {size} pixels"


def _multiple(value: int, divisor: int) -> int:
    return max(divisor, value // divisor * divisor)


# In this order: a choice uses those before it.
_CHOICES: dict[str, Callable[[ConfigDict, _Known], tuple[Any, str]]] = {
    "data.image_size": _image_size,
    "data.eval_resize": _eval_resize,
    "model.stem": _stem,
    "batch_size": _batch_size,
    "bn_groups": _bn_groups,
    "queue_size": _queue_size,
    "momentum": _momentum,
    "epochs": _epochs,
    "warmup_epochs": _warmup,
    "knn.every_epochs": _every_epochs,
}
