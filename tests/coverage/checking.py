"""What must hold for one sample, and for all samples of an entry."""

from __future__ import annotations

import collections
import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import ours
import torch
from device import DEVICE
from entries import Case, Point, cases, dtypes_of, seeded
from exceptions import UNDEFINED, refusals_of
from references import (
    Autograd,
    difference_jacobian,
    gradient_difference,
    like_point,
    real_vector,
    second_difference,
    size,
    value_difference,
)
from summary import Figures
from torch import Tensor

from pushforward.tape import black_boxes

LIMIT = (
    10_000  # inputs x outputs, in real numbers: above it, references are directional derivatives
)
WRITTEN_LIMIT = 250_000  # above it, so are ours
MAX_ROWS = 400  # outputs, likewise
HUGE = 100_000  # inputs: above it, jvp and vjp alone, but for the first sample of them
HESSIAN_LIMIT = 50  # inputs, in real numbers: above it, the Hessian's product with a direction
# Against torch.autograd, relative to the largest entry or 1, by the least precise tensor of the call.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 1e-2}
DIFFERENCE_TOLERANCE = 2e-5  # against central differences of values, or of gradients
SECOND_DIFFERENCE_TOLERANCE = 1e-4
VALUE_SECOND_TOLERANCE = 1e-3  # against second differences of values

Failure = tuple[str, str, str]  # sample, derivative, message


@dataclasses.dataclass
class Outcome:
    """What happened to the samples of an entry."""

    entry: str
    num_samples: int = 0
    num_directional: int = 0  # samples above the limit
    num_second: int = 0  # samples with second derivatives and batches
    failures: list[Failure] = dataclasses.field(default_factory=list)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    black_boxes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    torch_func_failures: int = 0
    seconds: float = 0.0


def check_entry(name: str, entry: Any) -> Outcome:
    """Check every sample of an entry, in every dtype."""
    outcome = Outcome(name)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes_of(entry):
            for place, case in enumerate(cases(name, entry, dtype)):
                is_whole = place == 0 or size(case.point) <= HUGE
                check_case(case, outcome, has_second=entry.supports_gradgrad, is_whole=is_whole)
    outcome.seconds = time.perf_counter() - start
    return outcome


def check_case(case: Case, outcome: Outcome, *, has_second: bool, is_whole: bool = True) -> None:
    """Check one sample, without second derivatives and batches unless ``is_whole``."""
    outcome.num_samples += 1
    before = collections.Counter(black_boxes.COUNTS)
    checker = Checker(case, outcome, has_second)
    checker.prepare()
    checker.first_order()
    if is_whole:
        outcome.num_second += 1
        checker.second_order()
        checker.under_vmap()
    outcome.black_boxes += collections.Counter(black_boxes.COUNTS) - before
    outcome.torch_func_failures += not checker.torch_func_works()


def unexplained(entry: str, failures: list[Failure]) -> list[Failure]:
    """Return the failures that the table of exceptions does not foresee."""
    refusals = refusals_of(entry)
    return [
        failure
        for failure in failures
        if not any(refusal.covers(*failure[1:]) for refusal in refusals)
        and not any(u.covers(entry, failure[1]) for u in UNDEFINED)
    ]


def figures(outcome: Outcome) -> Figures:
    """Return the entry's share of the table."""
    return Figures(
        outcome.entry,
        outcome.num_samples,
        outcome.num_directional,
        outcome.num_second,
        is_passed=not unexplained(outcome.entry, outcome.failures),
        has_black_box=bool(outcome.black_boxes),
        is_refused=any(m.startswith("raised") for _, _, m in outcome.failures),
        torch_func_failures=outcome.torch_func_failures,
    )


