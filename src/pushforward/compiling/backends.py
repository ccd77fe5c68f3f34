"""Backends: what runs a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, fx

from pushforward.compiling.calls import as_function
from pushforward.compiling.graphs import fold_constants
from pushforward.compiling.hyperbolic import expand_tanh
from pushforward.compiling.interleaved import join_interleaved
from pushforward.compiling.products import rewrite_products
from pushforward.compiling.straight import straight
from pushforward.errors import UnsupportedError, message
from pushforward.tape.private_compiler import static_like
from pushforward.tape.private_inductor import inductor, pays_in_cpp

Backend = Literal["inductor", "eager"]
BACKENDS = ("inductor", "eager")
Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def eager(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compute:
    """Return a function that calls one of PyTorch's functions after the other."""
    del inputs
    fold_constants(graph)
    function = as_function(graph)
    return (lambda tensors: graph(*tensors)) if function is None else function


def fused(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compute:
    """Return what Inductor makes of a graph: loops over several operators at a time, in C++ or Triton.

    Small programs, of which the loops would take less time than what is around them, are one function without loops.
    """
    try:
        if (function := straight(graph, inputs)) is not None:
            return function
        fold_constants(graph, are_loops=True)
        is_cpp = all(x.device.type == "cpu" for x in inputs) and pays_in_cpp(graph)
        rewrite_products(graph)
        join_interleaved(graph)
        expand_tanh(graph)
        with warnings.catch_warnings():  # that complex operators are not fused
            warnings.simplefilter("ignore")
            return inductor(graph, inputs, is_cpp)
    except Exception as error:
        raise UnsupportedError(
            message(
                "compile",
                "backend",
                f"'inductor', which failed: {type(error).__name__}: {str(error).splitlines()[:1]}",
                "a compiler that works, and operators that Inductor knows",
                "Use backend='eager', which needs neither.",
            )
        ) from error


MAKE: dict[str, Callable[[fx.GraphModule, Sequence[Tensor]], Compute]] = {
    "eager": eager,
    "inductor": fused,
}


def dynamic(graph: fx.GraphModule, captured: Sequence[Tensor], backend: str) -> Compute:
    """Return a function for a graph whose sizes are symbols."""
    if backend == "eager":
        return lambda tensors: graph(*tensors)
    inputs = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
    count = len(inputs) - len(captured)
    inputs[count:] = [static_like(x.detach(), inputs) for x in captured]
    return inductor(graph, inputs, False)
