"""Devices and processes: the mesh, multi-process set-up, asynchronous dispatch, platform code."""