def limits() -> str:
    """Say where references and results become directional."""
    return (
        f"A Jacobian of more than {LIMIT} entries or {MAX_ROWS} rows is compared along random directions, and above "
        f"{WRITTEN_LIMIT} it is not written out; a Hessian of more than {HESSIAN_LIMIT} columns is applied to a "
        f"direction. Of the samples with more than {HUGE} inputs, one is checked for second derivatives and in "
        "batches, the others by jvp and vjp."
    )


class Checker:
    """The checks of one sample, with their references computed once."""

    def __init__(self, case: Case, outcome: Outcome, has_second: bool) -> None:
        """Check ``case``; ``has_second`` tells whether PyTorch has a double backward."""
        self.case, self.outcome, self.has_second = case, outcome, has_second

    def prepare(self) -> None:
        """Evaluate the function and its first derivative by torch.autograd, and draw directions."""
        try:
            self.autograd, has_rows = Autograd(self.case), True
        except Exception as error:
            self._note(f"no reference by torch.autograd: {type(error).__name__}")
            self.autograd, has_rows = Autograd(self.case, records=False), False
        m, n = self.autograd.num_outputs, self.autograd.num_inputs
        generator = torch.Generator(DEVICE).manual_seed(self.case.index)
        self.u, self.v = torch.randn(2, n, generator=generator, dtype=torch.float64)
        self.w = torch.randn(m, generator=generator, dtype=torch.float64)
        dtypes = [o.dtype.to_real() for o in self.autograd.outs] + [self.case.least_precise]
        self.tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
        self.is_defined = bool(self.autograd.value.isfinite().all())
        self.is_directional = m * n > LIMIT or m > MAX_ROWS
        self.outcome.num_directional += self.is_directional
        # Rows by torch.autograd; where it is wrong and differences agree with us, differences.
        self.jacobian: Tensor | None = None
        self.row: Tensor | None = None
        if has_rows:
            self.row = self._attempt("torch.autograd", lambda: self.autograd.row(self.w).detach())
        if not self.is_directional and self.row is not None:
            self.jacobian = self.autograd.jacobian().detach()
        self.slope = self._attempt("differences", lambda: value_difference(self.case, self.u))

    # ----- First order -----

    def first_order(self) -> None:
        """Compare the Jacobian in every mode with rows by torch.autograd, else with differences."""
        case, outs = self.case, self.autograd.outs
        self._try("jvp", lambda: ours.push(case, self.u), self._is_slope)
        self._try("vjp", lambda: ours.pull(case, self.w), self._is_row)
        if len(self.w) * max(len(self.u), len(self.w)) > WRITTEN_LIMIT:
            return
        check = self._is_projected if self.is_directional else self._is_jacobian
        for name in ours.FIRST:
            self._try(name, lambda name=name: ours.jacobian(name, case, outs), check)
        if not self.is_directional:
            self._try("jacrev, repeated", lambda: ours.repeated_jacobian(case, outs), check)

    def _is_jacobian(self, matrix: Tensor) -> str:
        message = self._mismatch(matrix, self.jacobian, self.tolerance)
        if not message or (
            found := self._mismatch(matrix @ self.u, self.slope, DIFFERENCE_TOLERANCE)
        ):
            return message and f"{message}; along one direction: {found}"
        dense = difference_jacobian(self.case)
        if found := self._mismatch(matrix, dense, DIFFERENCE_TOLERANCE):
            return f"{message}; differences: {found}"
        self.jacobian, self.row, self.tolerance = dense, None, DIFFERENCE_TOLERANCE
        self._note("accepted by differences, against torch.autograd")
        return ""

    def _is_projected(self, matrix: Tensor) -> str:
        return self._is_slope(matrix @ self.u) or self._is_row(self.w @ matrix)

    def _is_slope(self, slope: Tensor) -> str:
        if len(self.u) == 0:  # of no inputs: 0, or 0/0 where the values have it
            return "" if slope.shape == self.w.shape else f"shape {tuple(slope.shape)}"
        if self.jacobian is not None:
            expected = self.jacobian @ self.u
            if not self._mismatch(slope, expected, self.tolerance):
                return ""
        elif self.row is not None and not self._mismatch(
            self.w @ slope, self.row @ self.u, self.tolerance
        ):
            return ""
        return self._mismatch(slope, self.slope, DIFFERENCE_TOLERANCE)

    def _is_row(self, row: Tensor) -> str:
        if self.row is not None and not (message := self._mismatch(row, self.row, self.tolerance)):
            return ""
        if self.slope is None:
            return message if self.row is not None else "no reference"
        return self._mismatch(row @ self.u, self.w @ self.slope, DIFFERENCE_TOLERANCE)

    # ----- Second order -----

    def second_order(self) -> None:
        """Compare the Hessian of a projection in four nestings, along a direction."""
        if len(self.u) == 0 or len(self.w) == 0:
            return
        case = self.case
        is_small = len(self.u) <= HESSIAN_LIMIT
        compare = SecondOrder(self)
        for outer, inner in ours.SECOND:

            def compute(o: str = outer, i: str = inner) -> Tensor:
                if is_small:
                    return ours.hessian(o, i, case, self.w) @ self.u
                return ours.hessian_product(o, i, case, self.w, self.u, self.v)

            self._try(f"{outer}({inner})", compute, compare.message)

    # ----- Batches -----

    def under_vmap(self) -> None:
        """Compare a batch of two points with each by itself."""
        case = self.case
        other = tuple(0.97 * x for x in case.point)
        points = (case.point, other)
        if not self._works_under_vmap(points):
            return
        row = self._attempt(
            "torch.autograd", lambda: Autograd(case, other).row(self.w).detach(), quiet=True
        )

        def is_slope(product: Tensor) -> str:
            if row is not None and not self._mismatch(
                self.w @ product, row @ self.u, self.tolerance
            ):
                return ""
            return self._mismatch(
                product, value_difference(case, self.u, other), DIFFERENCE_TOLERANCE
            )

        def are_jacobians(both: list[Tensor]) -> str:
            if message := self._mismatch(both[0], self.jacobian, self.tolerance):
                return message
            if not self._mismatch(self.w @ both[1], row, self.tolerance):
                return ""
            return is_slope(both[1] @ self.u)

        if self.jacobian is None:
            self._try(
                "vmap(jvp)",
                lambda: ours.batched_pushes(case, points, self.u),
                lambda both: self._is_slope(both[0]) or is_slope(both[1]),
            )
            return
        for name in ours.FIRST[:2]:
            self._try(
                f"vmap({name})",
                lambda name=name: ours.batched_jacobians(name, case, points, self.autograd.outs),
                are_jacobians,
            )

    def _works_under_vmap(self, points: tuple[Point, Point]) -> bool:
        """Tell whether ``torch.func.vmap`` takes the function itself, and gives the values of a loop."""
        case = self.case
        try:
            stacked = [torch.stack(xs) for xs in zip(*points, strict=True)]
            values = seeded(lambda: torch.func.vmap(case.function, randomness="same")(*stacked))
            alone = seeded(lambda: case.function(*points[1]))
        except Exception as error:
            self._note(f"vmap refuses the function itself: {type(error).__name__}")
            return False
        for value, out in zip(values, alone, strict=True):
            if value[1].shape != out.shape or self._mismatch(value[1], out, self.tolerance):
                self._note("vmap of the function itself gives other values than a loop")
                return False
        return True

    # ----- Beside us -----

    def torch_func_works(self) -> bool:
        """Tell whether torch.func.jacfwd gives the Jacobian; in complex numbers, whether it gives anything."""
        case = self.case
        try:
            if self.is_directional:
                tangents = like_point(self.u, case.point)
                slope = seeded(lambda: torch.func.jvp(case.function, case.point, tangents))[1]
                return not self._is_slope(real_vector(slope))
            argnums = tuple(range(len(case.point)))
            derivative = torch.func.jacfwd(case.function, argnums, randomness="same")
            rows = seeded(lambda: derivative(*case.point))
            if any(x.is_complex() for x in case.point):
                return True
            return not self._is_jacobian(ours.matrix(rows, case.point, self.autograd.outs))
        except Exception:
            return False

    # ----- Reports -----

    def _try(
        self, derivative: str, compute: Callable[[], Any], check: Callable[[Any], str]
    ) -> None:
        try:
            message = check(compute())
        except Exception as error:
            message = f"raised {type(error).__name__}: {str(error)[:300]}"
        if message:
            self._fail(derivative, message)

    def _attempt(
        self, what: str, compute: Callable[[], Tensor], *, quiet: bool = False
    ) -> Tensor | None:
        try:
            return compute()
        except Exception as error:
            if not quiet:
                self._note(f"no reference by {what}: {type(error).__name__}")
            return None

    def _mismatch(self, actual: Tensor, expected: Tensor | None, tolerance: float) -> str:
        return mismatch(actual, expected, tolerance, is_defined=self.is_defined)

    def _fail(self, derivative: str, message: str) -> None:
        self.outcome.failures.append((self.case.name, derivative, message))

    def _note(self, text: str) -> None:
        self.outcome.notes[text] += 1


