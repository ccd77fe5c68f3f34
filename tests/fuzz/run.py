"""Running a program: each call by pushforward and by the reference, and what else has to be as plain calls leave it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import pushforward
from fuzz import differences, reference
from fuzz import torch_func as torch_transforms
from fuzz.comparing import compare, compare_ends
from fuzz.fresh import Answer, Fresh, difference
from fuzz.fresh import plain as as_plain
from fuzz.programs import Call, Program
from fuzz.world import World

# The last two: constants of the default dtype, and a slope that PyTorch's kernel has as a float32.
SINGLE = re.compile(r"float32|float\(\)|complex64|torch\.ones\(\(|hardsigmoid")
IGNORED = re.compile(r"no_grad|set_grad_enabled")
FORWARD = re.compile(r"T\.(jacfwd|jvp|hessian)")
NORMS = re.compile(r"_norm\(|nn\.\w*Norm|TransformerEncoder")
DOUBLE_TOLERANCE, SINGLE_TOLERANCE, DIFFERENCE_TOLERANCE = 1e-10, 3e-4, 2e-5
# What docs/reference/differences.md says is refused.
REFUSED = (
    "once_differentiable",
    "mode='cross'",
    "more than one element of the written-to tensor",  # that PyTorch allows some, and deprecates it
    "had to be run twice",
    "as_strided of an input",
    "memory around an input",
    "random operation while in randomness error mode",
    "torch.utils.checkpoint below a transform",
    "has as another argument, too",
)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A difference, or a crash."""

    kind: str
    call: int
    details: str


class Skip(Exception):
    """A call cannot be judged, for a reason."""


