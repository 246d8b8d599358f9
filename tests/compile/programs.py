"""The programs that the tasks and commands run, with abstract arguments, by experiment.

They are the functions of the product. Only the data set is not there.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from moco_jax.data.augment.views import make_view, make_views
from moco_jax.data.loading.resident import ResidentBatches
from moco_jax.data.loading.streamed import StreamedBatches
from moco_jax.encoders import logistic, neighbours
from moco_jax.encoders.features import make_encode
from moco_jax.health import monitor
from moco_jax.models.pretexts import contrasts
from moco_jax.parallel import notices
from moco_jax.parallel.mesh import Layout
from moco_jax.pretraining.method import make_method
from moco_jax.pretraining.monitors.drift import DriftMonitor
from moco_jax.pretraining.monitors.knn import make_pixels
from moco_jax.pretraining.run import make_run_step
from moco_jax.segmentation import segment
from moco_jax.supervised import accuracy, cached
from moco_jax.supervised import run as supervised
from moco_jax.training.compilation import FAST_COMPILE, abstract_state, jit_init
from tests.compile import checks, experiments
from tests.compile.experiments import BLOCKS, FORWARD_BLOCKS, IMAGES

CLASSES = 1000
SCENE = 500  # pixels, the longest side in PASCAL VOC
RESIDENT_IMAGES = 50_000  # as CIFAR-10 has
_SMALL = 64  # pixels: smaller images stay in device memory


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of the product and its abstract arguments.

    Attributes:
      function: jitted.
      arguments: abstract arrays.
      config: of the run, prepared.
      shuffled: views per device that the program may move to other devices.
      canvas: side of an image from the host, pixels.
      resident: bytes of the images in device memory; 0 without them.
      options: static arguments.
      state: the argument that is donated, or {}.
    """

    function: Any
    arguments: tuple[Any, ...]
    config: ConfigDict
    shuffled: float = 0.0
    canvas: int = 0
    resident: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state: Any = dataclasses.field(default_factory=dict)


