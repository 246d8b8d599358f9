"""Writes moco_jax/check/references.json: python -m tests.check.make_references

Run it only after a change of the mechanisms in moco_jax/check/mechanisms.py. The step that it runs
must agree with PyTorch: pytest tests/golden.
"""

import json

import jax

from moco_jax.check import mechanisms
from moco_jax.check.mechanisms import Results
from moco_jax.parallel.mesh import make_layout


def computed(name: str) -> Results:
    """Returns the results of a mechanism in float64 on one device."""
    config = mechanisms.MECHANISMS[name]()
    config.dtype = "float64"
    with jax.enable_x64(True):
        return mechanisms.run(mechanisms.prepare(config, make_layout(jax.devices()[:1])))


if __name__ == "__main__":
    found = {name: list(computed(name)) for name in mechanisms.MECHANISMS}
    mechanisms.REFERENCES.write_text(json.dumps(found, indent=1) + "\n")
