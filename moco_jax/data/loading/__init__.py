"""Loads batches from a source onto the devices."""
