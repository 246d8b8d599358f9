"""What every compiled program must satisfy, read from its text and its memory."""

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from moco_jax.plan.collectives import collectives, excess_image_moves
from moco_jax.plan.hardware import GIB, Chip
from moco_jax.plan.kernels import kernels

# Of a GPU's memory, what JAX takes.
_GPU_FRACTION = 0.75
_REUSED = 0.95  # least fraction of a donated state; a step counter may be copied
_CALLBACK = re.compile(
    r'custom_call_target="[^"]*callback[^"]*"|is_host_transfer=true', re.IGNORECASE
)
_PRODUCT = re.compile(
    r"stablehlo\.(?:dot_general|convolution).* : \((tensor<[^>]*>), (tensor<[^>]*>)\)"
)
_NAMES = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_NAMED = re.compile(r"loc\((#loc\d*)\)$")
# The operations of a bfloat16 run whose products are float32 by design.
_FLOAT32 = (
    *("bhcw,bxw->bhcx", "bhcx,bcyh->bycx"),  # crop and blur
    "bij,bjk->bik",  # hue
    *("bd,kd->bk", "bd,rnd->brn", "bf,hfc->bhc"),  # similarities, linear classifiers
    *("byxc,Yy->bYxc", "byxc,Xx->byXc", "/output/"),  # scores of pixels
)
# Numbers such as a learning rate. 0 and 1 are left: the compiler simplifies with them.
_NUMBER = re.compile(
    r"dense<(?!(?:[01]|[01]\.0+[eE]\+00)>)-?\d[\d.eE+-]*> : tensor<(f32|i32|ui32)>"
)


def fingerprint(text: str) -> str:
    """Returns the identity of a lowered program, whatever its single numbers are.

    Experiments that differ in their rates and numbers of epochs have the same program.
    """
    return hashlib.sha256(_NUMBER.sub(r"dense<n> : tensor<\1>", text).encode()).hexdigest()[:16]


def faults_of_text(
    text: str, *, shuffled: float, view: int, canvas: int, resident: int = 0
) -> Iterator[str]:
    """Yields what no compiled program may have: calls of the host, float64, moves of images.

    Args:
      text: `compiled.as_text()`.
      shuffled: views per device that it may move to other devices.
      view: side of a view, pixels; 0 if it has no images.
      canvas: side of an image from the host, pixels.
      resident: bytes of the images in device memory, which it must not copy; 0 without them.
    """
    for match in _CALLBACK.finditer(text):
        yield f"calls the host: {match[0]}"
    if " f64[" in text or "(f64[" in text:
        yield "has float64"
    if view:
        sides = {"view": view, "canvas": canvas}
        for move in excess_image_moves(collectives(text), images=shuffled, **sides):
            yield f"moves images: {move}"
    for kernel in kernels(text) if resident else ():
        if any(array.dtype == "u8" and array.bytes >= resident for array in kernel.results):
            yield f"copies all images: {kernel.name}"


def float32_products(text: str) -> list[str]:
    """Returns the products of a bfloat16 program with two float32 operands, but for those meant so.

    `text` is `lowered.as_text(debug_info=True)`; the products are named by their modules.
    """
    names, found = dict(_NAMES.findall(text)), []
    for line in text.splitlines():
        product = _PRODUCT.search(line)
        if product and all(operand.endswith("xf32>") for operand in product.groups()):
            at = _NAMED.search(line)
            name = names.get(at[1], "") if at else line
            if not any(meant in name for meant in _FLOAT32):
                found.append(name or line)
    return found


def usable_bytes(chip: Chip) -> float:
    """Returns the bytes of a chip that a program may take."""
    return GIB * (chip.usable_gib or _GPU_FRACTION * chip.memory_gib)


def faults_of_memory(memory: Any, state: Any, chip: Chip) -> Iterator[str]:
    """Yields what is wrong with a compiled program's memory: it must fit and reuse the state's."""
    if used_bytes(memory) > usable_bytes(chip):
        yield f"it needs {used_bytes(memory)} of {usable_bytes(chip):.0f} bytes"
    donated = bytes_on_device(state)
    if memory.alias_size_in_bytes < _REUSED * donated:
        yield f"{memory.alias_size_in_bytes} of {donated} bytes of the state are reused"


def used_bytes(memory: Any) -> int:
    """Returns the bytes on a device while a program runs, with its own."""
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    inside = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return memory.argument_size_in_bytes + outputs + inside


def bytes_on_device(arrays: Any) -> int:
    """Returns the bytes of a pytree of abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )
