"""The paper's ablations as one command: `python -m moco_jax.ablate`."""
