"""Multiplications and times of scalar codes: ``python benchmarks/scalar.py``.

A multiplication is counted as Graphax and AlphaGrad count: eliminating a vertex takes one for each pair of an edge that
enters and one that leaves it, whatever stands on them; outputs stay. What is multiplied by 1 or -1 costs us nothing,
but a sum of two products a call: so `jacobian` searches by "calls", products without units and sums.
Times are of repeated calls with numbers as arguments (an upper bound: the machine may do other things).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from scalar_codes.graphs import accumulation, calls, tensors
from scalar_codes.programs import SCALAR_CODES, ScalarCode
from timing import interleaved_medians

from pushforward import jacobian


def main() -> None:
    torch.set_num_threads(1)
    print(
        "multiplications  forward  reverse  Markowitz  AlphaGrad   ours     search   calls: forward  reverse  ours"
    )
    for name, code in SCALAR_CODES.items():
        graph, real = accumulation(code), calls(code)
        begin = time.perf_counter()
        order = graph.best()
        seconds = time.perf_counter() - begin
        vertices = graph.vertices
        print(
            f"{name:17}{graph.work(vertices):7}{graph.work(vertices[::-1]):9}{code.markowitz:11}{code.learned:11}"
            f"{graph.work(order):7}{seconds:9.2f} s{real.work(vertices):16}{real.work(vertices[::-1]):9}"
            f"{real.work(real.best()):6}"
        )
    print("\nµs a call           f  forward  reverse  cross  torch.func.jacfwd  torch.func.jacrev")
    for name, code in SCALAR_CODES.items():
        times = _times(code)
        print(f"{name:17}" + "".join(f"{1e6 * t:9.0f}" for t in times))


def _times(code: ScalarCode) -> list[float]:
    xs = tensors(code)
    argnums = tuple(range(len(xs)))
    modes = ("forward", "reverse", "cross")
    functions: list[Callable[..., Any]] = [code.func]
    functions += [jacobian(code.func, argnums, mode=mode) for mode in modes]
    functions += [torch.func.jacfwd(code.func, argnums), torch.func.jacrev(code.func, argnums)]
    thunks = [lambda f=f: f(*xs) for f in functions]
    for thunk in thunks:
        thunk()
    return interleaved_medians(thunks, seconds=1)


if __name__ == "__main__":
    main()
