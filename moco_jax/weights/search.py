"""Finds the encoders in a file by their structure: a stem and blocks under any prefix.

The containers of a file become parts of the names: `state_dict.encoder_q.conv1.weight`. An encoder
is a prefix under which the first convolution and the names of blocks follow. Layers of a numbered
Sequential get torchvision's names; Hugging Face's ViTs get those of transformers 4, see
`huggingface.fused`.
"""

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from moco_jax.weights import huggingface
from moco_jax.weights.names import VITS
from moco_jax.weights.torch_files import ARRAYS
from moco_jax.weights.variables import Arrays, listed

# Of DataParallel, torch.compile and FSDP, anywhere in a name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"}

# An encoder of the first kind comes before one without such a word, and then the second kind.
_QUERIES = {"q", "query", "student", "online"}
_KEYS = {"k", "key", "momentum", "teacher", "target", "ema", "shadow", "averaged", "avg"}

_STEMS = {
    "torchvision": ("conv1.weight", r"layer\d\..*"),
    "huggingface": ("embedder.embedder.convolution.weight", r"encoder\.stages\.\d+\..*"),
    "vit": ("patch_embed.proj.weight", r"blocks\.\d+\..*"),
    "vit_conv": ("patch_embed.proj.0.weight", r"blocks\.\d+\..*"),
    "vit_huggingface": (
        "embeddings.patch_embeddings.projection.weight",
        r"(?:encoder\.layer|layers)\.\d+\..*",
    ),
}
_NUMBERED_STAGE = re.compile(r"(|.*\.)(\d+)\.0\.conv1\.weight")

# Modules beside the encoder's: heads, predictors and the parts of a method.
_HEADS = re.compile(
    r"(?!fc_norm$)(.*_)?(fc\d*|heads?|classifiers?|linear|proj|projector|projection|predictor|prediction"
    r"|neck|mlp|prototypes?|queue|momentum|teacher|target|ema|optimizer|pre_logits|pooler)(_.*)?"
)
# Beside a ViT: the decoder of a masked autoencoder, and the mask token of other methods.
_DECODER = re.compile(r"decoder(_.*)?|mask_token")


class Found(NamedTuple):
    """An encoder of a file."""

    prefix: str  # of its names; ends with a dot, or is empty
    naming: str  # a key of NAMINGS
    arrays: dict[str, Any]  # by the naming's names, without the prefix, in the file's order
    numbered: bool = False  # whether the file has numbers in place of the naming's names

    @property
    def shown(self) -> str:
        """The prefix for messages, as --prefix takes it."""
        return repr(self.prefix)


def flatten(content: Any) -> dict[str, Any]:
    """Returns the arrays of nested containers by their path, without the wrappers' names.

    A container that occurs twice counts once.

    Raises:
      ValueError: if two arrays have one path.
    """
    arrays, seen, left = {}, set(), [("", content)]
    while left:
        path, value = left.pop()
        if isinstance(value, ARRAYS):
            if path in arrays:
                raise ValueError(f"two arrays have the name {path}")
            arrays[path] = value
        elif isinstance(value, (dict, list)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inner = [(f"{path}.{key}" if path else str(key), item) for key, item in items]
            left.extend(reversed(inner))
    stripped = {name: strip_wrappers(name) for name in arrays}
    times = Counter(stripped.values())
    return {
        short if times[short := stripped[name]] == 1 else name: array
        for name, array in arrays.items()
    }


def strip_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def encoders(arrays: Arrays) -> list[Found]:
    """Returns the encoders in the arrays of `flatten`, in the file's order."""
    places = {}
    for naming, (stem, blocks) in _STEMS.items():
        with_blocks = set(_prefixes(rf"(|.*?\.){blocks}", arrays))
        for prefix in _prefixes(rf"(|.*\.){re.escape(stem)}", arrays):
            if prefix in with_blocks:
                places[prefix] = naming, None
    for prefix in _prefixes(_NUMBERED_STAGE.pattern, arrays):
        if prefix not in places and (names := _numbered_names(prefix, arrays)):
            places[prefix] = "torchvision", names
    found = []
    for prefix, (naming, names) in places.items():
        inside = [p for p in places if p != prefix and p.startswith(prefix)]
        own = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix) and not name.startswith(tuple(inside))
        }
        if names is not None:
            own = {_renamed(name, names): array for name, array in own.items()}
        elif naming == "vit_huggingface":
            own = huggingface.fused(own)
        elif naming == "torchvision" and not any(".downsample." in name for name in own):
            own = {name.replace(".shortcut.", ".downsample."): x for name, x in own.items()}
        found.append(Found(prefix, naming, own, names is not None))
    return found


