"""What PyTorch's sides do with a workload: PyTorch's own, and ours. Each runs in a process forked for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.autograd import functional

import pushforward
from peer_cases import nets, small
from peer_cases.kinds import derivative, leaves
from peer_cases.serving import Prepared, serve
from peer_cases.workload import WORKLOADS, Workload

MODULES = (nets, small)  # which register their workloads

OURS = ("ours", "ours compiled, eager", "ours compiled")
SIDES = ("torch.func", "functional", "functional, vectorized", "torch.compile", *OURS)


class _Unsuitable(Exception):
    """The library has no such thing."""


def _by(library: Any) -> Callable[[Workload], Callable[..., Any]]:
    def make(w: Workload) -> Callable[..., Any]:
        kind = w.kind if hasattr(library, w.kind) or w.kind != "jacobian" else w.peer_kind
        return derivative(library, torch.func.vmap, kind, w.function, w.batch)

    return make


def _by_functional(is_vectorized: bool) -> Callable[[Workload], Callable[..., Any]]:
    return lambda w: _functional(w, is_vectorized)


def _functional(w: Workload, is_vectorized: bool) -> Callable[..., Any]:
    """Return the derivative by torch.autograd.functional, one sample after the other where it is mapped."""
    function = w.function
    if w.kind in ("jvp", "vjp", "hvp") and not is_vectorized:
        both = getattr(functional, w.kind)
        return lambda x, v: both(function, x, v) if w.kind == "jvp" else both(function, x, v)[1]
    if w.kind == "grad" and w.batch is None and not is_vectorized:
        return _with_tuples(function, lambda f, xs: functional.vjp(f, xs)[1])
    if w.kind == "hessian":
        options: dict[str, Any] = {"vectorize": is_vectorized}
        made: Callable[..., Any] = partial(functional.hessian, function, **options)
    elif w.kind in ("jacfwd", "jacrev", "jacobian"):
        kind = w.peer_kind if w.kind == "jacobian" else w.kind
        strategy = "forward-mode" if is_vectorized and kind == "jacfwd" else "reverse-mode"
        options = {"vectorize": is_vectorized, "strategy": strategy}
        made = _with_tuples(function, lambda f, xs: functional.jacobian(f, xs, **options))
    else:
        raise _Unsuitable
    if w.batch is None:
        return made
    if w.batch != (0,):
        raise _Unsuitable
    return lambda xs: torch.stack([made(x) for x in xs])


def _with_tuples(function: Any, transform: Any) -> Callable[..., Any]:
    """Give dictionaries as tuples."""

    def run(x: Any) -> Any:
        if not isinstance(x, dict):
            return transform(function, x)
        found = transform(lambda *xs: function(dict(zip(x, xs, strict=True))), tuple(x.values()))
        return dict(zip(x, found, strict=True))

    return run


def _compiled(compiler: Any, make: Callable[[Workload], Any]) -> Callable[[Workload], Any]:
    return lambda w: compiler(make(w))


_MAKE: dict[str, Callable[[Workload], Callable[..., Any]]] = {
    "torch.func": _by(torch.func),
    "functional": _by_functional(False),
    "functional, vectorized": _by_functional(True),
    "torch.compile": _compiled(torch.compile, _by(torch.func)),
    "ours": _by(pushforward),
    "ours compiled, eager": _compiled(
        lambda f: pushforward.compile(f, backend="eager"), _by(pushforward)
    ),
    "ours compiled": _compiled(pushforward.compile, _by(pushforward)),
}


def is_suitable(side: str, w: Workload) -> bool:
    """Tell whether a side has such a derivative."""
    try:
        return bool(_MAKE[side](w))
    except _Unsuitable:
        return False


def warm_up(sides: tuple[str, ...] = SIDES) -> None:
    """Differentiate other functions by all sides, so that what is imported or made at first use is.

    Compilers' precompiled headers are, too, of which each kind of graph has its own.
    """
    warnings.simplefilter("ignore")
    others = [  # numbers, loops, and loops with calls between them
        (lambda x: (x.sin() * x.flip(0)).cumsum(0), (3,)),
        (lambda x: x.sin() * x.flip(0), (64,)),
        (lambda x: (x @ x).sin() @ x, (16, 16)),
    ]
    for side in sides:
        for function, shape in others:
            made = _MAKE[side](Workload("", "jacrev", function, (), {}))
            for _ in range(3):
                made(torch.rand(shape))
    torch.compiler.reset()


def run(connection: Connection, side: str, name: str, clock: str, core: int) -> None:
    """Serve one side of one workload."""
    w = WORKLOADS[name]

    def warm() -> None:
        if (
            torch.cuda.is_available()
        ):  # where autograd has started threads, processes cannot be forked
            warm_up((side,))

    def make() -> Prepared:
        made, args = _MAKE[side](w), w.args
        return lambda: made(*args), _arrays

    serve(connection, warm, make, clock, core)


def _arrays(result: Any) -> list[np.ndarray]:
    return [leaf.detach().numpy().copy() for leaf in leaves(result)]