def _arrays(tree: Any, sharding: NamedSharding) -> Any:
    """Returns abstract arrays with a sharding, of arrays or shapes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _array(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _data(config: ConfigDict, layout: Layout, canvas: int) -> tuple[Any, Any, Any]:
    """Returns the access to a data set, its arrays and a batch."""
    size, split, whole = config.batch_size, layout.sharded(), layout.replicated
    if config.data.image_size < _SMALL:
        images = _array((RESIDENT_IMAGES, canvas * canvas * 3), jnp.uint8, whole)
        arrays = {"images": images, "sizes": _array((RESIDENT_IMAGES, 2), jnp.int32, whole)}
        return ResidentBatches((canvas, canvas), layout), arrays, _array((size,), jnp.int32, split)
    batch = {
        "images": _array((size, canvas, canvas, 3), jnp.uint8, split),
        "sizes": _array((size, 2), jnp.int32, split),
        "indices": _array((size,), jnp.int32, split),
        "readable": _array((size,), jnp.bool_, split),
    }
    return StreamedBatches(), {}, batch


def _canvas(config: ConfigDict) -> int:
    size = config.data.image_size
    return size if size < _SMALL else config.data.canvas


def _pairs(config: ConfigDict, layout: Layout) -> tuple[Any, Any]:
    """Returns a batch of canvases uint8[B, C, C, 3] and of their sizes i32[B, 2]."""
    size, canvas, split = config.batch_size, _canvas(config), layout.sharded()
    return (
        _array((size, canvas, canvas, 3), jnp.uint8, split),
        _array((size, 2), jnp.int32, split),
    )


# Pretraining.


def pretraining_step(name: str, layout: Layout) -> Program:
    config = experiments.pretraining_config(name, layout.devices, BLOCKS)
    data, arrays, batch = _data(config, layout, _canvas(config))
    method = make_method(config, layout, IMAGES)
    step = make_run_step(config, data, method.train_step(), layout)
    state = method.abstract_state()
    arguments = (state, arrays, batch, notices.abstract(layout))
    shuffled = config.batch_size / layout.devices
    stored = checks.bytes_on_device(arrays.get("images"))
    return Program(step, arguments, config, shuffled, _canvas(config), stored, state=state)


def views(name: str, layout: Layout) -> Program:
    """Returns the augmentation of a pretraining experiment, as a program of its own."""
    config = experiments.pretraining_config(name, layout.devices)
    arguments = (jax.ShapeDtypeStruct((), jnp.int32), *_pairs(config, layout))
    return Program(
        layout.jit(make_views(config, layout)), arguments, config, canvas=_canvas(config)
    )


def features(name: str, layout: Layout) -> Program:
    """Returns the extraction of the features that kNN compares; embed runs it too."""
    config = experiments.pretraining_config(name, layout.devices)
    encoder = make_method(config, layout, IMAGES).encoder
    variables = _arrays(experiments.variables(config), layout.replicated)
    arguments = (variables, *_pairs(config, layout))
    function = make_encode(config, encoder, config.knn.features, layout)
    return Program(function, arguments, config, canvas=_canvas(config))


def health_codes(name: str, layout: Layout) -> Program:
    config = experiments.pretraining_config(name, layout.devices)
    encoder = make_method(config, layout, IMAGES).encoder
    variables = _arrays(experiments.variables(config), layout.replicated)
    function = monitor.make_encode(config, encoder, layout)
    return Program(function, (variables, *_pairs(config, layout)), config, canvas=_canvas(config))


def measures(name: str, layout: Layout) -> Program:
    """Returns the measures of health of a pretraining experiment."""
    config = experiments.pretraining_config(name, layout.devices)
    encoder = make_method(config, layout, IMAGES).encoder
    width = encoder.backbone.features
    dim = config.model.dim if contrasts(config) else width
    shapes = [(config.health.images, length) for length in (width, dim, dim)]
    parts = [_array(shape, jnp.float32, layout.replicated) for shape in shapes]
    return Program(monitor.make_measure(layout), tuple(parts), config)


def drift(name: str, layout: Layout) -> Program | None:
    """Returns the cosine of stored and current keys; None without old keys."""
    config = experiments.pretraining_config(name, layout.devices)
    method = make_method(config, layout, IMAGES)
    if method.config.dictionary == "in_batch" or not contrasts(config):
        return None
    data, arrays, batch = _data(config, layout, _canvas(config))
    function = DriftMonitor(method, data, None)._cosine
    arguments = (method.abstract_state(), arrays, batch, jax.ShapeDtypeStruct((), jnp.int32))
    return Program(function, arguments, config, config.batch_size / layout.devices, _canvas(config))


def pixels(name: str, layout: Layout) -> Program:
    """Returns the raw pixels that kNN is compared with."""
    config = experiments.pretraining_config(name, layout.devices)
    return Program(
        make_pixels(config, layout), ({}, *_pairs(config, layout)), config, canvas=_canvas(config)
    )


def initial(name: str, layout: Layout) -> Program:
    """Returns the state at step 0."""
    config = experiments.pretraining_config(name, layout.devices)
    method = make_method(config, layout, IMAGES)
    function = jit_init(method._init, method.abstract_state(), compiler_options=FAST_COMPILE)
    return Program(function, (), config)


def search(name: str, layout: Layout) -> Program:
    """Returns the nearest neighbours of a batch of queries: kNN and embed."""
    config = experiments.pretraining_config(name, layout.devices)
    width, k = make_method(config, layout, IMAGES).encoder.backbone.features, config.knn.k
    rows = neighbours._BLOCK_ROWS
    blocks = max(1, -(-config.knn.bank // (rows * layout.devices)))
    queries, whole = neighbours._QUERY_BATCH, layout.replicated
    arguments = (
        _array((queries, width), jnp.float32, whole),
        _array((queries,), jnp.int32, whole),
        _array((queries, k), jnp.float32, whole),
        _array((queries, k), jnp.int32, whole),
        _array((blocks, layout.devices, rows, width), jnp.float32, layout.sharded(axis=1)),
    )
    options = {"among": "all", "layout": layout}
    return Program(neighbours._search, (*arguments, 0, IMAGES), config, options=options)


def classifier(name: str, layout: Layout) -> Program:
    """Returns the linear classifier of the kNN monitor's features, by L-BFGS."""
    config = experiments.pretraining_config(name, layout.devices)
    width = make_method(config, layout, IMAGES).encoder.backbone.features
    return _fit(config, layout, config.knn.bank, width)


