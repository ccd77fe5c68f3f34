"""check_derivatives: derivatives of a function of the user's, held against differences and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.rules.registry import lookup
from pushforward.tape.node_types import RULED
from pushforward.tape.private_torch import PythonNode, left_alone_by_dynamo
from pushforward.tape.ruled import arguments_and_output, call_ruled
from pushforward.transforms.arguments import (
    Argnums,
    Selected,
    check_function,
    check_outputs,
    normalize_argnums,
)
from pushforward.transforms.comparison import Check, Comparison, DerivativeError, Verdict
from pushforward.transforms.differences import Difference, by_complex_step, directional
from pushforward.transforms.jacfwd import jacfwd
from pushforward.transforms.jacrev import jacrev
from pushforward.transforms.jvp import jvp
from pushforward.transforms.record import Tape
from pushforward.transforms.vjp import vjp
from pushforward.trees import flatten, is_differentiable, paths

NAME = "check_derivatives"
MAX_ENTRIES = 4096  # of a Jacobian that is compared entry by entry
TRUSTED = 1e-2  # differences whose relative error is larger say nothing: a kink, or noise

Flat = Callable[..., tuple[Tensor, ...]]


@left_alone_by_dynamo
def check_derivatives(
    func: Callable[..., Any],
    *args: Any,
    argnums: Argnums | None = None,
    order: int = 2,
    num_directions: int = 2,
    seed: int = 0,
    raises: bool = True,
    **kwargs: Any,
) -> Check:
    """Check the derivatives of a function at a point.

    Compares forward mode, reverse mode and, for Jacobians of at most 4096 entries, both entry by entry; the adjoint
    identity ⟨J v, w⟩ = ⟨v, Jᵀ w⟩; and differences: extrapolated central ones, a complex step where the function
    takes complex numbers. At second order forward over reverse, reverse over forward, symmetry, and differences of
    gradients. Operators with a rule of the user's are checked one by one, too.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree). It is called often, each time with the same seed of
            random numbers, and on copies of its arguments.
        *args: Its arguments. Float64 checks much more than float32.
        argnums: With respect to which of them, ``int`` or tuple of ``int``; None: all that have floating tensors.
        order: 1 or 2.
        num_directions: How many random directions are tried.
        seed: Of the directions, and of random numbers in ``func``.
        raises: Whether to raise where something differs.
        **kwargs: Keyword arguments of ``func``.

    Returns:
        A `Check`, to be printed. A comparison is "unclear" where differences do not settle, as at kinks.

    Raises:
        DerivativeError: Something differs; it has the table.
        TypeError: There is nothing to differentiate.
        ValueError: ``order``, ``num_directions`` or ``argnums`` are not what they may be, or two calls of ``func`` with
            the same arguments and the same seed give different results.

    Example:
        >>> found = check_derivatives(torch.sin, torch.ones(2, dtype=torch.float64))
        >>> found.is_right, found.comparisons[0].what
        (True, 'forward against reverse, all entries')

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 3; Ridders (1982); Squire and Trapp (1998).
    """
    check_function(NAME, func)
    _check_options(order, num_directions)
    chosen = _positions(args) if argnums is None else argnums
    selected = Selected(NAME, args, normalize_argnums(NAME, chosen, len(args)))
    flat = _flattened(func, selected, kwargs, seed)
    point = [x.detach().clone() for x in selected.leaves]
    first, second = flat(*point), flat(*point)
    if not all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True)
    ):
        raise ArgumentValueError(
            message(
                NAME,
                "func",
                "different results from two calls with the same arguments and the same seed",
                "the same",
                "Take out what it keeps from call to call.",
            )
        )
    names = [f"output{path}" for path in paths(_output(func, selected, kwargs, seed, point))]
    generator = torch.Generator().manual_seed(seed)
    comparisons = list(_compared(flat, point, names, order, num_directions, generator))
    rules, functions = _brought_along(flat, point, generator)
    found = Check(comparisons, rules, functions)
    if raises and not found.is_right:
        raise DerivativeError(f"{NAME}: got derivatives that differ, expected equal ones.\n{found}")
    return found


def _check_options(order: int, num_directions: int) -> None:
    if order not in (1, 2):
        raise ArgumentValueError(
            message(NAME, "order", order, "1 or 2", "Check a gradient of it for higher ones.")
        )
    if num_directions < 1:
        raise ArgumentValueError(
            message(NAME, "num_directions", num_directions, "at least 1", "Leave it out.")
        )


def _positions(args: tuple[Any, ...]) -> tuple[int, ...]:
    found = tuple(
        position
        for position, arg in enumerate(args)
        if (leaves := [x for x in flatten(arg)[0] if isinstance(x, Tensor)])
        and all(map(is_differentiable, leaves))
    )
    if not found:
        raise ArgumentTypeError(
            message(
                NAME,
                "args",
                [type(a).__name__ for a in args],
                "at least one floating or complex tensor",
                "Use x.double().",
            )
        )
    return found


def _output(
    func: Callable[..., Any],
    selected: Selected,
    kwargs: dict[str, Any],
    seed: int,
    xs: Sequence[Tensor],
) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return func(*selected.replaced([x.clone() for x in xs]), **kwargs)


def _flattened(
    func: Callable[..., Any], selected: Selected, kwargs: dict[str, Any], seed: int
) -> Flat:
    """Return the function from tensors to a tuple of tensors, whose random numbers are always the same."""

    def flat(*xs: Tensor) -> tuple[Tensor, ...]:
        output = _output(func, selected, kwargs, seed, xs)
        leaves, _ = flatten(output)
        check_outputs(NAME, output, leaves)
        return tuple(leaves)

    return flat


def _compared(
    flat: Flat,
    point: list[Tensor],
    names: list[str],
    order: int,
    num_directions: int,
    generator: torch.Generator,
) -> Iterator[Comparison]:
    outputs = flat(*point)
    places = tuple(range(len(point)))
    inputs = [f"input {i}" for i in places]
    if sum(y.numel() for y in outputs) * sum(x.numel() for x in point) <= MAX_ENTRIES:
        by_columns = flatten(jacfwd(flat, places, randomness="same")(*point))[0]
        by_rows = flatten(jacrev(flat, places)(*point))[0]
        labels = [f"{y} by {x}" for y in names for x in inputs]
        yield _equal("forward against reverse, all entries", 1, by_columns, by_rows, labels)
    for _ in range(num_directions):
        v, w = _random(point, generator), _random(outputs, generator)
        _, pushed = jvp(flat, tuple(point), tuple(v))
        pulled = vjp(flat, *point)[1](tuple(w))
        yield _same_product("adjoint identity", 1, (pushed, w), (v, pulled))
        yield from _against_differences("forward", 1, flat, point, v, pushed, names)
        if order == 1:
            continue

        def gradient(*xs: Tensor, w: list[Tensor] = w) -> tuple[Tensor, ...]:
            return tuple(vjp(flat, *xs)[1](tuple(w)))

        def slope(*xs: Tensor, v: list[Tensor] = v, w: list[Tensor] = w) -> Tensor:
            return _dot(jvp(flat, xs, tuple(v))[1], w)

        u = _random(point, generator)
        curvature = jvp(gradient, tuple(point), tuple(v))[1]
        reverse = vjp(slope, *point)[1](torch.ones_like(slope(*point)))
        other = jvp(gradient, tuple(point), tuple(u))[1]
        yield _equal("forward over reverse, reverse over forward", 2, curvature, reverse, inputs)
        yield _same_product("symmetry", 2, (u, curvature), (v, other))
        yield from _against_differences("gradient", 2, gradient, point, v, curvature, inputs)


def _random(like: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(t.shape, dtype=t.dtype, generator=generator).to(t.device) for t in like]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return Re⟨a, b⟩."""
    products = [torch.real(x.conj() * y).sum().double() for x, y in zip(a, b, strict=True)]
    return torch.stack(products).sum()


