"""Runs the paper's ablations: `python -m moco_jax.ablate`."""
