"""Arguments that the function overwrites after an operator has had them: its derivative stays the same."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from pushforward import vjp

F64 = torch.float64
MAX_SAMPLES, MAX_ELEMENTS = 2, 100
REFUSED = {"linalg.lstsq"}  # the solution is found again from arguments that are gone


def cases() -> Iterator[Any]:
    left_out = ("_refs", "sparse", "to_sparse", "nn.functional.linear_cross_entropy")
    for op in op_db:
        if op.supports_autograd and F64 in op.dtypes and not op.name.startswith(left_out):
            name = f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name
            if name not in REFUSED:
                yield pytest.param(op, id=name)


def _size(sample: Any) -> int:
    return sum(x.numel() for x in pytree.tree_leaves(sample) if isinstance(x, Tensor))


def is_active(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@pytest.mark.parametrize("op", list(cases()))
def test_arguments_written_to_afterwards_do_not_change_the_derivative(op: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = [(s.input, s.args, s.kwargs) for s in op.sample_inputs("cpu", F64)]
        samples = [s for s in samples if _size(s) < MAX_ELEMENTS]
        for sample in samples[:MAX_SAMPLES]:
            _check(op, sample)


def _check(op: Any, sample: Any) -> None:
    leaves, spec = pytree.tree_flatten(sample)
    leaves = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
    places = [i for i, x in enumerate(leaves) if is_active(x)]

    def func(is_written: bool, *active: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        given = list(leaves)
        for i, x in zip(places, active, strict=True):
            given[i] = x
        x, args, kwargs = pytree.tree_unflatten(given, spec)
        outs = tuple(y for y in pytree.tree_leaves(op.op(x, *args, **kwargs)) if is_active(y))
        if is_written:
            outs = tuple(y * 1 for y in outs)  # views change
            for x in active:
                x.mul_(2.0)
        return outs

    active = [leaves[i].clone() for i in places]
    try:
        outs, pullback = vjp(lambda *a: func(False, *a), *active)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return  # nobody has a derivative by all of these
    cotangents = tuple(
        torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape) for y in outs
    )
    expected = pullback(cotangents)
    found = vjp(lambda *a: func(True, *a), *(x.clone() for x in active))[1](cotangents)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("shapes", [((2, 2), (2, 2)), ((2,), (3, 2)), ((2, 3), (2,)), ((), (2, 3))])
def test_the_kronecker_product_is_pytorchs(shapes: Any) -> None:
    left, right = (torch.randn(shape, dtype=F64, requires_grad=True) for shape in shapes)
    y, pullback = vjp(torch.kron, left.detach(), right.detach())
    torch.testing.assert_close(y, torch.kron(left, right).detach())
    expected = torch.autograd.grad(torch.kron(left, right), (left, right), torch.ones_like(y))
    torch.testing.assert_close(pullback(torch.ones_like(y)), expected)
