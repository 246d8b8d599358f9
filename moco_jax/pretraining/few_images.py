"""Numbers above the number of images: errors and warnings, each with a value that fits."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.models.encoder import norm_groups
from moco_jax.training.batch_size import remedy


def check_batch(config: ConfigDict, name: str, images: int, devices: int) -> None:
    """Raises a ValueError with values that fit if a batch does not fit the training images."""
    bank = config.dictionary == "memory_bank"
    if images < config.batch_size:
        problem = f"fewer than batch_size={config.batch_size}"
    elif bank and images == config.batch_size:
        problem = "as many as batch_size; dictionary='memory_bank' takes negatives from the rest"
    else:
        return
    queue = config.queue_size if config.dictionary == "queue" else 0
    views = 2 if config.symmetric else 1
    groups = norm_groups(config) or 1
    advice = remedy(images, groups, devices, queue=queue, views=views, spare=int(bank))
    raise ValueError(f"{name} has {images} images, {problem}: {advice}")


def warnings(config: ConfigDict, images: int, devices: int) -> Iterator[str]:
    """Yields a warning for each number of negatives that is above the number of images."""
    if config.dictionary == "queue":
        keys = keys_per_step(config)
        most = images // config.batch_size * keys  # the keys of an epoch
        if config.queue_size > most:
            yield (
                f"warning: queue_size={config.queue_size} is more than the {most} keys of an epoch "
                f"of {images} images.\nEarlier keys of a query's own image are among its "
                f"negatives; without them: --config.queue_size={most}"
            )
    elif config.dictionary == "memory_bank":
        negatives = config.bank.negatives
        others = images - (config.batch_size if config.bank.loss == "info_nce" else 0)
        most = others // devices * devices
        if negatives > others:
            flag = f": --config.bank.negatives={most}" if most else ""
            yield (
                f"warning: bank.negatives={negatives} is more than the {others} images that they "
                f"are drawn from.\nAt most {most or others} can be different{flag}"
            )
