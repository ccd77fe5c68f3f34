"""Calls of a program: by single and nested transforms, with changes in between."""

from __future__ import annotations

import dataclasses
import random

from fuzz import differences
from fuzz.inputs import Inputs
from fuzz.programs import Call

STATES = (
    {"a": False, "b": True, "number": 1.5, "times": 1},
    {"a": True, "b": True, "number": 0.5, "times": 2},
    {"a": True, "b": False, "number": -1.25, "times": 3},
    {"a": False, "b": False, "number": 2, "times": 0},
)


class Calls:
    """Makes the calls of one program."""

    def __init__(
        self,
        choose: random.Random,
        inputs: Inputs,
        declarations: list[tuple[str, str]],
        is_random: bool,
    ) -> None:
        self.choose, self.inputs = choose, inputs
        self.declarations, self.is_random = declarations, is_random

    def all(self) -> tuple[Call, ...]:
        choose = self.choose
        num_args = len(self.inputs.packing)
        usual = self.action(num_args)
        calls: list[Call] = []
        sizes, dtypes = dict(self.inputs.sizes), {}
        state = 0
        grad, default, training = True, "float32", True
        seed = choose.randrange(2**30)
        for number in range(choose.choice((5, 6, 8))):
            action, batch = usual
            change = choose.choice(
                ("values",) * 3
                + ("action",) * 3
                + ("state",) * 2
                + ("sizes", "dtype", "grad", "default", "training", "same", "argument")
            )
            if number < 3 and choose.random() < 0.7:  # until the function is trusted
                change = "values"
            if change == "action" or (number > 3 and choose.random() < 0.3):
                action, batch = self.action(num_args)
            if change == "state":
                state = choose.randrange(len(STATES))
            elif change == "sizes":
                sizes = (
                    dict(self.inputs.sizes)
                    if sizes != self.inputs.sizes
                    else sizes | {choose.choice("nmk"): choose.choice((1, 2, 3, 4))}
                )
            elif change == "dtype":
                dtypes = (
                    {}
                    if dtypes
                    else choose.choice(
                        ({"float64": "float32"}, {"float32": "float64"}, {"float64": "complex128"})
                    )
                )
            elif change == "grad":
                grad = not grad
            elif change == "default":
                default = "float64" if default == "float32" else "float32"
            elif change == "training":
                training = not training
            if change != "same":
                seed = choose.randrange(2**30)
            calls.append(
                Call(
                    action, self.inputs.arguments(seed, sizes, dtypes), dict(STATES[state]), grad, default, training,
                    batch, choose.random() < 0.3,
                )
            )  # fmt: skip
        return tuple(self.aliased(calls))

    def aliased(self, calls: list[Call]) -> list[Call]:
        """Let captured tensors be one object in some calls, and several in others."""
        if sum(name.startswith("c") for name, _ in self.declarations) < 2:
            return calls
        is_aliased, found = self.choose.random() < 0.3, []
        for call in calls:
            is_aliased ^= self.choose.random() < 0.15
            found.append(dataclasses.replace(call, is_aliased=is_aliased))
        return found

    def argnums(self, count: int, least: int = -1) -> str:
        options = [str(i) for i in range(least, count)] + [
            str(tuple(range(count))),
            str(tuple(range(count))),
        ]
        return self.choose.choice(options)

    def action(self, count: int) -> tuple[str, int]:
        """Return an expression of a transform, or of nested ones, and the number of vmaps in it."""
        choose = self.choose
        depth = choose.choice((1, 1, 1, 1, 1, 2, 2, 3))
        if depth == 1:
            return self.single(count), 0
        func, batch = "f", 0
        for level in range(depth):
            lib = choose.choice(("L", "L", "L", "T"))
            name = choose.choice(
                (
                    "jacfwd",
                    "jacrev",
                    "jacobian",
                    "hessian",
                    "grad",
                    "jvp",
                    "vjp",
                    "vmap",
                    "vmap",
                    "linearize",
                    "hvp",
                )
            )
            if name == "hessian" and (depth == 3 or level):
                name = "jacfwd"
            if name in ("jacobian", "linearize", "hvp"):
                lib = "L"
            if name == "vmap":
                lib = "V"
                func = f"V.vmap({func}, in_dims={choose.choice(('0', '0', str((0,) * count)))})"
                batch += 1
            elif name == "grad":
                func = f"{lib}.grad(total({func}), argnums={self.argnums(count)})"
            elif name == "jvp":
                func = f"(lambda *a: {lib}.jvp({func}, a, tangents(a))[1])"
            elif name == "vjp":
                func = f"(lambda *a: apply_vjp({lib}.vjp({func}, *a))[1])"
            elif name == "linearize":
                func = f"(lambda *a: apply_linear({lib}.linearize({func}, *a), a))"
            elif name == "hvp":
                func = f"(lambda *a: {lib}.hvp(total({func}), a, tangents(a))[1])"
            else:
                numbers = self.argnums(
                    count, 0 if lib == "T" else -1
                )  # torch.func.jacfwd gives zeros for -1
                func = f"{lib}.{name}({func}, argnums={numbers})"
        if "L." not in func:
            func = f"L.jacfwd({func})"
        return self.wrapped(f"{func}(*args)"), batch

    def single(self, count: int) -> str:
        choose = self.choose
        numbers = self.argnums(count)
        chunk = choose.choice(("", "", ", chunk_size=2"))
        text = choose.choice(
            (
                f"L.jacfwd(f, argnums={numbers}{chunk}{self.randomness()})(*args)",
                f"L.jacfwd(f, argnums={numbers}{self.randomness()})(*args)",
                f"L.jacrev(f, argnums={numbers}{chunk})(*args)",
                f"L.jacrev(f, argnums={numbers})(*args)",
                f"L.jacobian(f, argnums={numbers}{self.randomness()})(*args)",
                f"L.jacobian(f, argnums={numbers}, mode='cross'{self.randomness()})(*args)",
                f"L.value_and_jacobian(f, argnums={numbers}{self.randomness()})(*args)",
                f"L.hessian(total(f), argnums={numbers})(*args)",
                f"L.hessian(f, argnums={numbers})(*args)",
                "L.jvp(f, args, tangents(args))",
                "apply_vjp(L.vjp(f, *args))",
                f"L.grad(total(f), argnums={numbers})(*args)",
                f"L.grad_and_value(total(f), argnums={numbers})(*args)",
                "L.hvp(total(f), args, tangents(args))",
                "apply_linear(L.linearize(f, *args), args)",
            )
        )
        return self.wrapped(text)

    def randomness(self) -> str:
        return ", randomness='same'" if self.is_random else ""

    def wrapped(self, text: str) -> str:
        captured = [n for n, _ in self.declarations if n[0] in "cm"]
        if captured and differences.has(text) and self.choose.random() < 0.15:
            return f"backpropagated(lambda: {text}, captured)"
        return text
