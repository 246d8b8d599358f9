"""Long dictionaries: InfoNCE with its gradient over K keys, by a matrix of logits and by a scan.

Command: python -m benchmarks.dictionary --sizes 65536 1048576 4194304

Each size and way runs in a process of its own; its peak memory, the ring included, is told beside
the compiler's figure for temporaries. The matrix is left out where it would not fit (--most).
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

from moco_jax.contrastive import negatives
from moco_jax.parallel.mesh import make_layout

_WAYS = {"matrix": negatives.plain, "scan": negatives.scanned}
_BATCH, _DIM, _T = 256, 128, 0.2


def measure(way: str, size: int, dtype: str, turns: int) -> str:
    """Returns a line: milliseconds of loss and gradient, temporaries and peak memory in MB."""
    layout = make_layout(jax.devices()[:1])
    ring = np.random.default_rng(0).standard_normal((size // _BATCH, _BATCH, _DIM), np.float32)
    ring /= np.linalg.norm(ring, axis=-1, keepdims=True)
    queries, ring = jnp.asarray(ring[0, ::-1]), jnp.asarray(ring, dtype)

    @jax.jit
    def step(queries, ring):
        return jax.value_and_grad(lambda q: _WAYS[way](q, ring, _T, layout).log_sum.mean())(queries)

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
        f"{size:9} {dtype:9} {way:7} {1e3 * statistics.median(times):10.1f} {temporaries:12.1f} "
        f"{peak:9}   {float(loss):.7f} {float(jnp.linalg.norm(gradient)):.7g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**16, 2**18, 2**20, 2**22])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--most", type=int, default=2**20, help="keys of the largest matrix")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, size, dtype = options.one
        print(measure(way, int(size), dtype, options.turns), flush=True)
        return
    print(f"B={_BATCH}, D={_DIM}, {jax.devices()[0].device_kind}, medians of {options.turns}")
    print("     keys dtype     way             ms temporaries MB   peak MB   loss, gradient's norm")
    for size in options.sizes:
        for dtype in options.dtypes:
            for way in _WAYS:
                if way == "scan" or size <= options.most:
                    command = [sys.executable, "-m", "benchmarks.dictionary", "--one", way]
                    turns = f"--turns={options.turns}"
                    subprocess.run([*command, str(size), dtype, turns], check=True)


if __name__ == "__main__":
    main()
