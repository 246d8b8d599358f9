"""Plans a run for accelerators that this machine does not have: `python -m moco_jax.plan`."""