class Runner:
    """Runs one program."""

    def __init__(
        self, program: Program, skips: collections.Counter[str], fresh: Fresh | None
    ) -> None:
        self.program, self.skips, self.fresh = program, skips, fresh
        self.ours = World(program, L=pushforward, T=torch_transforms, V=torch_transforms)
        self.first = self.ours.state()
        self.num_compared = 0
        self.refusal: str | None = None  # of autograd, in the last call
        self.costly: set[str] = set()  # actions that took the reference too long once

    def run(self) -> Failure | None:
        for number, call in enumerate(self.program.calls):
            try:
                failure = self.call(number, call)
            except Skip as reason:
                self.skips[str(reason)] += 1
                continue
            finally:
                if "T." in call.action or "V." in call.action:
                    self.ours.restart()  # torch.func leaves its tensors in buffers
            if failure is not None:
                return failure
        return None

    def world(self, library: Any, call: Call, state: dict[str, Any]) -> World:
        inner = reference if library is not torch_transforms else torch_transforms
        world = World(self.program, L=library, T=library, V=library, P=inner)
        world.prepare(call, state)
        return world

    def call(self, number: int, call: Call) -> Failure | None:
        state = self.ours.state() if call.keeps_state else self.first
        if self.fresh is not None:
            failure = self.against_fresh(self.fresh, number, call, state)
            if failure is not None:
                return failure
        plain = self.plain(call, state)
        expected, tolerance = self.expected(call, state)
        self.ours.prepare(call, state)
        required = [self.ours.env[c].requires_grad for c in self.program.captured()]
        try:
            actual = self.ours.evaluate(call.action, call)
        except Exception as error:
            return self.judge(number, call, state, error)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return Failure("functorch's stack", number, "")
        if plain is not None and self.ours.env["s0"].get("calls") != plain["s0"].get("calls"):
            raise Skip(
                "known: a function that does something new, once it is trusted, is run twice"
            )
        self.num_compared += 1
        wrong = compare(
            actual,
            expected,
            tolerance,
            "T." not in call.action and tolerance != DIFFERENCE_TOLERANCE,
        )
        if wrong is not None:
            if tolerance == DIFFERENCE_TOLERANCE and not _is_finite(actual):
                raise Skip("autograd refuses, and the slope of a factor is not finite")
            if self.is_ill_conditioned(call, state, expected, tolerance):
                raise Skip("ill-conditioned")
            if self.is_right_by_differences(call, state, actual):
                raise Skip("autograd is wrong, and ours agrees with differences")
            if self.is_torch_alike(call, state, actual):
                raise Skip("torch.func has the same difference")
            if plain is None and "s0['calls']" in self.program.function():
                raise Skip("known: a function that counts its calls, and may be run twice")
            return Failure(wrong[0], number, wrong[1])
        if plain is not None:
            wrong = compare_ends(self.ours.ends(), plain)
            if wrong is not None:
                return Failure(wrong, number, "")
        if [self.ours.env[c].requires_grad for c in self.program.captured()] != required:
            return Failure("history left on a captured tensor", number, "")
        return None

    def against_fresh(
        self, fresh: Fresh, number: int, call: Call, state: dict[str, Any]
    ) -> Failure | None:
        """Compare with the first call of a fresh process, also where no reference can judge."""
        self.ours.prepare(call, state)
        actual: Answer
        try:
            actual = "result", as_plain(self.ours.evaluate(call.action, call))
        except Exception as error:
            actual = "error", f"{type(error).__name__}: {error}"
        if "T." in call.action or "V." in call.action:
            self.ours.restart()
        theirs = fresh.answer(self.program, call, state)
        if "died" in theirs or "had to be run twice" in str(actual[1]):
            self.skips["no answer to compare with that of a fresh process"] += 1
            return None
        tolerance = SINGLE_TOLERANCE if self.is_single(call) else DOUBLE_TOLERANCE
        wrong = difference(actual, theirs, tolerance)
        if wrong is not None and "s0['calls']" in self.program.function():
            raise Skip("known: a function that counts its calls, and may be run twice")
        if wrong is not None and any(known in str(theirs[1]) for known in REFUSED):
            raise Skip(
                "known: what is refused is not always seen in functions that were called before"
            )
        if wrong is None:
            self.skips["compared with a fresh process"] += 1
            return None
        delta = 1e-6 if tolerance == SINGLE_TOLERANCE else 1e-13
        for factor in (1 - delta, 1 + delta):
            nudged = fresh.answer(self.program, call, state, factor)
            if difference(nudged, theirs, tolerance / 20) is not None:
                self.skips["ill-conditioned"] += 1
                return None
        return Failure("repeated calls give something else", number, wrong)

    def plain(self, call: Call, state: dict[str, Any]) -> dict[str, Any] | None:
        """Call f alone; return what it leaves behind, None where transforms may call it otherwise."""
        world = self.world(reference, call, state)
        if re.search(r"\d\.as_strided", self.program.function()) and any(
            call.batch or 0 in x.stride() for x in tree_flatten(world.env["args"])[0]
        ):
            raise Skip("as_strided of an input that is expanded, or where others are beside it")
        if "V." in call.action:
            return None
        before = world.ends()["inputs"]
        try:
            value = world.evaluate("f(*args)", dataclasses.replace(call, grad=False))
        except Exception as error:
            raise Skip(f"the plain call raises {type(error).__name__}") from None
        for y in tree_flatten(value)[0]:
            if not (y.is_floating_point() or y.is_complex()):
                raise Skip("an output is not a float")
            if not bool(y.isfinite().all()):
                raise Skip("a value is not finite")
            if y.numel() > 40:
                raise Skip("an output is large")
        ends = world.ends()
        if any(0 in x.stride() for x in tree_flatten(world.env["args"])[0]) and not all(
            map(torch.equal, before, ends["inputs"])
        ):
            raise Skip("a write to an expanded input, deprecated by PyTorch")
        if _has_alias(call) and not all(map(torch.equal, before, ends["inputs"])):
            raise Skip("a write to inputs that share memory")
        return ends if not {"T.", "V."} & set(re.findall(r"[TV]\.", call.action)) else None

    def expected(self, call: Call, state: dict[str, Any]) -> tuple[Any, float]:
        """Return the reference's result, and how closely to compare."""
        if IGNORED.search(self.program.function()) and FORWARD.search(call.action):
            raise Skip("torch.func's forward mode ignores no_grad")
        if (
            NORMS.search(self.program.declared() + self.program.function())
            and _order(call.action) > 2
        ):
            raise Skip("autograd's third derivatives of norms are wrong")
        if "logcumsumexp" in self.program.function() and _order(call.action) > 1:
            raise Skip("autograd's second derivatives of logcumsumexp are wrong")
        if call.action in self.costly:
            raise Skip("too costly")
        world = self.world(reference, call, state)
        is_single = self.is_single(call)
        self.refusal = None
        try:
            expected = world.evaluate(call.action, call)
        except RuntimeError as error:
            if (
                self.program.is_cut
                or not differences.has(call.action)
                or is_single
                or self.program.is_random
            ):
                raise Skip(f"autograd refuses: {str(error)[:50]}") from None
            self.refusal = str(error)[:60]
            if _has_ties(call):
                raise Skip("autograd refuses, and differences at ties are others") from None
            expected = self.by_differences(call, state)
            return expected, DIFFERENCE_TOLERANCE
        except reference.TooCostly:
            self.costly.add(call.action)
            raise Skip("too costly") from None
        except (IndexError, TypeError, ValueError, AssertionError) as error:
            raise Skip(f"autograd refuses: {type(error).__name__}: {str(error)[:50]}") from None
        before = state | {"s0": state["s0"] | call.state}
        if "V." in call.action and compare_ends(world.state(), before) is not None:
            raise Skip("state that changes under vmap")
        if not _is_finite(expected):
            raise Skip("the reference is not finite")
        return expected, SINGLE_TOLERANCE if is_single else DOUBLE_TOLERANCE

    def is_single(self, call: Call) -> bool:
        text = self.program.declared() + self.program.function() + "".join(call.arguments)
        return SINGLE.search(text) is not None

    def is_torch_alike(self, call: Call, state: dict[str, Any], actual: Any) -> bool:
        """Tell whether torch.func gives the same all by itself, or where it takes part, below autograd."""
        if "V." not in call.action and "T." not in call.action and _is_finite(actual):
            return False
        is_asked = False
        for world in self.worlds_of_torch(call, state):
            try:
                result = world.evaluate(call.action, call)
            except Exception:
                continue
            is_asked = True
            if compare(_finite(actual), _finite(result), SINGLE_TOLERANCE, False) is None:
                return True
        if _is_finite(actual) or (is_asked and "L.jacobian(" not in call.action):
            return False
        return self.is_right_in_reverse(call, state)

    def is_right_in_reverse(self, call: Call, state: dict[str, Any]) -> bool:
        """Tell whether ours is right in reverse mode: forward mode meets 0 · nan at kinks, as torch.func's does."""
        backward = re.sub(r"L\.(jacfwd|jacobian)\(", "L.jacrev(", call.action)
        backward = re.sub(r", mode='\w+'", "", backward)
        if backward == call.action:
            return False
        expected, tolerance = self.expected(call, state)
        self.ours.prepare(call, state)
        actual = self.ours.evaluate(backward, call)
        return compare(actual, expected, tolerance, False) is None

    def worlds_of_torch(self, call: Call, state: dict[str, Any]) -> Iterator[World]:
        """Return worlds where torch.func does all, or what it does in the call, if that is below autograd."""
        yield self.world(torch_transforms, call, state)
        if re.fullmatch("L+[TV]+", "".join(re.findall(r"\b([LTV])\.\w+\(", call.action))):
            below = {"T": torch_transforms, "V": torch_transforms, "P": torch_transforms}
            world = World(self.program, L=reference, **below)
            world.prepare(call, state)
            yield world

    def is_right_by_differences(self, call: Call, state: dict[str, Any], actual: Any) -> bool:
        """Tell whether the outermost derivative is right by differences of what is within it."""
        if self.program.is_cut or self.program.is_random or self.is_single(call):
            return False
        outer = dataclasses.replace(call, action=re.sub(r"\b[LT]\.", "D.", call.action, count=1))
        try:
            expected = self.by_differences(outer, state)
        except Skip:
            return False
        return compare(actual, expected, DIFFERENCE_TOLERANCE, False) is None

    def by_differences(self, call: Call, state: dict[str, Any]) -> Any:
        results = []
        for step in (1e-5, 3e-5):
            world = self.world(reference, call, state)
            library = differences.Library(step, functools.partial(_again, world, call, state))
            world.env["D"] = library
            if "D." not in call.action:
                world.env["L"] = library
            try:
                results.append(world.evaluate(call.action, call))
            except Exception as error:
                raise Skip(f"differences: {type(error).__name__}") from None
        if compare(*results, DIFFERENCE_TOLERANCE, False) is not None:
            raise Skip("differences do not converge")
        return results[0]

    def check_reference(self, number: int, call: Call) -> bool | None:
        """Compare the reference's Jacobian with differences; None where they cannot be compared."""
        if self.program.is_cut or self.program.is_random or self.is_single(call) or call.batch:
            return None
        if _has_ties(call):
            return None
        count = len(self.program.packing)
        jacobian = dataclasses.replace(
            call, action=f"L.jacrev(f, argnums={tuple(range(count))})(*args)"
        )
        try:
            expected, tolerance = self.expected(jacobian, self.first)
            if tolerance == DIFFERENCE_TOLERANCE:
                return None
            return (
                compare(
                    expected, self.by_differences(jacobian, self.first), DIFFERENCE_TOLERANCE, False
                )
                is None
            )
        except Skip:
            return None

    def is_ill_conditioned(
        self, call: Call, state: dict[str, Any], expected: Any, tolerance: float
    ) -> bool:
        """Tell whether the reference's result changes as much when its inputs change by rounding."""
        if tolerance == DIFFERENCE_TOLERANCE:
            return False
        delta = 1e-6 if tolerance == SINGLE_TOLERANCE else 1e-13
        for sign in (1, -1):
            world = self.world(reference, call, state)
            for x in tree_flatten(world.env["args"])[0]:
                x = x if x.is_contiguous() or 0 not in x.stride() else x[:1]
                x.mul_(1 + sign * delta)
            try:
                other = world.evaluate(call.action, call)
            except Exception:
                return True
            if compare(other, expected, tolerance / 20, False) is not None:
                return True
        return False

    def judge(
        self, number: int, call: Call, state: dict[str, Any], error: Exception
    ) -> Failure | None:
        """Say whether a crash is one that PyTorch has, too, or that the documents announce."""
        text = f"{type(error).__name__}: {error}"
        for known in REFUSED:
            if known in text:
                raise Skip(f"refused: {known}")
        alike = "inplace" if self.refusal and "inplace" in self.refusal + text else self.refusal
        if alike is not None and alike in text:
            raise Skip(f"autograd refuses, and so do we: {self.refusal}")
        if "for outputs with complex dtype" in text:  # it may have refused another operator first
            raise Skip("autograd refuses an operator of complex numbers, and so do we")
        if "may have escaped" in text and "checkpoint" in self.program.function():
            raise Skip("known: a checkpoint under vmap, which autograd recomputes outside")
        if "T." in call.action and "Trying to use forward AD" in text:
            raise Skip("torch.func has no forward mode of an operator")
        if "V." in call.action or "T." in call.action:
            for world in self.worlds_of_torch(call, state):
                try:
                    world.evaluate(call.action, call)
                except Exception:
                    raise Skip("torch.func raises, too") from None
        if "backpropagated" in call.action and "detached in-place" in text:
            raise Skip("refused: backpropagation through what was written to a captured tensor")
        return Failure(f"crash: {re.sub('[0-9]+', 'N', text)[:90]}", number, text)


