"""Converts weights from and to other projects: `python -m moco_jax.convert`."""
