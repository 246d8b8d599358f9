"""Errors of JAX when it opens the devices of a machine."""

import os
import traceback

_OPENS = os.path.join("jax", "_src", "xla_bridge.py")  # the file of JAX that opens them


def not_opened(error: BaseException) -> bool:
    """Returns whether JAX raised an error because it can't open the devices."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith(_OPENS) and "backend" in frame.name for frame in frames)


def reason(error: BaseException) -> str:
    """Returns why: an AssertionError has no text, and means that there is no device."""
    text = str(error).strip() or "there is none of the kind that is asked for"
    return f"JAX can't open the devices: {text.splitlines()[0]}"


def advice() -> str:
    """Returns what to do."""
    found = "look at their driver and at the programs that use them"
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return f"this machine may not have what JAX_PLATFORMS={chosen} names; else {found}"
    return found