def _fit(config: ConfigDict, layout: Layout, rows: int, width: int) -> Program:
    split = layout.sharded()
    arguments = (
        _array((rows, width), jnp.float32, split),
        _array((rows,), jnp.int32, split),
        _array((rows,), jnp.float32, split),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    options = {"classes": CLASSES, "iterations": 100, "layout": layout}
    return Program(logistic._minimise, arguments, config, options=options)


# The linear protocol and fine-tuning.


def supervised_step(name: str, layout: Layout) -> Program:
    blocks = BLOCKS if experiments.config(name).task == "finetune" else FORWARD_BLOCKS
    begun = experiments.begun(name, layout, blocks)
    config = begun.config
    data, arrays, batch = _data(config, layout, _canvas(config))
    step, init, _ = supervised.make_program(
        begun, data, CLASSES, IMAGES // config.batch_size, layout
    )
    variables = _arrays(begun.variables, layout.replicated)
    state = abstract_state(init, layout.parameters, variables)
    arguments = (state, _labelled(arrays, layout), batch, notices.abstract(layout))
    mixed = config.task == "finetune" and (config.mixup or config.cutmix)
    moved = config.batch_size / layout.devices if mixed else 0.0
    stored = checks.bytes_on_device(arrays.get("images"))
    return Program(step, arguments, config, moved, _canvas(config), stored, state=state)


def _labelled(arrays: Any, layout: Layout) -> Any:
    images = RESIDENT_IMAGES if arrays else IMAGES
    return {"images": arrays, "labels": _array((images,), jnp.int32, layout.replicated)}


def supervised_test(name: str, layout: Layout) -> Program:
    """Returns the evaluation of the heads on a batch of test images."""
    begun = experiments.begun(name, layout)
    config = begun.config
    data, arrays, batch = _data(config, layout, _canvas(config))
    _, init, _ = supervised.make_program(begun, data, CLASSES, 1, layout)
    variables = _arrays(begun.variables, layout.replicated)
    state = abstract_state(init, layout.parameters, variables)
    real = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = (state.evaluated(), _labelled(arrays, layout), batch, real)
    count = accuracy.make_count(begun, data, layout)
    return Program(count, arguments, config, canvas=_canvas(config))


def supervised_view(name: str, layout: Layout) -> Program:
    """Returns the augmentation of a supervised experiment, as a program of its own."""
    config = experiments.begun(name, layout).config
    data = config.data
    draw = make_view(config.view, data.image_size, data.mean, data.std, jnp.dtype(config.dtype))
    key = jax.eval_shape(jax.random.key, 0)
    function = layout.jit(lambda *arguments: layout.shard(draw(*arguments)))
    return Program(function, (key, *_pairs(config, layout)), config, canvas=_canvas(config))


def cached_features(name: str, layout: Layout) -> Program:
    """Returns the features of the linear protocol with `cached`."""
    begun = experiments.begun(name, layout)
    variables = _arrays(begun.variables, layout.replicated)
    arguments = (variables, *_pairs(begun.config, layout))
    function = cached.make_features(begun, layout)
    return Program(function, arguments, begun.config, canvas=_canvas(begun.config))


def cached_fit(name: str, layout: Layout) -> Program:
    """Returns the fit of the linear protocol with `cached`."""
    begun = experiments.begun(name, layout)
    small = begun.config.data.image_size < _SMALL
    rows = (RESIDENT_IMAGES if small else IMAGES) // layout.devices * layout.devices
    return _fit(begun.config, layout, rows, begun.backbone.features)


# Segmentation.


def _scenes(config: ConfigDict, layout: Layout) -> dict[str, Any]:
    size, split = config.batch_size, layout.sharded()
    return {
        "images": _array((size, SCENE, SCENE, 3), jnp.uint8, split),
        "masks": _array((size, SCENE, SCENE), jnp.uint8, split),
        "sizes": _array((size, 2), jnp.int32, split),
        "indices": _array((size,), jnp.int32, split),
        "readable": _array((size,), jnp.bool_, split),
    }


def segmentation_step(name: str, layout: Layout) -> Program:
    begun = experiments.begun(name, layout)
    step, init, _ = segment.make_program(begun, StreamedBatches(), 661, layout)
    state = abstract_state(init, layout.parameters, _arrays(begun.variables, layout.replicated))
    arguments = (state, {}, _scenes(begun.config, layout), notices.abstract(layout))
    return Program(step, arguments, begun.config, canvas=SCENE, state=state)


def segmentation_test(name: str, layout: Layout) -> Program:
    """Returns the confusion matrix of a batch of test scenes."""
    begun = experiments.begun(name, layout)
    _, init, _ = segment.make_program(begun, StreamedBatches(), 1, layout)
    state = abstract_state(init, layout.parameters, _arrays(begun.variables, layout.replicated))
    real = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = (state.variables(), _scenes(begun.config, layout), real)
    count = segment.make_evaluation(begun, StreamedBatches(), layout)
    return Program(count, arguments, begun.config, canvas=SCENE)


_SUPERVISED = {"step": supervised_step, "test": supervised_test, "view": supervised_view}
# Task -> name -> (experiment, layout) -> the program, None where the experiment has none.
PROGRAMS: dict[str, dict[str, Callable[[str, Layout], Program | None]]] = {
    "pretrain": {
        "step": pretraining_step,
        "views": views,
        "features": features,
        "health": health_codes,
        "measures": measures,
        "drift": drift,
        "pixels": pixels,
        "search": search,
        "classifier": classifier,
        "initial": initial,
    },
    "linear": _SUPERVISED | {"features": cached_features, "fit": cached_fit},
    "finetune": _SUPERVISED,
    "segment": {"step": segmentation_step, "test": segmentation_test},
}
