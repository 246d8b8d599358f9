"""Computes random views of images on the accelerator."""
