"""Weights of other projects, in and out: `python -m moco_jax.convert`."""
