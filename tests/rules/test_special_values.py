"""Slopes at kinks and at the ends of domains: 0, ties, infinities, nan, the smallest and largest numbers.

The convention is PyTorch's own backward, for all operators at once; `OURS` lists where ours is another, and why.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from device import DEVICE
from torch import Tensor
from torch.testing._internal.common_methods_invocations import (
    binary_ufuncs,
    op_db,
    unary_ufuncs,
)
from torch.utils import _pytree as pytree

from pushforward import grad, jvp, vjp

inf, nan = math.inf, math.nan
VALUES = torch.tensor(
    [
        *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, math.pi, math.pi / 2),
        *(inf, -inf, nan, 5e-324, -5e-324, 1e-300, 1e300, -1e300),
    ],
    dtype=torch.float64,
)
# Put in place of a third of an argument's elements.
SALTS = {
    "zeros": [0.0, -0.0],
    "ties": [1.0, 1.0, 2.0],
    "infinities": [inf, -inf],
    "nan": [nan],
    "tiny": [1e-300],
}
MAX_SAMPLES = 6
MAX_ELEMENTS = 200

# Operator -> where PyTorch's slope is not the one of the function, and what we give there.
OURS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "acosh": (lambda x: (x <= -1) | (x.abs() > 1e150), "nan outside the domain; no overflow of x²"),
    "frexp": (lambda x: x.abs() > 1e150, "no underflow of 2⁻ᵉ"),
    "sinc": (
        lambda x: (x.abs() > 1e150) | (x.abs() < 1e-150),
        "a series near 0; no overflow of x²",
    ),
    "special.i1": (torch.isnan, "nan at nan"),
    "special.i1e": (torch.isnan, "nan at nan"),
    "copysign": (lambda x, y: x.isinf(), "±1 at ±inf, not inf / inf"),
    "nn.functional.hardsigmoid": (lambda x: x.abs() < 3, "1/6 in float64"),
}
NOT_COMPARED = {
    "as_strided_scatter": "what is overwritten has no derivative; PyTorch gives one where the source has no axes",
    "cholesky_inverse": "the triangle that is not read has no derivative; PyTorch gives one",
    "logdet": "a singular matrix has no derivative; what comes out is rounding",
}
# Operators with several elements in a result: where ours is finite and PyTorch's is nan or lost, and why.
OURS_OF_MANY = {
    "nn.functional.pdist": "the limit at inf, not inf / inf",
    "cdist": "0 for the sign of nan, as PyTorch had it up to 2.14",
    "nn.functional.scaled_dot_product_attention": "nan for inf - inf, 0 in PyTorch from 2.15 on",
    "cumprod": "products of the others, without division by what may be 0, inf or nan",
    "masked.cumprod": "as cumprod",
    "prod": "as cumprod",
    "masked.prod": "as cumprod",
    "scatter_reduce.prod": "as cumprod",
    "index_reduce.prod": "as cumprod",
    "_segment_reduce.lengths": "as cumprod",
    "_segment_reduce.offsets": "as cumprod",
    "scatter_reduce.amax": "1 for the nan that is the extremum, not 0 / 0",
    "scatter_reduce.amin": "as amax",
    "index_reduce.amax": "as amax",
    "index_reduce.amin": "as amax",
    "logcumsumexp": "0 for exp(-inf)",
    "nanmean": "0 for a mean of nothing",
    "masked.mean": "0 for a mean of nothing",
    "lu": "of a singular matrix, where the factors are still smooth",
    "nn.functional.soft_margin_loss": "the limit at inf, not inf / inf",
    "renorm": "nan where the norm is nan",
    "to_sparse": "that of the identity, also at what is not stored",
    "nn.functional.normalize": "by p < 0 tiny numbers overflow at another place",
    "norm": "by p < 1 tiny numbers overflow at another place",
}


def agrees(ours: Tensor, theirs: Tensor, rtol: float = 1e-9) -> Tensor:
    close = (ours - theirs).abs() <= rtol * theirs.abs() + 1e-300
    return (ours == theirs) | (ours.isnan() & theirs.isnan()) | close


def name_of(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def cases() -> Iterator[Any]:
    for op in (*unary_ufuncs, *binary_ufuncs):
        if op.supports_autograd and torch.float64 in op.dtypes:
            yield pytest.param(op, id=name_of(op))


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def check_elementwise(name: str, func: Callable[[Tensor], Any], x: Tensor, *others: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    output = first(func(leaf))
    if not output.requires_grad or output.shape != x.shape or output.dtype is not x.dtype:
        return  # another dtype has other special values
    (theirs,) = torch.autograd.grad(output.sum(), leaf)
    pulled = grad(lambda t: first(func(t)).sum())(x)
    _, pushed = jvp(lambda t: first(func(t)), (x,), (torch.ones_like(x),))
    excepted = OURS[name][0](x, *others) if name in OURS else torch.zeros_like(x, dtype=torch.bool)
    for ours in (pulled, pushed):
        wrong = ~(agrees(ours, theirs) | excepted)
        assert not wrong.any(), (x[wrong], *(o[wrong] for o in others), ours[wrong], theirs[wrong])


@pytest.mark.parametrize("op", list(cases()))
def test_slopes_of_elementwise_operators_are_pytorchs(op: Any) -> None:
    options: list[tuple[Any, ...]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in op.sample_inputs(DEVICE, torch.float64):
            rest = sample.args if op in unary_ufuncs else ()
            given = (*rest, *sample.kwargs.values())
            is_plain = not any(isinstance(a, (Tensor, torch.memory_format)) for a in given)
            if is_plain and (rest, sample.kwargs) not in options:
                options.append((rest, sample.kwargs))
        left, right = (t.flatten() for t in torch.meshgrid(VALUES, VALUES, indexing="ij"))
        for rest, kwargs in options[:3]:
            if op in unary_ufuncs:

                def by_x(t: Tensor, rest: Any = rest, kwargs: Any = kwargs) -> Any:
                    return op.op(t, *rest, **kwargs)

                check_elementwise(op.name, by_x, VALUES)
                continue

            def by_left(t: Tensor, kwargs: Any = kwargs) -> Any:
                return op.op(t, right, **kwargs)

            by_right = functools.partial(op.op, left, **kwargs)
            for func, x, other in ((by_left, left, right), (by_right, right, left)):
                try:
                    func(x.clone().requires_grad_())
                except (RuntimeError, NotImplementedError):
                    continue  # PyTorch has no derivative by this argument
                check_elementwise(op.name, func, x, other)


def test_slopes_that_are_not_pytorchs_are_those_of_the_function() -> None:
    def slope(func: Callable[[Tensor], Tensor], x: float) -> float:
        return float(grad(func)(torch.tensor(x, dtype=torch.float64)))

    assert math.isnan(slope(torch.acosh, -2.0))
    assert slope(torch.acosh, 1e300) == 1e-300
    assert slope(lambda x: torch.frexp(x).mantissa, 1e300) == 2.0**-997
    assert slope(torch.sinc, 1e-300) == pytest.approx(-(math.pi**2) / 3 * 1e-300)
    assert slope(torch.special.i1, 5e-324) == 0.5
    assert math.isnan(slope(torch.special.i1, nan))
    assert slope(lambda x: torch.copysign(x, torch.tensor(-1.0)), inf) == -1
    assert slope(torch.nn.functional.hardsigmoid, 1.0) == 1 / 6


def salted(x: Tensor, values: list[float], generator: torch.Generator) -> Tensor:
    flat = x.detach().clone().reshape(-1)
    places = torch.randperm(flat.numel(), generator=generator)[: max(1, flat.numel() // 3)]
    for number, place in enumerate(places.tolist()):
        flat[place] = values[number % len(values)]
    return flat.reshape(x.shape)


def others() -> Iterator[Any]:
    known = {id(op) for op in (*unary_ufuncs, *binary_ufuncs)}
    # Factorisations of matrices with nan raise, and those of random ones have no kinks.
    left_out = ("linalg", "svd", "_refs", "sparse", "nn.functional.linear_cross_entropy")
    for op in op_db:
        is_wanted = id(op) not in known and not op.name.startswith((*left_out, *NOT_COMPARED))
        if is_wanted and op.supports_autograd and torch.float64 in op.dtypes:
            yield pytest.param(op, id=name_of(op))


@pytest.mark.parametrize("op", list(others()))
def test_slopes_of_other_operators_are_pytorchs(op: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = [
            s
            for s in op.sample_inputs(DEVICE, torch.float64)
            if isinstance(s.input, Tensor)
            and s.input.is_floating_point()
            and 0 < s.input.numel() <= MAX_ELEMENTS
        ]
        for number, sample in enumerate(samples[:MAX_SAMPLES]):
            for salt, values in SALTS.items():
                _check(op, sample, salt, values, number)


def _check(op: Any, sample: Any, salt: str, values: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = salted(sample.input, values, generator)
    args, kwargs = pytree.tree_map(
        lambda a: a.detach() if isinstance(a, Tensor) else a, (sample.args, sample.kwargs)
    )

    def func(t: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        found = pytree.tree_leaves(op.op(t, *args, **kwargs))
        return tuple(y for y in found if isinstance(y, Tensor) and y.is_floating_point())

    leaf = x.clone().requires_grad_()
    try:
        outputs = func(leaf)
        if any(y.layout is not torch.strided for y in outputs):
            return
        cotangents = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
        pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return
        (theirs,) = torch.autograd.grad([y for y, _ in pairs], leaf, [c for _, c in pairs])
    except (RuntimeError, ValueError, IndexError):
        return  # PyTorch itself refuses such numbers
    (ours,) = vjp(func, x)[1](tuple(cotangents))
    wrong = ~(agrees(ours, theirs, 1e-6) | ((ours - theirs).abs() < 1e-12))
    if name_of(op) in OURS_OF_MANY:
        wrong = wrong & theirs.isfinite() & ours.isfinite() & ~_is_singular(x)
    assert not wrong.any(), (salt, seed, x[wrong], ours[wrong], theirs[wrong])


def _is_singular(x: Tensor) -> Tensor:
    return ~x.isfinite() | (x.abs() <= 1e-300)
