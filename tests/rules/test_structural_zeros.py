"""Zeros that PyTorch's formulas put there, whatever comes in: no 0 · ∞ and no 0 · nan arises from them."""

import math
import pathlib
import re
from typing import Any

import pytest
import torch
import torchgen
from torch.nn import functional as F

from pushforward import elementwise, jacrev, jvp, primitive, rule, vjp
from pushforward.errors import RuleError
from pushforward.rules.registry import is_nondifferentiable, lookup, no_map

F64 = torch.float64
VALUES = torch.tensor([-4.0, -1.0, -0.25, 0.0, 0.25, 1.0, 4.0], dtype=F64)
OTHER = torch.tensor([1.5, 0.0, 2.0, 0.0, -1.0, 0.0, 0.5], dtype=F64)
STEPS = {  # by every argument that is given here
    "copysign": lambda x, y: torch.copysign(x.detach(), y),
    "div": lambda x, y: torch.div(x, 2.0 + y * y, rounding_mode="trunc"),
    "nextafter": lambda x, y: torch.nextafter(x.detach(), y),
    "sgn": lambda x, y: torch.sgn(x),
    "angle": lambda x, y: torch.angle(x),
    "pow": lambda x, y: x**0.0,
    "pow of zeros": lambda x, y: x ** (y.detach() * 0),
    "hermite": lambda x, y: torch.special.hermite_polynomial_h(x.detach(), y.abs()),
    "norm": lambda x, y: torch.linalg.vector_norm(x, 0),
    "cdist": lambda x, y: torch.cdist(x[:, None], y[:, None], p=0.0),
    "pdist": lambda x, y: F.pdist(x[:, None], p=0.0),
}
MASKED = {
    "hardsigmoid": F.hardsigmoid,
    "logit": lambda x: torch.logit(x, 0.2),
    "prelu": lambda x: F.prelu(x.detach()[None], x.abs()),
    "pow": lambda x: torch.pow(x, OTHER),
    "nextafter": lambda x: torch.nextafter(x, torch.ones(7, dtype=F64)),
    "max": torch.max,
    "min": lambda x: torch.min(x.abs()),
    "median": torch.median,
    "nanmedian": torch.nanmedian,
    "std": lambda x: (x[:, None] * torch.tensor([1.0, 1.0])).std(1, unbiased=False),
    "std of one": lambda x: x[:, None].std(1, unbiased=False),
    "norm": lambda x: torch.linalg.vector_norm(x[:, None] * torch.ones(1, 2, dtype=F64), 3, 1),
    "dist": lambda x: torch.dist(x, x.detach(), 3),
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
}


def pulled(func: Any, x: torch.Tensor, bad: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ours and autograd's gradient for cotangents that are not finite."""
    leaf = x.clone().requires_grad_()
    y = func(leaf)
    (theirs,) = torch.autograd.grad(y, leaf, torch.full_like(y, bad))
    (ours,) = vjp(func, x)[1](torch.full_like(y, bad))
    return ours, theirs


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_arguments_by_which_the_result_moves_by_steps_have_zeros_always(
    step: Any, bad: float
) -> None:
    y, pullback = vjp(step, VALUES, OTHER)
    for gradient in pullback(torch.full_like(y, bad)):
        assert (gradient == 0).all()
    tangents = (torch.full_like(VALUES, bad), torch.full_like(OTHER, bad))
    assert (jvp(step, (VALUES, OTHER), tangents)[1] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("func", MASKED.values(), ids=MASKED)
def test_what_autograd_leaves_zero_is_zero_whatever_comes_back(func: Any, bad: float) -> None:
    ours, theirs = pulled(func, VALUES, bad)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert torch.equal(ours[theirs.isfinite()], theirs[theirs.isfinite()])


@pytest.mark.parametrize("name", ["hardswish", "hardshrink", "leaky_relu", "prelu", "relu6"])
def test_second_derivatives_are_zero_where_autograds_are(name: str) -> None:
    func = MASKED[name]

    def gradient(x: torch.Tensor) -> torch.Tensor:
        y = func(x)
        return torch.autograd.grad((y * y.detach()).sum(), x, create_graph=True)[0]

    ours, theirs = pulled(lambda x: gradient(x.requires_grad_() if x.is_leaf else x), VALUES, 1.0)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    torch.testing.assert_close(ours, theirs)
    ours, theirs = pulled(gradient, VALUES, math.nan)
    assert (ours.isfinite() | ~theirs.isfinite()).all()


@pytest.mark.parametrize(
    "func",
    [
        lambda x: torch.atan(torch.logit(F.hardsigmoid(x - 5))),
        lambda x: torch.atan(torch.special.entr(torch.copysign(torch.full_like(x, 2), x))) * x,
        lambda x: torch.sqrt((x[:, None] - x[:, None]).std(1, unbiased=False)) + x,
        lambda x: torch.sqrt(torch.sgn(x) - torch.sgn(x)) + x,
    ],
)
def test_functions_whose_slopes_are_infinite_where_they_are_flat(func: Any) -> None:
    expected = torch.autograd.functional.jacobian(func, VALUES)
    for _ in range(3):
        torch.testing.assert_close(jacrev(func)(VALUES), expected)


def test_arguments_whose_formula_is_zeros_in_pytorch_have_no_map() -> None:
    text = (
        pathlib.Path(torchgen.__file__).parent / "packaged/autograd/derivatives.yaml"
    ).read_text()
    checked = 0
    for entry in re.split(r"\n- name: ", text)[1:]:
        name, _, overload = entry[: entry.index("(")].partition(".")
        packet = getattr(torch.ops.aten, name, None)
        operator = getattr(packet, overload or "default", None)
        if (
            operator is None
            or is_nondifferentiable(operator)
            or (found := lookup(operator)) is None
        ):
            continue
        for argument in re.findall(r"^  (\w+): zeros_like\(\w+\)$", entry, re.MULTILINE):
            if argument in found.partials:
                assert found.partials[argument] is no_map, (operator, argument)
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("declare", [elementwise, rule])
def test_a_rule_of_the_users_that_returns_nothing_raises(declare: Any) -> None:
    square = primitive(lambda x: x * x)
    declare(square, lambda x: None)
    with pytest.raises(RuleError, match=r"gave None for argument 0: expected a linear map"):
        jacrev(square)(VALUES)