def _prefixes(pattern: str, arrays: Arrays) -> list[str]:
    matches = (re.fullmatch(pattern, name) for name in arrays)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _numbered_names(prefix: str, arrays: Arrays) -> dict[str, str]:
    """Returns torchvision's names of a numbered Sequential's layers; {} if it is no ResNet.

    Its order is the stem's convolution and batch norm, others without arrays, four stages, and
    perhaps others and a linear layer.
    """
    modules: dict[int, set[str]] = {}
    for name in arrays:
        if name.startswith(prefix) and (match := re.match(r"(\d+)\.(.+)", name[len(prefix) :])):
            modules.setdefault(int(match[1]), set()).add(match[2])
    stages = sorted(n for n, names in modules.items() if "0.conv1.weight" in names)
    first, last = stages[0], stages[-1]
    stem = [n for n in sorted(modules) if n < first]
    shape = (
        arrays[f"{prefix}{stem[0]}.weight"].shape if stem and "weight" in modules[stem[0]] else ()
    )
    if len(shape) != 4 or stages != list(range(first, last + 1)):
        return {}
    names = {str(stem[0]): "conv1"} | {str(n): f"layer{n - first + 1}" for n in stages}
    if len(stem) == 2:
        names[str(stem[1])] = "bn1"
    after = [n for n in modules if n > last]
    return names | ({str(after[0]): "fc"} if len(after) == 1 else {})


def _renamed(name: str, names: dict[str, str]) -> str:
    first, dot, rest = name.partition(".")
    return names.get(first, first) + dot + rest


def choose(found: list[Found], wanted: str | None, path: Any) -> Found:
    """Returns the encoder that --prefix names, or else the one that the names' words choose.

    Raises:
      ValueError: if there is no such prefix, or the words do not choose one.
    """
    prefixes = ", ".join(one.shown for one in found)
    if wanted is not None:
        wanted = strip_wrappers(wanted.strip(".")) + "." if wanted.strip(".") else ""
        chosen = [one for one in found if one.prefix == wanted] or [
            one for one in found if wanted and one.prefix.endswith("." + wanted)
        ]
        if len(chosen) != 1:
            problem = "names several encoders" if chosen else "is not an encoder"
            raise ValueError(f"--prefix={wanted} {problem} of {path}; allowed: {prefixes}")
        return chosen[0]
    images = [one for one in found if _reads_images(one)] or found
    best = min(_rank(one.prefix) for one in images)
    chosen = [one for one in images if _rank(one.prefix) == best]
    if not all(_same(chosen[0], other) for other in chosen[1:]):
        raise ValueError(
            f"{path} contains several encoders, and their names do not choose one: {prefixes}; "
            "convert one with python -m moco_jax.convert "
            f"--prefix={chosen[0].prefix.rstrip('.')} ..."
        )
    return chosen[0]


def _reads_images(one: Found) -> bool:
    shape = one.arrays[_STEMS[one.naming][0]].shape
    return len(shape) == 4 and shape[1] == 3


def _rank(prefix: str) -> int:
    """Returns 0 for a query encoder, 1 for a name without such a word, 2 for a key encoder."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", prefix)}
    return 2 if words & _KEYS else 0 if words & _QUERIES else 1


def _same(one: Found, other: Found) -> bool:
    """Returns whether the arrays of two encoders are the same."""
    return one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(array, other.arrays[name])
        for name, array in one.arrays.items()
        if isinstance(array, np.ndarray)
    )


def without_heads(one: Found, *, keep: str = "") -> tuple[Found, list[str]]:
    """Returns the encoder without the modules of heads and counters beside it, and their names.

    Args:
      keep: a head that stays.
    """
    kept, out = {}, {}
    for name, array in one.arrays.items():
        module = name.partition(".")[0]
        counts = name == module and not array.shape  # such as AveragedModel's `n_averaged`
        if name == "embeddings.mask_token":  # Hugging Face's
            module = name
        masked = one.naming in VITS and decodes(module)
        if module != keep and (counts or masked or _HEADS.fullmatch(module)):
            out[one.prefix + module] = None
        else:
            kept[name] = array
    return one._replace(arrays=kept), list(out)


def decodes(module: str) -> bool:
    """Returns whether a module's path is that of a decoder of patches, or of its mask token."""
    return bool(_DECODER.fullmatch(module.rpartition(".")[2]))


def others(one: Found, arrays: Arrays) -> list[str]:
    """Returns the modules outside of an encoder, such as `state_dict.projector`."""
    modules = {}
    parts = one.prefix.split(".")[:-1]
    for name in arrays:
        if name.startswith(one.prefix):
            continue
        names = name.split(".")
        same = next(i for i in range(len(names)) if names[: i + 1] != parts[: i + 1])
        modules[".".join(names[: same + 1])] = None
    return list(modules)


def describe(one: Found, found: list[Found]) -> list[str]:
    """Returns lines that say which encoder is read and which others there are."""
    lines = []
    if one.prefix:
        lines.append(f"prefix {one.shown}")
    if one.numbered:
        lines.append("its layers have numbers; they are read in a ResNet's order")
    rest = [other.shown for other in found if other is not one]
    if rest:
        lines.append(f"other encoders, which convert --prefix=... reads: {listed(rest)}")
    return lines
