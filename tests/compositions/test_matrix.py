"""Every transform of ours inside and outside of every other one, over functions of all sorts.

What is expected comes from autograd rows for the inner transform (exact in float64) and central
differences for the outer one, so neither engine under test is its own judge.
"""

from collections.abc import Callable

import pytest
import torch
from oracles import STEP, assert_close, central_jacobian
from torch import Tensor, nn

from pushforward import jacfwd, jvp, linearize, vmap

# torch.func.jacfwd itself warns on its first call (baselines/torch_func_contract.md, finding 7).
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

F64 = torch.float64
Function = Callable[[Tensor], Tensor]
_GENERATOR = torch.Generator().manual_seed(11)
X = torch.randn(3, dtype=F64, generator=_GENERATOR).abs() + 0.2
V = torch.randn(3, dtype=F64, generator=_GENERATOR)
W = torch.randn(2, 3, dtype=F64, generator=_GENERATOR)
CAPTURED = torch.randn(3, dtype=F64, generator=_GENERATOR).requires_grad_()
NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


# ---- Functions of three numbers ----


def smooth(x):
    return x.sin() * x.sum()


def contracting(x):
    return torch.tanh(W @ x)


def writing(x):
    y = x.clone()
    y[1:].mul_(x[:-1])
    y.add_(x.sum())
    return y.sin()


def assigning(x):
    y = torch.zeros(4, dtype=F64)
    y[:3] = x**2
    y[3] = x[0] * x[1]
    return y * y.sum()


def assigning_to_new(x):
    y = x.new_zeros(4)
    y[:3] = x**2
    y[3] = x[0] * x[1]
    return y * y.sum()


def branching(x):
    return x.exp() * x[0] if x.sum() > 0 else x.cos()


def capturing(x):
    return (CAPTURED * x).sin() * x.prod()


def network(x):
    return NET(x)


FUNCTIONS = [
    smooth, contracting, writing, assigning, assigning_to_new, branching, capturing, network
]  # fmt: skip
# PyTorch's vmap refuses these by itself: values read, or a batch written into a plain tensor.
REFUSED_BY_VMAP = {branching, assigning}


# ---- Transforms, ours and PyTorch's: function -> function ----


def pairs(x: Tensor) -> Tensor:
    return torch.stack([x, 2 * x])


def our_jacfwd(f: Function) -> Function:
    return jacfwd(f)


def our_chunked_jacfwd(f: Function) -> Function:
    return jacfwd(f, chunk_size=2)


def our_jvp(f: Function) -> Function:
    return lambda x: jvp(f, (x,), (V,))[1]


def our_linearize(f: Function) -> Function:
    return lambda x: linearize(f, x)[1](V)


def torch_jacfwd(f: Function) -> Function:
    return torch.func.jacfwd(f)


def torch_jacrev(f: Function) -> Function:
    return torch.func.jacrev(f)


def torch_jvp(f: Function) -> Function:
    return lambda x: torch.func.jvp(f, (x,), (V,))[1]


def torch_grad(f: Function) -> Function:
    return torch.func.grad(lambda x: f(x).sum())


def torch_vmap(f: Function) -> Function:
    return lambda x: vmap(f)(pairs(x))


def autograd_grad(f: Function) -> Function:
    def gradient(x):
        leaf = x if x.requires_grad else (x * 1).requires_grad_()
        return torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)[0]

    return gradient


OURS = [our_jacfwd, our_chunked_jacfwd, our_jvp, our_linearize]
THEIRS = [torch_jacfwd, torch_jacrev, torch_jvp, torch_grad, torch_vmap, autograd_grad]


# ---- The same transforms by means of plain autograd, and by central differences ----


def rows(f: Function) -> Function:
    return lambda x: torch.autograd.functional.jacobian(f, x.detach())


def differences(f: Function) -> Function:
    return lambda x: central_jacobian(f, x)


def meaning(transform: Callable[[Function], Function], jacobian) -> Callable[[Function], Function]:
    """The transform written with ``jacobian`` (rows or differences), whoever implements it."""
    if transform in (our_jacfwd, our_chunked_jacfwd, torch_jacfwd, torch_jacrev):
        return jacobian
    if transform in (our_jvp, our_linearize, torch_jvp):
        return lambda f: lambda x: jacobian(f)(x) @ V
    if transform is torch_vmap:
        return lambda f: lambda x: torch.stack([f(row) for row in pairs(x)])
    return lambda f: lambda x: jacobian(f)(x).reshape(-1, 3).sum(0)


def expected(outer, inner, func: Function) -> Tensor:
    return meaning(outer, differences)(meaning(inner, rows)(func))(X)


