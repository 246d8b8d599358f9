"""Plans a run for an accelerator that is not here: `python -m moco_jax.plan`."""
