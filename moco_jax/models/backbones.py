"""The backbones by name, over all families, and the interface that they have in common."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from moco_jax.models import resnet, vit


class Backbone(Protocol):
    """A Linen module that maps images to features.

    A backbone for segmentation also has `maps(images, *, train)`, the feature maps before pooling,
    their `stride` in pixels, and an attribute `dilated`.
    """

    @property
    def dtype(self) -> Any:
        """dtype of the computation."""
        ...

    @property
    def features(self) -> int:
        """F, length of the features."""
        ...

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the parameters of its blocks, in order."""
        ...

    @property
    def batch_norm(self) -> bool:
        """Whether its layers normalise over images, in `bn_groups` groups of the batch."""
        ...

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that get no gradient, which an optimizer must not decay."""
        ...

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the features f32[B, F] of images [B, H, W, 3]."""
        ...

    def init(self, rngs: Any, *args, **kwargs) -> Any: ...

    def apply(self, variables: Any, *args, **kwargs) -> Any: ...

    def clone(self, **updates) -> Any: ...


class Family(NamedTuple):
    """Backbones of one kind; the interface between this file and the file of a kind.

    Attributes:
      title: such as 'a ResNet'.
      names: of its networks, the values of `config.model.name`.
      make: (name, stem=, width=, its keys, bn_groups=, dtype=, remat=) -> the module.
      stems: the values of `config.model.stem`.
      keys: the keys of `config.model` that only this family reads, with the values that they have
        in a config that lacks them.
      problems: (module, image size in pixels or 0) -> what is wrong with them.
    """

    title: str
    names: tuple[str, ...]
    make: Callable[..., Backbone]
    stems: tuple[str, ...]
    keys: Mapping[str, Any]
    problems: Callable[[Any, int], Iterator[str]]


FAMILIES = (
    Family(
        "a ResNet",
        resnet.NAMES,
        resnet.resnet,
        resnet.STEMS,
        {"stem_init": "fan_out", "zero_init_residual": False},
        resnet.problems,
    ),
    Family(
        "a ViT",
        tuple(vit.NETWORKS),
        vit.vit,
        vit.STEMS,
        {
            "patch": 16,
            "heads": 0,
            "depth": 0,
            "pool": "cls",
            "positions": "sincos",
            "vit_init": "moco_v3",
            "freeze_patch": False,
            "drop_path": 0.0,
        },
        vit.problems,
    ),
)
# The values of `config.model.name`.
BACKBONES: dict[str, Family] = {name: family for family in FAMILIES for name in family.names}
STEMS = tuple(stem for family in FAMILIES for stem in family.stems)


def make_backbone(
    model: Any, *, bn_groups: int = 1, dtype: Any = jnp.float32, remat: bool = False
) -> Backbone:
    """Returns the backbone of a config's `model`; keys that it lacks have their defaults.

    Raises:
      ValueError: for an unknown name.
    """
    if model.name not in BACKBONES:
        close = difflib.get_close_matches(str(model.name), BACKBONES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown model.name {model.name!r}; {hint}allowed: {', '.join(BACKBONES)}"
        )
    family = BACKBONES[model.name]
    keys = {key: model.get(key, default) for key, default in family.keys.items()}
    options = {"bn_groups": bn_groups, "dtype": dtype, "remat": remat}
    return family.make(model.name, stem=model.stem, width=model.width, **keys, **options)


def problems(model: Any, image_size: int) -> Iterator[str]:
    """Yields what is wrong with a config's `model`, whose keys obey their rules one by one.

    Args:
      model: of a config. An unknown name yields nothing.
      image_size: pixels; 0 if it is not known.
    """
    if model.name not in BACKBONES:
        return
    family = BACKBONES[model.name]
    if model.stem not in family.stems:
        allowed = " or ".join(f"--config.model.stem={stem}" for stem in family.stems)
        yield f"model.stem={model.stem!r} is no stem of {family.title}, {model.name}: {allowed}"
        return
    for other in FAMILIES:
        for key, default in other.keys.items():
            value = model.get(key, default)
            if key not in family.keys and value != default:
                yield (
                    f"model.{key}={value!r} is a key of {other.title}, and model.name="
                    f"{model.name!r} is {family.title}: leave it at {default!r}, or choose "
                    f"{other.title}: --config.model.name={other.names[1]}"
                )
    yield from family.problems(make_backbone(model), image_size)