def _same_product(
    what: str, order: int, left: tuple[Sequence[Tensor], ...], right: tuple[Sequence[Tensor], ...]
) -> Comparison:
    """Compare two inner products, relative to the sum of the sizes of what they add up."""
    (a, b), (c, d) = left, right
    size = float(_dot([x.abs() for x in a], [x.abs() for x in b]).detach()) or 1.0
    error = abs(float(_dot(a, b).detach()) - float(_dot(c, d).detach())) / size
    tolerance = 1e4 * _precision([*a, *b])
    verdict: Verdict = "agrees" if error <= tolerance or not math.isfinite(error) else "differs"
    return Comparison(what, order, error, tolerance, verdict)


def _precision(tensors: Sequence[Tensor]) -> float:
    return max((torch.finfo(t.dtype).eps for t in tensors), default=0.0)


def _equal(
    what: str, order: int, a: Sequence[Tensor], b: Sequence[Tensor], names: Sequence[str]
) -> Comparison:
    """Compare what is computed in two ways."""
    tolerance = 1e4 * _precision([*a, *b])
    return _comparison(what, order, a, b, [torch.zeros(()) for _ in a], tolerance, names)


def _against_differences(
    what: str,
    order: int,
    flat: Flat,
    point: list[Tensor],
    v: list[Tensor],
    ours: Sequence[Tensor],
    names: Sequence[str],
) -> Iterator[Comparison]:
    with torch.no_grad():
        found = directional(lambda xs: list(flat(*xs)), point, v)
    values, errors = [d.value for d in found], [d.error for d in found]
    tolerance = 1e2 * _precision(ours) ** (2 / 3)
    yield _comparison(f"{what} against differences", order, ours, values, errors, tolerance, names)
    if order == 1:
        with torch.no_grad():
            exact = by_complex_step(lambda xs: list(flat(*xs)), point, v)
        if exact is not None and _is_analytic(exact, found):
            tolerance = 1e4 * _precision(ours)
            zero = [torch.zeros(()) for _ in ours]
            yield _comparison(
                f"{what} against a complex step", order, ours, exact, zero, tolerance, names
            )