class SecondOrder:
    """Second derivatives by other means, each computed when the one before disagrees."""

    def __init__(self, checker: Checker) -> None:
        """Refer to the checker's case and directions."""
        c = self._checker = checker
        self._means: list[tuple[str, Callable[[], Tensor], float]] = [
            (
                "differences of torch.autograd",
                lambda: gradient_difference(c.case, c.w, c.u),
                SECOND_DIFFERENCE_TOLERANCE,
            )
        ]
        if checker.has_second and checker.row is not None:
            double = lambda: c.autograd.second(c.w, c.u[None])[0]  # noqa: E731
            self._means.insert(0, ("double backward", double, c.tolerance))
        self._found: dict[str, Tensor | None] = {}

    def message(self, product: Tensor) -> str:
        """Return what is wrong with the product of the Hessian and ``u``."""
        messages = []
        for name, compute, tolerance in self._means:
            if name not in self._found:
                self._found[name] = self._checker._attempt(name, compute)
            expected = self._found[name]
            if product.dim() == 0 and expected is not None:
                expected = expected @ self._checker.v
            message = self._checker._mismatch(product, expected, tolerance)
            if not message:
                return ""
            messages.append(f"{name}: {message}")
        return self._by_values(product, "; ".join(messages))

    def _by_values(self, product: Tensor, message: str) -> str:
        c = self._checker
        for direction in (c.u, c.v):
            expected = second_difference(c.case, c.w, c.u, direction)
            if product.dim() == 0 and direction is c.u:
                continue
            found = float(product if product.dim() == 0 else direction @ product)
            if not abs(found - expected) <= VALUE_SECOND_TOLERANCE * max(1.0, abs(expected)):
                return f"{message}; differences of values: {found:.6g}, expected {expected:.6g}"
        c._note("order 2 accepted by differences, against torch.autograd")
        return ""


def mismatch(
    actual: Tensor, expected: Tensor | None, tolerance: float, *, is_defined: bool = True
) -> str:
    """Return what is different, empty if nothing is.

    NaN and infinity must be in the same places, unless the values themselves are NaN: rows by torch.autograd
    spread it everywhere, a Jacobian with structure does not.
    """
    if expected is None:
        return "no reference"
    actual, expected = actual.detach(), expected.detach()
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    finite = expected.isfinite()
    if is_defined and not torch.equal(finite, actual.isfinite()):
        return "finite in other places"
    left, right = actual[finite], expected[finite]
    if left.numel() == 0:
        return ""
    scale = max(1.0, float(right.abs().max()))
    error = float((left - right).abs().max())
    return "" if error <= tolerance * scale else f"error {error:.1e} of {scale:.1e}"
