"""A program's function with what it captures, in a state that can be put back."""

from __future__ import annotations

import functools
import linecache
import re
import types
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from fuzz import reference
from fuzz.generate import namespace
from fuzz.prelude import one_of_those_alike, set_training
from fuzz.programs import Call, Program


class World:
    """A program's function with what it captures."""

    def __init__(self, program: Program, **libraries: Any) -> None:
        self.program = program
        self.env = namespace() | libraries
        self.declared = _compiled(program.declared(), f"<declarations {program.seed}>")
        name = f"<program {program.seed}>"
        text = program.function()
        if libraries.get("P") is reference:
            text = _without_out(text)
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(self.declared, self.env)
        exec(_compiled(text, name), self.env)
        self.own = {name: self.env[name] for name in program.captured()}

    def restart(self) -> None:
        """Make all that is captured anew."""
        exec(self.declared, self.env)
        self.own = {name: self.env[name] for name in self.program.captured()}

    def state(self) -> dict[str, Any]:
        """Return values of all that a call may change."""
        found: dict[str, Any] = {"s0": dict(self.env["s0"])}
        for name in self.program.captured():
            found[name] = self.env[name].detach().clone()
        for name in self.program.modules():
            module: nn.Module = self.env[name]
            found[name] = {k: v.clone() for k, v in module.state_dict().items()}
        return found

    def load(self, state: dict[str, Any]) -> None:
        self.env["s0"].clear()
        self.env["s0"].update(state["s0"])
        with torch.no_grad():
            # Of names of one tensor the first tells what is in it.
            for name, tensor in _each_once(self.program.captured(), self.env):
                if tensor.shape != state[name].shape or tensor.stride() != state[name].stride():
                    tensor.data = state[name].clone()  # it was given another shape
                else:
                    tensor.copy_(state[name])
            for name in self.program.modules():
                module: nn.Module = self.env[name]
                for key, value in state[name].items():
                    owner, _, buffer = key.rpartition(".")
                    held = module.get_submodule(owner)._buffers
                    if buffer in held and _is_other(held[buffer], value):
                        held[buffer] = value.clone()  # it was given another dtype
                module.load_state_dict(state[name])

    def prepare(self, call: Call, state: dict[str, Any]) -> None:
        """Bring the world to where a call starts."""
        self.env.update(self.own)
        self.load(state)
        if call.is_aliased:
            names = self.program.captured()
            self.env.update(zip(names, one_of_those_alike([*self.own.values()]), strict=True))
        self.env["s0"].update(call.state)
        set_training([self.env[m] for m in self.program.modules()], call.training)
        for line in call.arguments:
            exec(line, self.env)
        reference.restart()
        self.env["captured"] = [self.env[n] for n, _ in self.program.declarations if n[0] in "cm"]
        self.env["args"] = eval(self.program.packed(call.batch), self.env)
        torch.default_generator.manual_seed(0)

    def evaluate(self, expression: str, call: Call) -> Any:
        torch.set_default_dtype(getattr(torch, call.default_dtype))
        try:
            with torch.set_grad_enabled(call.grad), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return eval(expression, self.env)
        finally:
            torch.set_default_dtype(torch.float32)

    def ends(self) -> dict[str, Any]:
        """Return what a call leaves behind."""
        inputs = [_memory(x) for x in tree_flatten(self.env["args"])[0]]
        return self.state() | {"inputs": inputs, "random": torch.get_rng_state()}


def _is_other(x: torch.Tensor | None, value: torch.Tensor) -> bool:
    return x is None or x.dtype != value.dtype or x.shape != value.shape


@functools.lru_cache(16)
def _compiled(text: str, name: str) -> types.CodeType:
    return compile(text, name, "exec")


def _memory(x: torch.Tensor) -> torch.Tensor:
    """Return what lies in the memory of an input, which f may lay out anew."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).clone()


def _without_out(text: str) -> str:
    """Write ``out=``, which autograd does not follow, by other means."""
    text = re.sub(r"(v\d+ = torch\.\w+\(.*), out=torch\..*\)$", r"\1)", text, flags=re.M)
    text = re.sub(r"(torch\.\w+\(.*), out=(c\d+)\)$", r"\2.copy_(\1))", text, flags=re.M)
    return re.sub(r"(torch\.\w+\(.*), out=(v\d+)\)$", r"\2 = \1)", text, flags=re.M)


def _each_once(names: list[str], env: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return [*{id(env[name]): (name, env[name]) for name in reversed(names)}.values()]
