"""The batch that fits a small data set."""

import math


def remedy(
    images: int, groups: int, devices: int, *, queue: int = 0, views: int = 1, spare: int = 0
) -> str:
    """Returns what to do about a batch that is larger than the data set: flags that fit.

    Args:
      images: number of training images.
      groups: batch-norm groups that the config asks for; 1 if batch norm is frozen.
      devices: number of devices that split the batch.
      queue: keys in the queue, 0 without a queue.
      views: keys of an image in a step, with a queue.
      spare: number of images that must stay outside a batch.
    """
    found = largest_batch(images - spare, groups, devices)
    if found is None:
        of = f" on {devices} devices" if devices > 1 else ""
        return f"give more images: a run{of} needs at least {max(2, devices) + spare}"
    size, chosen = found
    flags = [f"--config.batch_size={size}"]
    if chosen != groups:
        flags.append(f"--config.bn_groups={chosen}")
    keys = size * views
    most = images // size * keys  # the keys of an epoch
    if queue and (queue % keys or queue > most):
        flags.append(f"--config.queue_size={max(keys, min(queue, most) // keys * keys)}")
    return f"give more images, or set {' '.join(flags)}"


def largest_batch(images: int, groups: int, devices: int) -> tuple[int, int] | None:
    """Returns the largest valid batch of at most `images` images, and its batch-norm groups.

    A batch is a multiple of the devices and of its groups, a group has 2 images or more, and the
    groups are a multiple or a divisor of the devices. The batch keeps its `groups` if it can, and
    has as many as fit otherwise. Returns None if no batch is valid.
    """
    for chosen in range(groups, 0, -1):
        multiple = math.lcm(chosen, devices)
        size = images // multiple * multiple
        if size >= 2 * chosen and (chosen % devices == 0 or devices % chosen == 0):
            return size, chosen
    return None


def nearest_batch(
    target: int,
    images: int,
    devices: int,
    *,
    batch: int | None = None,
    groups: int | None = None,
    parts: int = 1,
    divides: int = 0,
) -> tuple[int, int]:
    """Returns a valid batch that fits the images, and its batch-norm groups.

    The batch is near the target, and not above it where that can be. There are 2 to 8 groups of 8
    images where the batch allows it. If no batch is valid or fits the images, the result is one
    that a check refuses.

    Args:
      target: wanted number of images.
      images: largest number of images.
      devices: number of devices that split the batch.
      batch: the batch, if it is given.
      groups: the groups, if they are given.
      parts: that the batch is encoded in; each has whole groups and as many images of every device.
      divides: what the batch must divide if possible, such as the length of a queue; 0 for nothing.
    """
    split = devices * parts
    multiple = math.lcm(split, groups or 1)
    most = max(2 * target, 2 * (groups or 1), 2 * split, 2)
    batches = [batch] if batch else range(multiple, most + multiple, multiple)
    allowed = [groups] if groups else {*range(1, 17), devices, parts, split}
    found = [(b, g) for b in batches for g in allowed if _valid(b, g, devices, parts)]
    if not found:
        return batch or multiple, groups or parts

    def cost(candidate: tuple[int, int]) -> tuple:
        size, chosen = candidate
        away = abs(math.log(size / target)), abs(chosen - max(2, min(8, size // 8)))
        odd = bool(divides) and divides % size != 0
        return size > images, odd, chosen < 2, size > target, *away

    return min(found, key=cost)


def power_of_two(value: int, least: int) -> int:
    """Returns the largest power of two up to a value, but at least `least`."""
    return max(least, 1 << max(value, 1).bit_length() - 1)


def _valid(batch: int, groups: int, devices: int, parts: int) -> bool:
    fits = batch % (devices * parts) == 0 and batch % groups == 0 and batch // groups >= 2
    fits = fits and groups % parts == 0
    return fits and (groups % devices == 0 or devices % groups == 0)
