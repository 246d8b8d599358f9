"""Measures time and memory of InfoNCE and its gradient over long queues, by a matrix and by a scan.

Command: python -m benchmarks.dictionary --sizes 65536 1048576 4194304

Prints one line for each number of keys, dtype and method: milliseconds, temporary memory as the
compiler reports it, peak memory of the process including the ring, loss and gradient norm. Each
line is measured in its own process. Sizes above --largest_matrix are measured with the scan only.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.contrastive import ring_scores
from moco_jax.parallel.mesh import make_layout

_METHODS = {"matrix": ring_scores.by_matrix, "scan": ring_scores.by_scan}
_BATCH, _DIM, _T = 256, 128, 0.2


def measure(method: str, size: int, dtype: str, turns: int) -> str:
    """Returns the printed line of one method, number of keys and dtype."""
    layout = make_layout(jax.devices()[:1])
    ring = np.random.default_rng(0).standard_normal((size // _BATCH, _BATCH, _DIM), np.float32)
    ring /= np.linalg.norm(ring, axis=-1, keepdims=True)
    queries, ring = jnp.asarray(ring[0, ::-1]), jnp.asarray(ring, dtype)

    @jax.jit
    def step(queries, ring):
        def mean(queries):
            return _METHODS[method](queries, ring, _T, layout).log_sum.mean()

        return jax.value_and_grad(mean)(queries)

    compiled = step.lower(queries, ring).compile()
    jax.block_until_ready(compiled(queries, ring))
    times = []
    for _ in range(turns):
        begun = time.perf_counter()
        loss, gradient = jax.block_until_ready(compiled(queries, ring))
        times.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return (
        f"{size:9} {dtype:9} {method:7} {1e3 * statistics.median(times):10.1f} {temporaries:12.1f} "
        f"{peak:9}   {float(loss):.7f} {float(jnp.linalg.norm(gradient)):.7g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**16, 2**18, 2**20, 2**22])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--largest_matrix", type=int, default=2**20, help="in keys")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        method, size, dtype = options.one
        print(measure(method, int(size), dtype, options.turns), flush=True)
        return
    print(f"B={_BATCH}, D={_DIM}, {jax.devices()[0].device_kind}, medians of {options.turns}")
    print("     keys dtype     method          ms temporaries MB   peak MB   loss, gradient norm")
    for size in options.sizes:
        for dtype in options.dtypes:
            for method in _METHODS:
                if method == "scan" or size <= options.largest_matrix:
                    command = [sys.executable, "-m", "benchmarks.dictionary", "--one", method]
                    turns = f"--turns={options.turns}"
                    subprocess.run([*command, str(size), dtype, turns], check=True)


if __name__ == "__main__":
    main()
