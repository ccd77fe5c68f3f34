"""JAX, jitted: ``python -m peer_cases.with_jax PIPE CLOCK CORE`` serves who has the other end."""

import sys
from multiprocessing.connection import Connection

import jax
import jax.numpy as jnp
import numpy as np

from peer_cases.jax_nets import PROGRAMS as NETS
from peer_cases.jax_small import PROGRAMS as SMALL
from peer_cases.kinds import derivative, leaves
from peer_cases.serving import serve

jax.config.update("jax_enable_x64", True)


def ready(result):
    """Wait for what has been asked for."""
    for leaf in leaves(result):
        leaf.block_until_ready()


def main():
    connection = Connection(int(sys.argv[1]))
    workload = connection.recv()
    args = jax.tree.map(jnp.asarray, workload["args"])
    function = (SMALL | NETS)[workload["function"]](workload["data"])

    def warm_up():
        ready(jax.jit(jax.jacrev(lambda x: jnp.cumsum(jnp.sin(x) * x[::-1])))(jnp.ones(3)))

    def make():
        made = derivative(jax, jax.vmap, workload["kind"], function, workload["batch"])
        jitted = jax.jit(made)
        found = jitted(*args)
        ready(found)
        if hasattr(found, "block_until_ready"):
            return lambda: jitted(*args).block_until_ready(), arrays
        return lambda: jax.block_until_ready(jitted(*args)), arrays

    serve(connection, warm_up, make, sys.argv[2], int(sys.argv[3]))


def arrays(result):
    return [np.asarray(leaf) for leaf in leaves(result)]


if __name__ == "__main__":
    main()
