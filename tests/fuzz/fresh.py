"""The first call of a fresh process: what repeated calls, by what they have learnt, are to give, too.

A server is forked before anything was differentiated. For each call it forks itself; the child makes that call only.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import pushforward
from fuzz import torch_func
from fuzz.programs import Call, Program
from fuzz.world import World

SECONDS = 60  # for one call
Answer = tuple[str, Any]  # "result" and a tree, "error" and its text, or "died"


class Fresh:
    """The server."""

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = os.fork()
        if not self._process:
            self._pipe.close()
            try:
                _serve(theirs)
            finally:  # nothing of what the first process was about to do
                os._exit(0)
        theirs.close()

    def answer(
        self, program: Program, call: Call, state: dict[str, Any], factor: float = 1.0
    ) -> Answer:
        """Return what the call gives, of inputs times a factor."""
        self._pipe.send_bytes(pickle.dumps((program, call, state, factor)))
        return pickle.loads(self._pipe.recv_bytes())  # type: ignore[no-any-return]

    def close(self) -> None:
        self._pipe.close()
        os.waitpid(self._process, 0)


def _serve(pipe: Connection) -> None:
    while True:
        try:
            request = pickle.loads(pipe.recv_bytes())
        except (EOFError, KeyboardInterrupt):
            return
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            pipe.send_bytes(pickle.dumps(evaluated(*request)))
            return
        if os.waitpid(child, 0)[1]:
            pipe.send_bytes(pickle.dumps(("died", None)))


def evaluated(program: Program, call: Call, state: dict[str, Any], factor: float) -> Answer:
    """Make a call, in a world of its own."""
    pushforward.clear_plans()
    world = World(program, L=pushforward, T=torch_func, V=torch_func)
    world.prepare(call, state)
    if factor != 1:
        for x in tree_flatten(world.env["args"])[0]:
            if 0 not in x.stride():
                x.mul_(factor)
    try:
        result = world.evaluate(call.action, call)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    return "result", plain(result)


def plain(tree: Any) -> Any:
    return tree_map(lambda y: y.detach() if isinstance(y, Tensor) else y, tree)


def difference(ours: Answer, theirs: Answer, tolerance: float) -> str | None:
    """Return how two answers differ."""
    both = f"\nrepeated {ours[1]}\nfresh    {theirs[1]}"
    if ours[0] != theirs[0]:
        return f"{ours[0]} instead of {theirs[0]}{both}"
    if ours[0] == "error":
        return None  # places and numbers of elements may be named otherwise
    (mine, spec), (others, expected_spec) = tree_flatten(ours[1]), tree_flatten(theirs[1])
    if spec != expected_spec:
        return f"{spec} instead of {expected_spec}"
    scale = 1.0
    for b in others:
        if isinstance(b, Tensor) and b.numel():
            scale = max(scale, float(b.abs().nan_to_num(0, 0, 0).max()))
    for a, b in zip(mine, others, strict=True):
        if not isinstance(b, Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype}{tuple(a.shape)} instead of {b.dtype}{tuple(b.shape)}"
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return both
    return None
