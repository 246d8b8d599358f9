"""An experiment of 8 pixels with the variants of the study of pretexts."""

from moco_jax import variants
from tests.tiny import tiny_config

VARIANTS = {
    "v3_vit": {},
    "mae": {"pretext": "masked"},
    "v3_mae": {"pretext": "both"},
    "deep": {"model.depth": 2},
    "large_batch": {"pretext": "masked", "batch_size": 64},
}


def get_config(variant: str = "v3_vit"):
    c = tiny_config(
        steps=4,
        model__name="vit_tiny",
        model__stem="patch",
        model__patch=4,
        model__depth=1,
        model__heads=2,
        model__head="mlp_bn",
        dictionary="in_batch",
        bn_groups=1,
        shuffle_bn=False,
        decoder__dim=16,
        decoder__depth=1,
        decoder__heads=2,
        warmup_epochs=1.0,
    )
    variants.apply(c, VARIANTS, variant)
    return c
