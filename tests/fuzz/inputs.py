"""Inputs of a program: dtypes, symbolic shapes, layouts, and the trees in which they come."""

from __future__ import annotations

import random

import torch

from fuzz.templates import Builder

DTYPES = ("float64",) * 7 + ("float32", "complex128", "mixed")


class Inputs:
    """What a program is called with."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        kind = choose.choice(DTYPES)
        kinds = ("float64", "float32", "complex128") if kind == "mixed" else (kind,)
        self.specs: list[tuple[str, str, tuple[str, ...], str]] = []
        for number in range(choose.choice((1, 1, 1, 2, 2, 3))):
            rank = (
                choose.choice((0, 1, 1, 1, 1, 2, 2, 2))
                if number
                else choose.choice((0, 1, 1, 2, 2, 3))
            )
            shape = tuple(choose.choice(("n", "n", "m", "k", "1")) for _ in range(rank))
            layout = choose.choice(
                ("plain",) * 6 + ("turned", "strided", "expanded", "offset", "alias")
            )
            if layout == "alias" and not number:
                layout = "plain"
            if layout == "alias":
                _, dtype, shape, _ = self.specs[-1]
            else:
                dtype = choose.choice(kinds)
            self.specs.append((f"x{number}", dtype, shape, layout))
        small = {
            "n": choose.choice((2, 2, 3)),
            "m": choose.choice((1, 2, 3)),
            "k": choose.choice((2, 2, 3, 4)),
            "1": 1,
        }
        if choose.random() < 0.05:
            small[choose.choice("nmk")] = 0
        self.sizes = small
        self.pack()

    def pack(self) -> None:
        """Decide in which trees the inputs come."""
        names = [name for name, *_ in self.specs]
        style = self.choose.choice(("flat", "flat", "flat", "dict", "list", "nested"))
        if style == "flat" or (style == "nested" and len(names) < 2):
            self.parameters = ", ".join(names)
            self.unpacking: tuple[str, ...] = ()
            self.packing: tuple[str, ...] = tuple(names)
            return
        self.parameters = "tree"
        if style == "dict":
            self.unpacking = tuple(f"{n} = tree['{n}']" for n in names)
            self.packing = ("{" + ", ".join(f"'{n}': {n}" for n in names) + "}",)
        elif style == "list":
            self.unpacking = tuple(f"{n} = tree[{i}]" for i, n in enumerate(names))
            self.packing = ("[" + ", ".join(names) + "]",)
        else:
            first, *rest = names
            self.parameters = f"{first}, tree"
            self.unpacking = tuple(f"{n} = tree['p'][{i}]" for i, n in enumerate(rest))
            self.packing = (first, "{'p': (" + ", ".join(rest) + ",)}")

    def arguments(
        self, seed: int, sizes: dict[str, int], dtypes: dict[str, str]
    ) -> tuple[str, ...]:
        """Return statements that make the inputs."""
        builder = Builder(random.Random(seed))
        lines = []
        for number, (name, dtype, axes, layout) in enumerate(self.specs):
            dtype = dtypes.get(dtype, dtype)
            shape = tuple(sizes[a] for a in axes)
            value = getattr(torch, dtype)
            if layout == "alias":
                before = self.specs[number - 1][0]
                lines.append(f"{name} = {before}")
            elif layout == "turned" and len(shape) > 1:
                made = builder.literal((*shape[:-2], shape[-1], shape[-2]), value)
                lines.append(f"{name} = {made}.mT")
            elif layout == "strided" and shape:
                made = builder.literal((*shape, 2), value)
                lines.append(f"{name} = {made}[..., 0]")
            elif layout == "expanded" and shape:
                made = builder.literal((1, *shape[1:]), value)
                lines.append(
                    f"{name} = {made}.expand{shape}"
                    if len(shape) > 1
                    else f"{name} = {made}.expand({shape[0]})"
                )
            elif layout == "offset" and shape:
                made = builder.literal((shape[0] + 1, *shape[1:]), value)
                lines.append(f"{name} = {made}[1:]")
            else:
                lines.append(f"{name} = {builder.literal(shape, value)}")
        return tuple(lines)
