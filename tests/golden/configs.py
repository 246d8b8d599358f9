"""The shipped configs, shrunk to the recipes of the golden files."""

from ml_collections import ConfigDict

from configs import cifar10, imagenet, imagenet_mae, imagenet_v3


def v1() -> ConfigDict:
    """Returns the shipped config, shrunk to the recipe in generate.py."""
    c = shrink(imagenet.get_config("v1"), batch=64)
    c.epochs, c.queue_size = 5, 3 * 64
    return c


def v2() -> ConfigDict:
    c = shrink(imagenet.get_config("v2"), batch=32)
    c.epochs, c.queue_size = 4, 4 * 32
    c.model.stem = "small"
    return c


def cifar_symmetric() -> ConfigDict:
    c = shrink(cifar10.get_config("symmetric"), batch=32)
    c.epochs, c.queue_size = 3, 4 * 32
    return c


def end_to_end() -> ConfigDict:
    c = shrink(cifar10.get_config("end_to_end"), batch=32)
    c.epochs = 3
    return c


def simclr() -> ConfigDict:
    c = shrink(cifar10.get_config("simclr"), batch=32)
    c.epochs, c.bn_groups = 3, 8  # as in all other recipes; the shipped config has one group
    return c


def bank() -> ConfigDict:
    c = shrink(cifar10.get_config("memory_bank"), batch=32)
    c.epochs, c.bank.negatives = 3, 48
    return c


def bank_nce() -> ConfigDict:
    c = shrink(cifar10.get_config("instdisc"), batch=32)
    c.epochs, c.bank.negatives = 3, 48
    return c


def v3_resnet() -> ConfigDict:
    c = v3("r50")  # `small_resnet50` shortens its stages
    c.model.name = "resnet50"
    c.lr, c.weight_decay = 0.05, 1e-4
    return c


def v3_vit() -> ConfigDict:
    c = v3("vit_s")
    c.model.name, c.model.width = "vit_tiny", 1 / 16
    c.model.depth, c.model.patch = 2, 4
    c.adam_eps = 1e-5
    return c


def mae() -> ConfigDict:
    c = masked(imagenet_mae.get_config("vit_b"))
    c.decoder.depth = 2
    return c


def both() -> ConfigDict:
    c = masked(imagenet_v3.get_config("vit_b"))
    c.pretext, c.symmetric, c.decoder.depth = "both", False, 1
    return c


def both_symmetric() -> ConfigDict:
    c = masked(imagenet_v3.get_config("vit_b_masked"))
    c.symmetric, c.mask.normalize_pixels, c.decoder.depth = True, False, 2
    c.contrastive_weight, c.masked_weight, c.mask.fraction = 0.5, 2.0, 0.6
    return c


def masked(c: ConfigDict) -> ConfigDict:
    c = shrink(c, batch=32)
    c.model.name, c.model.width, c.model.heads = "vit_tiny", 1 / 12, 4
    c.model.depth, c.model.patch, c.model.hidden = 2, 4, 12
    c.decoder.dim, c.decoder.heads = 8, 2
    c.epochs, c.warmup_epochs, c.lr_update = 3, 1, "step"
    c.adam_eps = 1e-5
    return c


def v3(variant: str) -> ConfigDict:
    c = shrink(imagenet_v3.get_config(variant), batch=32)
    c.model.hidden = 12
    c.epochs, c.warmup_epochs, c.lr_update = 3, 1, "step"
    return c


def shrink(c: ConfigDict, batch: int) -> ConfigDict:
    c.model.name, c.model.width, c.model.dim = "resnet10", 1 / 32, 8
    c.data.image_size = 16
    c.batch_size = c.lr_batch = batch  # lr is then the recipe's, unscaled
    c.dtype = "float64"
    c.lr_update = "epoch"  # as in generate.py
    return c


CONFIGS = {
    f.__name__: f
    for f in (
        v1,
        v2,
        cifar_symmetric,
        end_to_end,
        simclr,
        bank,
        bank_nce,
        v3_resnet,
        v3_vit,
        mae,
        both,
        both_symmetric,
    )
}
