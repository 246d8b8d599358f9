"""Joins the cluster that JAX finds by itself, and prints who is there."""

import jax
from jax.experimental import multihost_utils

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize()
seen = multihost_utils.process_allgather(jax.numpy.array(jax.process_index()))
print(f"process {jax.process_index()} of {jax.process_count()} sees {seen.tolist()}")