def _is_analytic(exact: Sequence[Tensor], found: Sequence[Difference]) -> bool:
    return all(
        bool(((e - d.value).abs() <= 10 * d.error + 1e-6 * e.abs()).all())
        for e, d in zip(exact, found, strict=True)
    )


def _comparison(
    what: str,
    order: int,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    errors: Sequence[Tensor],
    tolerance: float,
    names: Sequence[str],
) -> Comparison:
    """Compare element by element; what ``errors`` cover is no difference."""
    ours, theirs = [t.detach() for t in ours], [t.detach() for t in theirs]
    size = max((float(t.abs().max()) for t in theirs if t.numel()), default=0.0)
    size = size if 0 < size < math.inf else 1.0
    worst, where, is_clear = 0.0, "", True
    for name, a, b, error in zip(names, ours, theirs, errors, strict=True):
        if not a.numel():
            continue
        unsure = 10 * error.to(b.device) / size
        gap = ((a - b).abs() / size).nan_to_num(math.inf)
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, gap)
        is_clear = is_clear and bool((unsure < TRUSTED).all())
        beyond = torch.where(unsure < TRUSTED, (gap - unsure).clamp(min=0), 0.0)
        found = float(beyond.max())
        if found > worst:
            index = torch.unravel_index(beyond.argmax(), beyond.shape)
            worst = found
            where = f"{name}{[int(i) for i in index] if a.dim() else ''}"
    if worst > tolerance:
        return Comparison(what, order, worst, tolerance, "differs", where)
    return Comparison(what, order, worst, tolerance, "agrees" if is_clear else "unclear")


def _brought_along(
    flat: Flat, point: list[Tensor], generator: torch.Generator
) -> tuple[dict[str, list[Comparison]], list[str]]:
    """Check every rule of the user's by itself; return the names of ``autograd.Function``s, too."""
    rules: dict[str, list[Comparison]] = {}
    functions: list[str] = []
    selected = Selected(NAME, tuple(point), tuple(range(len(point))))
    with Tape(NAME, flat, selected, {}) as tape:
        nodes = tape.reading.described()
    for node, kind, saved in nodes:
        if kind is not RULED:
            if isinstance(node, PythonNode):
                functions.append(node.name().removesuffix("Backward"))
            continue
        name = getattr(node.call.operator, "__name__", str(node.call.operator))
        alone, inner = _alone(node.call, arguments_and_output(node, saved[0])[0])
        names = [f"output {i}" for i in range(len(alone(*inner)))]
        rules.setdefault(name, []).extend(_compared(alone, inner, names, 1, 1, generator))
    return rules, sorted(set(functions))


def _alone(call: Any, tensors: Sequence[Tensor]) -> tuple[Flat, list[Tensor]]:
    """Return an operator as a function of those arguments that its rule covers, and these."""
    rule = lookup(call.operator)
    active = [
        place
        for place, (t, (key, _)) in enumerate(zip(tensors, call.keys(), strict=True))
        if is_differentiable(t) and rule is not None and rule.partial(key)
    ]

    def alone(*xs: Tensor) -> tuple[Tensor, ...]:
        every = list(tensors)
        for place, x in zip(active, xs, strict=True):
            every[place] = x
        args, kwargs = call.arguments(every)
        outs = flatten(call_ruled(call.operator, call.func, args, kwargs))[0]
        return tuple(filter(is_differentiable, outs))

    return alone, [tensors[place].detach().clone() for place in active]
