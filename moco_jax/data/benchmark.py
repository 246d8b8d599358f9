"""The command `python -m moco_jax.data.benchmark`; `moco_jax/input_benchmark.py` implements it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("moco_jax.input_benchmark", run_name="__main__")