def _again(world: World, call: Call, state: dict[str, Any]) -> None:
    """Put back what f changes."""
    world.load(state)
    world.env["s0"].update(call.state)
    torch.default_generator.manual_seed(0)
    reference.restart()


def _finite(tree: Any) -> Any:
    """Return a tree without nan and infinities, which are equal to themselves then."""
    return tree_map(lambda y: y.detach().nan_to_num() if isinstance(y, Tensor) else y, tree)


def _is_finite(tree: Any) -> bool:
    return all(bool(y.isfinite().all()) for y in tree_flatten(tree)[0] if isinstance(y, Tensor))


def _order(action: str) -> int:
    """Return how many times a function is differentiated."""
    names = re.findall(r"[LT]\.(\w+)\(", action)
    return sum(2 if name in ("hessian", "hvp") else 1 for name in names)


def _has_ties(call: Call) -> bool:
    """Tell whether elements of inputs are equal."""
    return "expand" in "".join(call.arguments) or _has_alias(call)


def _has_alias(call: Call) -> bool:
    return any(re.fullmatch(r"x\d = x\d", line) for line in call.arguments)


def run_program(
    program: Program,
    skips: collections.Counter[str] | None = None,
    is_fresh: bool = True,
    fresh: Fresh | None = None,
) -> tuple[Failure | None, int]:
    """Run a program; return what is wrong, and how many results were compared.

    It starts with no plans if it ``is_fresh``. With ``fresh``, each call is made by a fresh process, too.
    """
    if is_fresh:
        pushforward.clear_plans()
    skips = collections.Counter() if skips is None else skips
    try:
        runner = Runner(program, skips, fresh)
        failure = runner.run()
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
    if failure is None and program.calls and program.seed % 4 == 0:
        agrees = runner.check_reference(0, program.calls[0])
        if agrees is False:
            failure = Failure("autograd differs from differences", 0, "")
    return failure, runner.num_compared
