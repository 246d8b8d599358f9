"""Momentum Contrast (MoCo) in JAX/Flax."""

__version__ = "0.1.0"
