"""The parts of the references' pretraining checkpoints (MoCo v1, v2 and v3, MAE)."""

from typing import Any, NamedTuple

from moco_jax.models import vit
from moco_jax.weights.names import BATCH_NORM_MLP

QUERY, KEY = "encoder_q.", "encoder_k."


class Version(NamedTuple):
    """The names of one reference."""

    title: str
    query: str  # prefix of the query encoder's arrays
    key: str  # prefix of the key encoder's
    others: tuple[str, ...]  # the other parts


V2 = Version("MoCo v1 or v2", QUERY, KEY, ("queue", "queue_ptr"))
V3 = Version("MoCo v3", "base_encoder.", "momentum_encoder.", ("predictor",))
VERSIONS = (V2, V3)
MAE = Version("MAE", "", "", ())  # encoder and decoder have no prefix


def version_of(model: Any) -> Version:
    """Returns the reference that has the networks of a config's `model`."""
    return V3 if model.head == BATCH_NORM_MLP or model.name in vit.NETWORKS else V2


class Checkpoint(NamedTuple):
    """The content of a checkpoint of a reference."""

    source: str  # its path, for messages
    epoch: int  # epochs done; 0 if the checkpoint does not contain it
    arrays: dict[str, Any]  # by name, without DistributedDataParallel's `module.`
    optimizer: dict[str, Any]  # the state dict of torch's optimizer; {} if the checkpoint has none
    version: Version = V2

    @property
    def other_parts(self) -> list[str]:
        """The parts of the checkpoint besides the query encoder, its head and its predictor."""
        parts = {
            "the key encoder": encoder(self.arrays, self.version.key),
            "the queue": "queue" in self.arrays,
            "the optimizer": self.optimizer,
        }
        return [part for part, present in parts.items() if present]


def encoder(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the arrays of one encoder, such as `QUERY`, their names without the prefix."""
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}


def part(content: Any, key: Any) -> dict[str, Any]:
    """Returns a dict in a file's content; {} if it is not there."""
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def parameters(optimizer: dict[str, Any]) -> list[Any]:
    """Returns the numbers by which an optimizer's state dict names its parameters, in order."""
    groups = optimizer.get("param_groups")
    groups = [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []
    lists = [group.get("params") for group in groups]
    return [number for numbers in lists if isinstance(numbers, list) for number in numbers]
