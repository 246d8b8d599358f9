"""Layers with implementations and gradients of their own, chosen for each platform."""
