"""Applies different implementations of a computation on CPUs, GPUs and TPUs.

`jax.lax.platform_dependent` does the same, but it leaves a conditional in the program until the
compiler removes the branches of other platforms. `by_platform` lowers one implementation only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir

_NAMES = {"cpu": "cpu", "tpu": "tpu", "cuda": "gpu", "rocm": "gpu"}  # JAX's platform -> argument

_primitive = Primitive("by_platform")
_primitive.multiple_results = True


def by_platform(
    *arrays: jax.Array,
    default: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    cuda: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
    tpu: Callable[..., Any] | None = None,
) -> Any:
    """Applies the implementation for the compilation target to the arrays; returns its result.

    Use it inside `jax.jit`; outside, every call compiles again. It has no gradient and no
    `jax.vmap` rule, so use it inside a `jax.custom_vjp` or where no gradient is taken. The
    implementations must not close over other arrays.

    Args:
      default: arrays -> a pytree of arrays; for platforms without an implementation of their own.
      cpu, cuda, gpu, tpu: for these platforms (gpu: CUDA without its own, and ROCm); must return
        the same shapes and dtypes as `default`.
    """
    # Traced once: the shapes are needed now, and accelerators mostly lower the default.
    traced, shapes = jax.make_jaxpr(default, return_shape=True)(*_shapes_of(arrays))
    leaves, tree = jax.tree.flatten(shapes)
    given = {"cpu": cpu, "cuda": cuda, "gpu": gpu, "tpu": tpu}
    functions = {name: _flat(function) for name, function in given.items() if function}
    # cuDNN's operations are lowered for several devices only if JAX finds them in a parameter.
    of_cuda = jax.make_jaxpr(cuda)(*_shapes_of(arrays)) if cuda else None
    found = _bind(arrays, leaves, jaxpr_as_fun(traced), of_cuda, **functions)
    return jax.tree.unflatten(tree, found)


def _bind(arrays, leaves, default, traced=None, **functions) -> list[jax.Array]:
    shapes = tuple(ShapedArray(leaf.shape, leaf.dtype) for leaf in leaves)
    return _primitive.bind(*arrays, shapes=shapes, default=default, traced=traced, **functions)


def materialized(arrays: Any, platforms: Sequence[str] = ("gpu",)) -> Any:
    """Returns a pytree of arrays that is written to memory and read where it is used.

    Otherwise XLA computes a cheap value again in every kernel that uses it, from several arrays, or
    stores a mask. GPU kernels are bound by memory, so both cost more than they save. On a TPU it
    would prevent the fusion of a convolution with the operations that follow.

    Args:
      platforms: arguments of `by_platform`; elsewhere the arrays are returned as they are.
    """
    leaves, tree = jax.tree.flatten(arrays)

    stored = dict.fromkeys(platforms, lambda *x: jax.lax.optimization_barrier(x))
    return jax.tree.unflatten(tree, _bind(leaves, leaves, lambda *x: x, **stored))


def _shapes_of(arrays: Sequence[jax.Array]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]


def _flat(function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    return lambda *arrays: jax.tree.leaves(function(*arrays))


@_primitive.def_impl
def _run(*arrays, **parameters):
    return jax.jit(functools.partial(_primitive.bind, **parameters))(*arrays)


@_primitive.def_abstract_eval
def _shapes(*arrays, shapes, **_):
    return shapes


def _lowering(platform: str):
    def choose(*arrays, shapes, traced, default, **others):
        general = others.get(_NAMES.get(platform, "default"), default)
        return others.get(platform, general)(*arrays)

    return mlir.lower_fun(choose, multiple_results=True)


mlir.register_lowering(_primitive, _lowering("any other"))
for _platform in _NAMES:
    mlir.register_lowering(_primitive, _lowering(_platform), platform=_platform)
