"""Programs from seeds."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from fuzz import prelude, reference
from fuzz.calls import STATES, Calls
from fuzz.families import TEMPLATES
from fuzz.inputs import Inputs
from fuzz.objects import CUTTING, Functions, Modules
from fuzz.programs import NAMES, Program, Step
from fuzz.templates import Builder, Missing, Template

MAX_SIZE = 20  # elements of a value
MAX_VALUE = 50.0
MAX_OUTPUT = 8  # elements of one output


def namespace() -> dict[str, Any]:
    """Return what programs have in scope."""
    names = {name: getattr(prelude, name) for name in prelude.__all__}
    return names | {
        "torch": torch,
        "F": torch.nn.functional,
        "Functions": Functions,
        "Modules": Modules,
        "s0": {},
    }


class Generator:
    """Makes one program."""

    def __init__(self, seed: int, attempt: int) -> None:
        self.seed = seed
        self.choose = random.Random(f"{seed} {attempt}")
        self.builder = Builder(self.choose)
        self.builder.env.update(namespace(), P=reference)
        self.builder.env["s0"].update(STATES[0])
        self.steps: list[Step] = []
        self.inputs = Inputs(self.choose)
        # Families that this program likes, so that programs differ.
        self.taste = {t.family: self.choose.choice((0.2, 1, 1, 3)) for t in TEMPLATES}
        if self.choose.random() < 0.5:  # differences see all that such a program does
            self.taste["control"] *= 0.3
        self.has_cuts = self.choose.random() < 0.5
        self.has_draws = self.choose.random() < 0.15
        self.has_grad = self.choose.random() < 0.85  # what autograd refuses is not generated
        self.templates = [
            t
            for t in TEMPLATES
            if (self.has_cuts or not t.is_cut) and (self.has_draws or not t.is_random)
        ]
        self.weights = [t.weight * self.taste[t.family] for t in self.templates]

    # ----- Steps -----

    def attempt(self, template: Template) -> bool:
        """Write a step, if it runs and gives reasonable numbers."""
        b = self.builder
        num_declared = len(b.declarations)
        counts = dict(b.counts)
        new: list[str] = []
        before = {n: b.env[n] for n in b.names}
        saved = {n: b.env[n].detach().clone() for n in b.names}
        s0 = dict(b.env["s0"])
        try:
            code = template.write(b)
            if "{0}" not in code:
                code = f"{{0}} = {code}"
            for number in range(2):
                if f"{{{number}}}" in code:
                    name = b.new_name("v")
                    code = code.replace(f"{{{number}}}", name)
                    new.append(name)
            if "[0]" in code and any(
                not b.env[n].numel() for n in NAMES.findall(code) if n in before
            ):
                raise Missing  # PyTorch does not check indices of nothing
            if "_(" in code and any(
                _overlaps(b.env[n]) for n in NAMES.findall(code) if n in before
            ):
                raise Missing  # what a write does there is not defined
            versions = {n: before[n]._version for n in before}
            reference.restart()  # what was run before has no part in what is costly
            exec(code, b.env)
            for name in new:
                self.check(b.env[name])
            for name, value in before.items():
                is_same = b.env[name] is value and value._version == versions[name]
                if not is_same or ".data" in code or "numpy" in code:
                    self.check(b.env[name])
        except Exception:
            del b.declarations[num_declared:]
            b.counts = counts
            for name, value in before.items():
                b.env[name] = value
                if value._version != saved[name]._version:
                    self.undo(value, saved[name])
            b.env["s0"].clear()
            b.env["s0"].update(s0)
            torch.set_grad_enabled(self.has_grad)
            return False
        is_cut = template.is_cut or any(f"Functions.{name}" in code for name in CUTTING)
        self.steps.append(Step(code, tuple(new), template.family, is_cut, template.is_random))
        b.names += new
        return True

    def undo(self, value: Tensor, saved: Tensor) -> None:
        with torch.no_grad():
            try:
                value.copy_(saved)
            except RuntimeError:
                self.is_broken = True

    def check(self, value: Any) -> None:
        if (
            type(value) not in (Tensor, torch.nn.Parameter)
            or value.numel() > MAX_SIZE
            or value.dim() > 4
        ):
            raise Missing
        if not (value.is_floating_point() or value.is_complex()):
            raise Missing
        if not bool(value.isfinite().all()) or (
            value.numel() and float(value.detach().abs().max()) > MAX_VALUE
        ):
            raise Missing

    def body(self) -> None:
        b = self.builder
        self.is_broken = False
        self.leaves: list[Tensor] = []
        torch.set_grad_enabled(self.has_grad)
        for line in self.inputs.arguments(self.choose.randrange(2**30), self.inputs.sizes, {}):
            exec(line, b.env)
        for name, *_ in self.inputs.specs:
            leaf = b.env[name].detach().clone()
            self.leaves.append(leaf)
            b.env[name] = leaf.requires_grad_().clone() if self.has_grad else leaf
            b.names.append(name)
        length = self.choose.choice((5, 8, 12, 16, 20, 30, 40))
        for _ in range(4 * length):
            if len(self.steps) >= length or self.is_broken:
                break
            self.attempt(self.choose.choices(self.templates, self.weights)[0])
        torch.set_grad_enabled(True)

    # ----- Outputs -----

    def results(self) -> str:
        """Return the expression of the outputs."""
        b, choose = self.builder, self.choose
        is_active = (lambda n: b.env[n].requires_grad) if self.has_grad else (lambda n: True)
        fitting = [n for n in b.names if is_active(n)]
        count = choose.choice((1, 1, 1, 2, 3))
        late = fitting[-6:]
        chosen = choose.sample(late, min(count, len(late))) if late else ["x0"]
        if choose.random() < 0.1:
            chosen.append(choose.choice(b.names))
        texts = []
        for name in chosen:
            size = b.env[name].numel()
            if size > MAX_OUTPUT:
                texts.append(
                    choose.choice(
                        (f"{name}.sum(-1).flatten()[:4]", f"{name}.flatten()[:5]", f"{name}.sum()")
                    )
                )
            else:
                texts.append(name)
        style = choose.choice(("first", "tuple", "dict", "nested"))
        if len(texts) == 1 and style == "first":
            return texts[0]
        if style == "dict":
            return "{" + ", ".join(f"'{i}': {t}" for i, t in enumerate(texts)) + "}"
        if style == "nested":
            return f"[({', '.join(texts)},)]"
        return f"({', '.join(texts)},)"

    def can_go_back(self, program: Program) -> bool:
        """Tell whether autograd has a gradient of the outputs."""
        b = self.builder
        outputs = [b.env[n] for n in set(NAMES.findall(program.outputs)) if b.env[n].requires_grad]
        leaves = [leaf for leaf in self.leaves if leaf.requires_grad]
        try:
            found = torch.autograd.grad(
                outputs, leaves, [torch.ones_like(y) for y in outputs], allow_unused=True
            )
        except RuntimeError:
            return False
        return any(g is not None for g in found)

    def program(self) -> Program:
        given = self.inputs
        self.body()
        outputs = self.results()
        is_random = any(step.is_random for step in self.steps)
        calls = Calls(self.choose, given, self.builder.declarations, is_random).all()
        return Program(
            self.seed, tuple(s[0] for s in given.specs), given.parameters, given.unpacking, given.packing,
            tuple(self.builder.declarations), tuple(self.steps), outputs, calls,
        ).used()  # fmt: skip


def _overlaps(x: Tensor) -> bool:
    """Tell whether elements of a tensor lie in the same place."""
    size = (
        sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    )
    places = torch.arange(size).as_strided(x.shape, x.stride())
    return places.unique().numel() < x.numel()


def generate(seed: int) -> Program:
    """Return the program with a seed: most are such that autograd can go back over them."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)
    try:
        for attempt in range(4):
            generator = Generator(seed, attempt)
            program = generator.program()
            if attempt == 3 or not generator.has_grad or generator.can_go_back(program):
                return program
    finally:
        torch.set_grad_enabled(True)
    raise AssertionError
