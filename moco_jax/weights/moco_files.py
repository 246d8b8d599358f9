"""The parts of the reference's pretraining checkpoint (MoCo v1 and v2)."""

from typing import Any, NamedTuple

QUERY, KEY = "encoder_q.", "encoder_k."


class Checkpoint(NamedTuple):
    """The content of a checkpoint of the reference."""

    source: str  # its path, for messages
    epoch: int  # epochs done; 0 if the checkpoint does not contain it
    arrays: dict[str, Any]  # by name, without DistributedDataParallel's `module.`
    optimizer: dict[str, Any]  # the state dict of torch's SGD; {} if the checkpoint has none

    @property
    def other_parts(self) -> list[str]:
        """The parts of the checkpoint besides the query encoder."""
        parts = {
            "the key encoder": encoder(self.arrays, KEY),
            "the queue": "queue" in self.arrays,
            "the optimizer": self.optimizer,
        }
        return [part for part, present in parts.items() if present]


def encoder(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the arrays of one encoder (`QUERY` or `KEY`), their names without the prefix."""
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
