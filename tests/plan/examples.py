"""A forecast with numbers that are easy to check, and a config that compiles quickly."""

from moco_jax.data.augment import recipes
from moco_jax.plan.collectives import Array, Collective
from moco_jax.plan.forecast import Forecast, Run
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology
from tests.tiny import tiny_config

GIB = 2**30
RUN = Run(1024, 1_281_167, 125_100, "float32", streamed=True)  # 100 epochs


def example(**changes) -> Forecast:
    """Needs 1 + 5 x .5 + 8 + .5 GiB; at an efficiency of .5 its 750 M cycles take a second."""
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
        "bytes_moved": 300e9,
        "cycles": 750_000_000,
        "collectives": collectives,
        "compile_seconds": 83.4,
        "platform": "tpu",
    }
    return Forecast(Topology("v5e", (4, 4)), Program(**facts | changes), RUN, 0.5)


def light_config(**changes):
    """Returns a config that only crops: colour operations take most of the compile time."""
    config = tiny_config(**changes)
    config.data.canvas = 16
    config.views = (recipes.cifar()[:1],) * 2
    return config
