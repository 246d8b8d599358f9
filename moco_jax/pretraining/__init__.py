"""The pretraining task: MoCo and the other mechanisms, from a config to a trained encoder."""
