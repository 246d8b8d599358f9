"""Computations that are written apart for CPUs, GPUs and TPUs, each where it pays.

`jax.lax.platform_dependent` does the same, but leaves a conditional in a program for one platform
until the compiler has seen that only one branch is taken; this leaves nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

_NAMES = {"cpu": "cpu", "tpu": "tpu", "cuda": "gpu", "rocm": "gpu"}

_primitive = Primitive("by_platform")
_primitive.multiple_results = True


def by_platform(
    *arrays: jax.Array,
    default: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
    tpu: Callable[..., Any] | None = None,
) -> Any:
    """Returns a function of arrays, in a program for each platform the one that is named after it.

    It belongs inside `jax.jit`: outside, every call compiles anew. It has no gradient and can't be
    mapped by `jax.vmap`, so it belongs inside a `jax.custom_vjp`, too, or where no gradient is
    taken. The functions see the outside by these arrays alone; they must not close over others.

    Args:
      *arrays: what each function is given.
      default: for platforms that are not named; arrays to a pytree of arrays.
      cpu: likewise, of the same results.
      gpu: likewise, for CUDA and ROCm.
      tpu: likewise.
    """
    results = jax.eval_shape(default, *arrays)
    leaves, tree = jax.tree.flatten(results)
    shapes = tuple(ShapedArray(leaf.shape, leaf.dtype) for leaf in leaves)
    given = {"default": default, "cpu": cpu, "gpu": gpu, "tpu": tpu}
    functions = {name: _flat(function) for name, function in given.items() if function}
    return jax.tree.unflatten(tree, _primitive.bind(*arrays, shapes=shapes, **functions))


def materialized(arrays: Any) -> Any:
    """Returns a pytree of arrays, which a GPU reads from memory where it is used.

    XLA computes what is cheap again in every kernel that uses it, from more arrays than one, or
    keeps a mask besides; on a GPU, whose kernels are bound by memory, both cost more than they
    save. TPUs fuse a convolution with what follows it, which this would keep them from.
    """
    leaves, tree = jax.tree.flatten(arrays)
    leaves = by_platform(
        *leaves, default=lambda *x: x, gpu=lambda *x: jax.lax.optimization_barrier(x)
    )
    return jax.tree.unflatten(tree, leaves)


def _flat(function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    return lambda *arrays: jax.tree.leaves(function(*arrays))


@_primitive.def_impl
def _run(*arrays, **parameters):
    return jax.jit(functools.partial(_primitive.bind, **parameters))(*arrays)


@_primitive.def_abstract_eval
def _shapes(*arrays, shapes, **_):
    return shapes


def _lowering(platform: str):
    def choose(*arrays, shapes, default, **others):
        return others.get(_NAMES.get(platform, "default"), default)(*arrays)

    return mlir.lower_fun(choose, multiple_results=True)


mlir.register_lowering(_primitive, _lowering("any other"))
for _platform in _NAMES:
    mlir.register_lowering(_primitive, _lowering(_platform), platform=_platform)
