"""Devices, processes and platforms: meshes, clusters and code that depends on the accelerator."""