CASES = [
    (outer, inner, func)
    for outer in OURS + THEIRS
    for inner in OURS + THEIRS
    for func in FUNCTIONS
    if (outer in OURS or inner in OURS)
    and not (torch_vmap in (outer, inner) and func in REFUSED_BY_VMAP)
]


@pytest.mark.parametrize(
    ("outer", "inner", "func"),
    CASES,
    ids=[f"{o.__name__}-of-{i.__name__}-of-{f.__name__}" for o, i, f in CASES],
)
def test_outer_of_inner_equals_central_differences_of_autograd_rows(outer, inner, func):
    actual = outer(inner(func))(X.clone())
    reference = expected(outer, inner, func)
    assert actual.shape == reference.shape
    assert_close(actual, reference)


THIRD_ORDER = [
    (a, b, c)
    for a in (our_jacfwd, torch_jacrev)
    for b in (our_jvp, torch_vmap, torch_grad)
    for c in (our_jacfwd, our_linearize, torch_grad)
    if {a, b, c} & set(OURS)
]


@pytest.mark.parametrize("func", [smooth, contracting, writing], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("a", "b", "c"), THIRD_ORDER, ids=["-of-".join(t.__name__ for t in abc) for abc in THIRD_ORDER]
)
def test_three_transforms_deep_equals_central_differences(a, b, c, func):
    """Outermost by central differences of the two inner ones, checked by the matrix above."""
    assert_close(a(b(c(func)))(X.clone()), meaning(a, differences)(b(c(func)))(X))


def test_three_times_jacfwd_equals_the_closed_form():
    third = jacfwd(jacfwd(jacfwd(torch.sin)))(X)
    closed = torch.zeros(3, 3, 3, 3, dtype=F64)
    for i in range(3):
        closed[i, i, i, i] = -X[i].cos()
    assert_close(third, closed)


@pytest.mark.parametrize("transform", OURS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("outer", ["torch.func.grad", "autograd", "jacrev", "ours"])
def test_a_captured_tensor_tracked_outside_gets_its_derivative(transform, outer):
    def value(w):
        return (transform(lambda x: (w * x).sin() * w.sum())(X) ** 2).sum()

    w = CAPTURED.detach().clone()
    reference = torch.zeros(3, dtype=F64)
    for i in range(3):
        step = torch.zeros(3, dtype=F64)
        step[i] = STEP
        reference[i] = (value(w + step) - value(w - step)) / (2 * STEP)
    if outer == "torch.func.grad":
        actual = torch.func.grad(value)(w)
    elif outer == "jacrev":
        actual = torch.func.jacrev(value)(w)
    elif outer == "ours":
        actual = jacfwd(value)(w)
    else:
        leaf = w.requires_grad_()
        (actual,) = torch.autograd.grad(value(leaf), leaf)
    assert_close(actual, reference)


@pytest.mark.parametrize("transform", OURS, ids=lambda t: t.__name__)
def test_vmap_over_a_captured_tensor_equals_a_loop(transform):
    ws = torch.stack([V, 2 * V, X])
    batched = vmap(lambda w: transform(lambda x: (w * x).sin() * x.sum())(X))(ws)
    looped = torch.stack([transform(lambda x, w=w: (w * x).sin() * x.sum())(X) for w in ws])
    assert_close(batched, looped)


@pytest.mark.parametrize("transform", OURS, ids=lambda t: t.__name__)
def test_vmap_of_vmap_outside_equals_a_loop(transform):
    xs = torch.randn(2, 4, 3, dtype=F64)
    looped = torch.stack([torch.stack([transform(smooth)(x) for x in row]) for row in xs])
    assert_close(vmap(vmap(transform(smooth)))(xs), looped)


@pytest.mark.parametrize("transform", OURS, ids=lambda t: t.__name__)
def test_a_batched_write_under_vmap_is_right(transform):
    xs = torch.randn(4, 3, dtype=F64)
    assert_close(
        vmap(transform(writing))(xs),
        torch.stack([meaning(transform, rows)(writing)(x) for x in xs]),
    )


def test_functionalize_works_both_ways():
    reference = rows(writing)(X)
    assert_close(jacfwd(torch.func.functionalize(writing))(X), reference)
    assert_close(torch.func.functionalize(jacfwd(writing))(X), reference)


def test_torch_func_hessian_inside_and_outside():
    scalar = lambda x: smooth(x).sum()  # noqa: E731
    third = central_jacobian(torch.func.jacrev(torch.func.jacrev(scalar)), X)
    assert_close(jacfwd(torch.func.hessian(scalar))(X), third)
    assert_close(torch.func.hessian(lambda x: jacfwd(scalar)(x)[0])(X), third[0])
