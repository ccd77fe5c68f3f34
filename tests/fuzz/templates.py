"""How templates are declared, and what they may ask for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Missing(Exception):
    """There is no operand of the kind that a template needs."""


@dataclasses.dataclass(frozen=True)
class Template:
    write: Callable[[Builder], str]
    family: str
    weight: float
    is_cut: bool
    is_random: bool


TEMPLATES: list[Template] = []


def step(
    weight: float = 1.0, *, is_cut: bool = False, is_random: bool = False
) -> Callable[[Callable[[Builder], str]], Callable[[Builder], str]]:
    """Declare a template. Its text is an expression, or statements where ``{0}``, ``{1}`` are new variables."""

    def declare(write: Callable[[Builder], str]) -> Callable[[Builder], str]:
        family = write.__module__.rpartition(".")[2]
        TEMPLATES.append(Template(write, family, weight, is_cut, is_random))
        return write

    return declare


def is_float(x: Tensor) -> bool:
    return x.is_floating_point()


class Builder:
    """What a template sees: the variables so far, with values, and a source of choices."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.env: dict[str, Any] = {}  # values by name
        self.names: list[str] = []  # of tensors, in order
        self.declarations: list[tuple[str, str]] = []
        self.counts: dict[str, int] = {}

    # ----- Names -----

    def new_name(self, letter: str) -> str:
        number = self.counts.get(letter, 0)
        self.counts[letter] = number + 1
        return f"{letter}{number}"

    def declare(self, letter: str, code: str) -> str:
        """Add something that stands outside the function; ``{0}`` is its name."""
        name = self.new_name(letter)
        code = code.replace("{0}", name)
        exec(code, self.env)
        self.declarations.append((name, code))
        return name

    # ----- Operands -----

    def one(self, *items: Any) -> Any:
        return self.choose.choice(items)

    def chance(self, probability: float) -> bool:
        return self.choose.random() < probability

    def number(self, low: float = -2.0, high: float = 2.0) -> str:
        return repr(round(self.choose.uniform(low, high), 2))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.env[name].shape)

    def dim(self, name: str) -> int:
        return self.env[name].dim()

    def axis(self, name: str) -> int:
        if not self.dim(name):
            raise Missing
        return self.choose.randrange(-self.dim(name), self.dim(name))

    def pick(self, where: Callable[[Tensor], bool] = lambda x: True) -> str:
        """Return a variable, late ones sooner than early ones."""
        fitting = [name for name in self.names if where(self.env[name])]
        if not fitting:
            raise Missing
        weights = [1 + 2 * i for i in range(len(fitting))]
        return self.choose.choices(fitting, weights)[0]

    def real(self, where: Callable[[Tensor], bool] = lambda x: True) -> str:
        return self.pick(lambda x: is_float(x) and where(x))

    def any(self, where: Callable[[Tensor], bool] = lambda x: True) -> str:
        return self.pick(lambda x: (is_float(x) or x.is_complex()) and where(x))

    def complex(self, where: Callable[[Tensor], bool] = lambda x: True) -> str:
        return self.pick(lambda x: x.is_complex() and where(x))

    def matrix(self, where: Callable[[Tensor], bool] = lambda x: True) -> str:
        return self.real(lambda x: x.dim() == 2 and where(x))

    def like(self, name: str) -> str:
        x = self.env[name]
        return self.pick(lambda y: y.shape == x.shape and y.dtype == x.dtype)

    def other(self, name: str) -> str:
        """Return a variable that broadcasts with another, or a constant."""
        x = self.env[name]

        def fits(y: Tensor) -> bool:
            if not (y.is_floating_point() or y.is_complex()):
                return False
            try:
                return len(torch.broadcast_shapes(x.shape, y.shape)) <= 4
            except RuntimeError:
                return False

        kind = self.choose.random()
        if kind < 0.15:
            return self.number()
        if kind < 0.3:
            return self.constant(tuple(x.shape), x.dtype)
        return self.pick(fits)

    def literal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> str:
        """Return the text of a tensor of given numbers."""
        size = torch.Size(shape).numel()

        def one() -> float | complex:
            number = round(self.choose.choice((-1, 1)) * self.choose.uniform(0.2, 1.7), 4)
            if dtype.is_complex:
                return complex(number, round(self.choose.uniform(-1.5, 1.5), 4))
            return number

        numbers = [one() for _ in range(size)]
        text = repr(numbers[0]) if shape == () else repr(numbers)
        made = f"torch.tensor({text}, dtype={dtype})"
        return made if len(shape) == 1 or shape == () else f"{made}.reshape({shape})"

    def constant(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> str:
        """Return a captured tensor, with a derivative at times; perhaps one that is there already."""
        there = [
            name
            for name, _ in self.declarations
            if name.startswith("c")
            and self.env[name].shape == torch.Size(shape)
            and self.env[name].dtype == dtype
        ]
        if there and self.chance(0.5):
            return self.choose.choice(there)
        made = self.literal(shape, dtype)
        kind = self.choose.random()
        if kind < 0.25:
            return self.declare("c", f"{{0}} = {made}.requires_grad_()")
        if kind < 0.32:
            return self.declare("c", f"{{0}} = torch.nn.Parameter({made})")
        if kind < 0.38 and len(shape) == 2:
            turned = self.literal((shape[1], shape[0]), dtype)
            return self.declare("c", f"{{0}} = {turned}.t()")
        return self.declare("c", f"{{0}} = {made}")
