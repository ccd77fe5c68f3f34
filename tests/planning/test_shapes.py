"""Shapes of what operators give for shadows: those that PyTorch's own functions of the meta device give."""

import random
import subprocess
import sys

import pytest
import torch

from pushforward import clear_plans, explain
from pushforward.linear.axes import broadcast
from pushforward.planning import orders
from pushforward.planning.shapes import Shapes
from pushforward.tape.private_torch import bare

aten = torch.ops.aten


def meta(*shape, dtype=torch.float64):
    return torch.empty(shape, dtype=dtype, device="meta")


def assert_same(compute, *args):
    """Strides of axes with one position tell nothing."""
    expected = compute(*args)
    with Shapes():
        actual = compute(*args)
    assert (actual.shape, actual.dtype, actual.device) == (
        expected.shape, expected.dtype, expected.device,
    )  # fmt: skip
    strides = zip(actual.shape, actual.stride(), expected.stride(), strict=True)
    assert all(a == b for n, a, b in strides if n > 1)


def operand(shape, rng):
    """A tensor of that shape, or one that broadcasts to it, with axes in any order in memory."""
    sizes = [1 if rng.random() < 0.3 else n for n in shape]
    axes = list(range(len(sizes)))
    rng.shuffle(axes)
    found = meta(*(sizes[a] for a in axes))
    found = found.permute([axes.index(a) for a in range(len(axes))])
    if rng.random() < 0.3:
        found = found.expand(shape)
    return found[0] if sizes and sizes[0] == 1 and rng.random() < 0.5 else found


@pytest.mark.parametrize("operator", [torch.add, torch.sub, torch.mul])
def test_elementwise_results_have_the_strides_of_pytorch(operator):
    rng = random.Random(0)
    for _ in range(150):
        shape = [rng.choice((2, 3, 4)) for _ in range(rng.randrange(5))]
        assert_same(operator, operand(shape, rng), operand(shape, rng))


def test_results_of_one_argument_and_of_numbers():
    rng = random.Random(0)
    for _ in range(50):
        x = operand([2, 3, 4], rng)
        assert_same(torch.neg, x)
        assert_same(torch.mul, x, 2.5)
        assert_same(torch.mul, x, 2j)


def test_dtypes_are_promoted():
    single, integer = meta(2, 3, dtype=torch.float32), meta(3, dtype=torch.int64)
    assert_same(torch.mul, single, meta(3))
    assert_same(torch.add, single, integer)
    assert_same(torch.mul, integer, 0.5)
    assert_same(torch.mul, single, meta())


@pytest.mark.parametrize("axes", [(0, 1), (2, 0), (1, 3), (-2, -1)])
@pytest.mark.parametrize("offset", [0, 1])
def test_diagonals(axes, offset):
    for x in (meta(2, 3, 4), meta(4, 3, 2).permute(2, 1, 0), meta(2, 3, 0)):
        assert_same(torch.diag_embed, x, offset, *axes)


def test_identities_and_products_with_vectors():
    assert_same(lambda: torch.eye(3, dtype=torch.float32, device="meta"))
    assert_same(lambda: torch.eye(3, 4, device="meta"))
    assert_same(torch.mv, meta(3, 4), meta(4))


def test_products_of_matrices():
    for dtype in (torch.float32, torch.complex128):
        left, right = meta(3, 4, dtype=dtype), meta(5, 4, dtype=dtype)
        assert_same(torch.mm, left, right.T)
        assert_same(torch.bmm, left.expand(2, 3, 4), right.expand(2, 5, 4).mT)
    assert_same(torch.mm, meta(0, 4), meta(4, 2))


def test_products_that_pytorch_refuses_are_refused():
    with pytest.raises(RuntimeError, match="same reduction dim"), Shapes():
        torch.mm(meta(3, 4), meta(3, 4))


def test_tensors_with_numbers_are_left_alone():
    x = torch.rand(3)
    with Shapes():
        assert torch.equal(x + x, 2 * x)
        assert torch.equal(torch.eye(2), torch.diag(torch.ones(2)))


def test_broadcasting_is_that_of_pytorch():
    for first, second in [((), (3,)), ((3, 1), (1, 4)), ((0, 1), (1,)), ((2, 1, 3), (1, 5, 1))]:
        assert broadcast(first, second) == torch.broadcast_shapes(first, second)
        assert broadcast(second, first) == torch.broadcast_shapes(first, second)


def test_predictions_are_those_by_functions_of_pytorch(monkeypatch):
    weight = torch.randn(4, 3)

    def program(x):
        y = torch.tanh(weight @ x)
        z = torch.outer(y, x).cumsum(0)
        return (z * y[:, None] - z.mean()).T @ y

    def predicted():
        clear_plans()
        plan = explain(program, torch.rand(3)).plan
        return {m: (p.cost, p.peak_bytes) for m, p in plan.predictions.items()}

    def by_pytorch(compute):
        with bare():
            return compute()

    found = predicted()
    monkeypatch.setattr(orders, "of_shadows", by_pytorch)
    assert found == predicted()


def test_planning_imports_neither_the_compiler_nor_sympy():
    code = (
        "import sys, torch\n"
        "from pushforward import jacobian\n"
        "weight = torch.rand(3, 5)\n"
        "def f(x):\n"
        "    a, b, c, d, e = x\n"
        "    return torch.stack([a + b * c.cos(), a - d.sin(), e]) + weight @ x.tanh()\n"
        "for _ in range(5): jacobian(f)(torch.rand(5))\n"
        "net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))\n"
        "for _ in range(3): jacobian(net)(torch.rand(6, 5))\n"
        "def kinetics(y):\n"
        "    a, b, c = y\n"
        "    return torch.stack([b * c - a, a - b * b, b * b])\n"
        "for _ in range(3): jacobian(kinetics)(torch.rand(3, dtype=torch.float64))\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
