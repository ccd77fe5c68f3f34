"""Code that is prepared for each type of node gives the maps that calls put together one by one give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pushforward as pf
from pushforward.tape import lowering

VECTOR, MASK = torch.randn(4, dtype=torch.float64), torch.tensor([True, False, True, False])
INDEX, CELL = torch.tensor([2, 0, 3, 1]), nn.LSTMCell(4, 4).double()


def looped(x):
    """Nodes of the same types that differ in numbers, axes, places and shapes."""
    y = x
    for i in range(4):
        y = (
            torch.roll(y, i)
            + torch.sub(x, y, alpha=i) * (i - 1.5)
            + x[i] * y.view(2, 2).t().flatten()
        )
        y = y + torch.stack([y[i], x[0], VECTOR[i], y.sum()]) + y.cumsum(0) - F.pad(y[i:], (i, 0))
    return y


def signed_zeros(x):
    return torch.atan2(x * 0.0, x.abs()) + torch.atan2(x * -0.0, x.abs())


FUNCTIONS = {
    "looped": looped,
    "signed zeros": signed_zeros,
    "constants on either side": lambda x: (1 - x) * (VECTOR - x) + torch.where(MASK, x, VECTOR) / 3 + 2**x,
    "several shapes": lambda x: (x[:, None] * x[:3]).sum(1) + x.sum() * x.mean() + x.expand(3, 4).prod(0),
    "joined with constants": lambda x: torch.cat([x, VECTOR, x * x]) @ torch.ones(12, 4, dtype=x.dtype),
    "two outputs": lambda x: x.sort().values + x.max(0).values + torch.stack(x.unbind()[::-1]),
    "layers": lambda x: F.softmax(F.layer_norm(F.silu(x), (4,)), 0) + CELL(x[None])[0][0],
    "output needed": lambda x: x.clone().exp_() + (x * 2).tanh_() + x.sqrt() / x.norm(),
    "index writes": lambda x: x.clone().index_put_((INDEX,), x * x).index_fill(0, INDEX[:1], 2.0),
    "linear algebra": lambda x: torch.linalg.solve(torch.diag(x + 2), VECTOR) + torch.linalg.inv(torch.diag(x))[0],
    "complex": lambda x: torch.view_as_real((x * (1 + 2j)).conj().exp() * x).sum(1),
}  # fmt: skip


@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "jacobian", "hessian"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_prepared_calls_agree_with_those_put_together(name, transform, monkeypatch):
    x = torch.rand(4, dtype=torch.float64) + 0.5
    function = FUNCTIONS[name]
    pf.clear_plans()
    found = getattr(pf, transform)(function)(x)
    expected = torch.autograd.functional.jacobian(function, x)
    if transform == "hessian":
        rows = [
            torch.autograd.functional.hessian(lambda x, i=i: function(x)[i], x)
            for i in range(len(expected))
        ]
        expected = torch.stack(rows)
    torch.testing.assert_close(found, expected)
    pf.clear_plans()
    monkeypatch.setattr(lowering, "prepared", lambda *_: None)
    assert torch.equal(getattr(pf, transform)(function)(x), found)


def test_rules_declared_later_are_asked(monkeypatch):
    """Code that was prepared is forgotten when a rule is declared."""
    x = torch.rand(3)
    before = pf.jacrev(torch.sin)(x)
    library = torch.library.Library("prepared_test", "DEF")
    library.define("third(Tensor x) -> Tensor")
    library.impl("third", lambda x: x**3, "CompositeExplicitAutograd")
    pf.elementwise(torch.ops.prepared_test.third, lambda x: 3 * x**2)
    pf.clear_plans()
    assert torch.equal(pf.jacrev(torch.sin)(x), before)
    third = pf.jacrev(lambda x: torch.ops.prepared_test.third(x.sin()))(x)
    torch.testing.assert_close(third, torch.diag(3 * x.sin() ** 2 * x.cos()))
