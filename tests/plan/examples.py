"""A forecast with numbers that are easy to check, and a config that compiles quickly."""

from moco_jax.data.augment import recipes
from moco_jax.plan.collectives import Array, Collective
from moco_jax.plan.forecast import Forecast
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology
from tests.tiny import tiny_config

GIB = 2**30


def example(**changes) -> Forecast:
    """Needs 1 + 5 x .5 + 8 + .5 GiB; at an MFU of .4 its 78.8 TFLOP take a second."""
    collectives = [
        Collective("all-reduce", (Array("f32", (25_000_000,)),), 1, ""),
        Collective("all-reduce", (Array("f32", (250,)),), 4, ""),
        Collective("all-to-all", (Array("bf16", (64, 224, 224, 3)),), 1, ""),
    ]
    facts = {
        "state_bytes": GIB,
        "batch_bytes": GIB // 2,
        "temporary_bytes": 8 * GIB,
        "code_bytes": GIB // 2,
        "flops": 78.8e12,
        "collectives": collectives,
        "compile_seconds": 83.4,
        "platform": "tpu",
    }
    return Forecast(Topology("v5e", (4, 4)), Program(**facts | changes), 1024, 0.4, 1_281_167)


def light_config(**changes):
    """Returns a config that only crops: colour operations take most of the compile time."""
    config = tiny_config(**changes)
    config.data.canvas = 16
    config.views = (recipes.cifar()[:1],) * 2
    return config
