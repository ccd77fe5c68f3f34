"""Every nesting of our transforms to depth 3, and of ours with PyTorch's, against towers of derivatives.

What is expected is algebra on the derivative tensors of the innermost function, which come from nested rows by
``torch.autograd`` and nothing else: a Jacobian is the next tensor of the tower, a gradient sums the output's axes
first, a directional derivative contracts the last axis, and so on. No transform under test is its own judge.
"""

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from oracles import assert_close
from torch import Tensor, nn

import pushforward
from pushforward import vmap

# PyTorch's vmap says so of operators that torch.func's own transforms call.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

F64 = torch.float64
Function = Callable[[Tensor], Tensor]
_GENERATOR = torch.Generator().manual_seed(5)
X = torch.tensor([0.4, 0.7], dtype=F64)
V = torch.tensor([0.6, -1.1], dtype=F64)
CAPTURED = torch.tensor([1.3, 0.8], dtype=F64).requires_grad_()
NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 2)).double()
for _parameter in NET.parameters():
    _parameter.data = torch.randn(_parameter.shape, dtype=F64, generator=_GENERATOR)


# ---- Functions of two numbers ----


def smooth(x):
    return x.sin() * x.exp().sum()


def writing(x):
    y = x.clone()
    y[1:].mul_(x[:-1])
    y.add_((x * x).sum())
    return y.sin()


def assigning(x):
    y = x.new_zeros(2)
    y[0] = x[1] ** 2
    y[1:] = x[:1] * x[1].cos()
    return y * y.sum()


def looping(x):
    y = x
    for step in range(2):
        y = (y * x.roll(step)).sin() + x
    return y


def branching(x):
    if x.sum() > 0:
        return x.exp() * x[0]
    return x.cos()


def capturing(x):
    return (CAPTURED * x).sin() * x.prod()


def network(x):
    return NET(x)


def network_by_elementary_operators(x):
    """The same; PyTorch 2.13's third derivative through ``native_layer_norm`` is wrong, ours is not."""
    linear, tanh, norm, last = NET
    y = tanh(linear(x))
    y = y - y.mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return last(y * norm.weight + norm.bias)


FUNCTIONS = [smooth, writing, assigning, looping, branching, capturing, network]
AT_DEPTH_THREE = [f for f in FUNCTIONS if f is not looping]
TOWER_OF = {network: network_by_elementary_operators}


# ---- The tower of derivatives of a function ----


class Partials:
    """The partial derivatives of a function of two numbers at one point, by repeated ``torch.autograd.grad``.

    Those of order k are kept once for each number of derivatives along the second axis, in one graph.
    """

    def __init__(self, func: Function, x: Tensor) -> None:
        self.leaf = x.clone().requires_grad_()
        out = func(self.leaf)
        self.shape = out.shape
        self.orders = [[[y] for y in out.flatten()]]

    def of_order(self, order: int) -> Tensor:
        """The derivative tensor with axes ``(*out, 2, ..., 2)``."""
        while len(self.orders) <= order:
            self.orders.append([self.differentiated(ys) for ys in self.orders[-1]])
        axes = list(itertools.product((0, 1), repeat=order))
        values = [torch.stack([ys[sum(a)] for a in axes]) for ys in self.orders[order]]
        return torch.stack(values).detach().reshape(*self.shape, *[2] * order)

    def differentiated(self, ys: list[Tensor]) -> list[Tensor]:
        grads = [
            torch.autograd.grad(
                y, self.leaf, create_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            if y.requires_grad
            else torch.zeros(2, dtype=F64)
            for y in ys
        ]
        return [grads[0][0], *(g[1] for g in grads)]


partials_at = functools.cache(lambda func, scale: Partials(TOWER_OF.get(func, func), scale * X))


@functools.cache
def tower(func: Function, scale: float, order: int) -> Tensor:
    """The derivative tensor of that order at ``scale * X``: axes ``(*out, 2, ..., 2)``."""
    return partials_at(func, scale).of_order(order)


Tower = Callable[[float, int], Tensor]


def num_out(values: Tensor, order: int) -> int:
    """How many of the axes belong to the output."""
    return values.dim() - order


# ---- Transforms: what they do to a function, and to its tower ----


def cotangent(shape: torch.Size) -> Tensor:
    """Some fixed cotangent of any shape."""
    count = torch.Size(shape).numel()
    return torch.linspace(-0.7, 1.2, count, dtype=F64).reshape(shape)


def next_of(t: Tower) -> Tower:
    return lambda scale, order: t(scale, order + 1)


def twice_next_of(t: Tower) -> Tower:
    return lambda scale, order: t(scale, order + 2)


def summed_next_of(t: Tower) -> Tower:
    def at(scale: float, order: int) -> Tensor:
        values = t(scale, order + 1)
        axes = tuple(range(num_out(values, order + 1)))
        return values.sum(axes) if axes else values

    return at


def along_v_of(t: Tower) -> Tower:
    return lambda scale, order: t(scale, order + 1) @ V


def weighted_next_of(t: Tower) -> Tower:
    def at(scale: float, order: int) -> Tensor:
        values = t(scale, order + 1)
        count = num_out(values, order + 1)
        weights = cotangent(values.shape[:count])
        return torch.tensordot(weights, values, count)

    return at


def pairs_of(t: Tower) -> Tower:
    """The batch holds x and 2x, so that the derivative of order k has a factor of 2 ** k in its second half."""
    return lambda scale, order: torch.stack([t(scale, order), 2**order * t(2 * scale, order)])


def jacfwd(api, f: Function) -> Function:
    return api.jacfwd(f)


def jacrev(api, f: Function) -> Function:
    return api.jacrev(f)


def jacobian(api, f: Function) -> Function:
    return api.jacobian(f)


def hessian(api, f: Function) -> Function:
    return api.hessian(f)


def grad(api, f: Function) -> Function:
    return api.grad(lambda x: f(x).sum())


def jvp(api, f: Function) -> Function:
    return lambda x: api.jvp(f, (x,), (V,))[1]


def vjp(api, f: Function) -> Function:
    def pulled(x):
        out, pull = api.vjp(f, x)
        return pull(cotangent(out.shape))[0]

    return pulled


def batch(api, f: Function) -> Function:
    return lambda x: vmap(f)(torch.stack([x, 2 * x]))


def autograd(api, f: Function) -> Function:
    def gradient(x):
        leaf = (x * 1).requires_grad_()
        return torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)[0]

    return gradient


MEANING = {
    jacfwd: next_of,
    jacrev: next_of,
    jacobian: next_of,
    hessian: twice_next_of,
    grad: summed_next_of,
    jvp: along_v_of,
    vjp: weighted_next_of,
    batch: pairs_of,
    autograd: summed_next_of,
}

Step = tuple[object, Callable[[object, Function], Function]]
OURS: list[Step] = [
    (pushforward, t) for t in (jacfwd, jacrev, jacobian, grad, vjp, jvp, hessian, batch)
]
THEIRS: list[Step] = [
    *((torch.func, t) for t in (jacfwd, jacrev, grad, vjp, jvp, hessian)),
    (torch, autograd),
]


def name_of(step: Step) -> str:
    api, transform = step
    return transform.__name__ if api is pushforward else f"{api.__name__}.{transform.__name__}"


def check(steps: tuple[Step, ...], func: Function) -> None:
    """Compare the nesting, outermost first, with the algebra on the tower."""
    nested: Function = func
    expected: Tower = functools.partial(tower, func)
    for api, transform in reversed(steps):
        nested = transform(api, nested)
        expected = MEANING[transform](expected)
    reference = expected(1.0, 0)
    actual = nested(X.clone())
    assert actual.shape == reference.shape
    size = max(1.0, float(reference.abs().max()))
    assert_close(actual / size, reference / size, rtol=1e-7, atol=1e-8)


def nestings(depth: int, steps: list[Step]) -> list[tuple[Step, ...]]:
    return list(itertools.product(steps, repeat=depth))


def label(steps: tuple[Step, ...]) -> str:
    return "-of-".join(name_of(s) for s in steps)


def order_of(steps: tuple[Step, ...]) -> int:
    return sum({hessian: 2, batch: 0}.get(transform, 1) for _, transform in steps)


def is_meant(steps: tuple[Step, ...], func: Function) -> bool:
    """Tell whether PyTorch itself, and docs/reference/differences.md, allow the nesting."""
    transforms = [transform for _, transform in steps]
    if batch in transforms and func is branching:
        return False  # vmap allows no reading of values
    if autograd in transforms:
        outside = steps[: len(steps) - 1 - transforms[::-1].index(autograd)]
        if any(api is torch.func or transform is batch for api, transform in outside):
            return False  # torch.func allows no requires_grad_ inside
    return True


def is_ours(step: Step) -> bool:
    return step[0] is pushforward and step[1] is not batch


def check_all(nests: list[tuple[Step, ...]], func: Function) -> None:
    """Check them all, and say which ones fail: one test for each would cost more than the checks do."""
    failed = []
    for steps in nests:
        if not is_meant(steps, func):
            continue
        try:
            check(steps, func)
        except Exception as error:
            failed.append(f"{label(steps)}: {type(error).__name__}: {error}"[:240])
    assert not failed, f"{len(failed)} nestings of {func.__name__}:\n" + "\n".join(failed)


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("depth", [1, 2])
def test_ours_at_depths_one_and_two(func, depth):
    check_all(nestings(depth, OURS), func)


@pytest.mark.parametrize("func", AT_DEPTH_THREE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("outer", OURS, ids=name_of)
def test_ours_at_depth_three(outer, func):
    check_all([(outer, *rest) for rest in nestings(2, OURS) if order_of((outer, *rest)) <= 3], func)


@pytest.mark.parametrize("outer", OURS, ids=name_of)
def test_orders_four_to_six(outer):
    """They have a Hessian of a Hessian or of something that differentiates, and all three are transforms of ours."""
    check_all(
        [(outer, *rest) for rest in nestings(2, OURS) if order_of((outer, *rest)) > 3], smooth
    )


# ---- Ours and PyTorch's, inside and outside one another ----

MIXED = [
    steps
    for steps in nestings(2, OURS + THEIRS)
    if any(map(is_ours, steps)) and any(s in THEIRS for s in steps)
]
# Every ordered pair of neighbours occurs in it, with a third outside and with a third inside.
ONE_THIRD = [
    steps
    for steps in nestings(3, OURS + THEIRS)
    if any(map(is_ours, steps))
    and any(s in THEIRS for s in steps)
    and sum((OURS + THEIRS).index(s) for s in steps) % 3 == 0
    and order_of(steps) <= 3
]


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_ours_and_theirs_at_depth_two(func):
    check_all(MIXED, func)


@pytest.mark.parametrize("outer", OURS + THEIRS, ids=name_of)
def test_ours_and_theirs_at_depth_three(outer):
    check_all([steps for steps in ONE_THIRD if steps[0] == outer], smooth)


INNERMOST = {
    "jvp": lambda f: lambda x: pushforward.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacfwd": pushforward.jacfwd,
    "vjp": lambda f: lambda x: pushforward.vjp(f, x)[1](torch.ones_like(x))[0],
    "linearize": lambda f: lambda x: pushforward.linearize(f, x)[1](torch.ones_like(x)),
    "torch.func.jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
}
FUNCTIONS = {
    "cube": lambda x: x**3,
    "product": lambda x: x * x * x,
    "quotient": lambda x: 1.2 / (x.abs() + 1.1),
}


@pytest.mark.parametrize("func", FUNCTIONS)
@pytest.mark.parametrize("inner", INNERMOST)
@pytest.mark.parametrize("outer", ["jacfwd", "jacrev", "jacobian"])
def test_zeros_without_memory_of_dual_numbers_between_are_no_obstacle_to_kernels(
    outer, inner, func
):
    x = torch.tensor([1.5], dtype=torch.float64)

    def middle(x):
        return torch.func.jvp(INNERMOST[inner](FUNCTIONS[func]), (x,), (torch.ones_like(x),))[1]

    def row(x):
        (second,) = torch.autograd.grad(FUNCTIONS[func](x).sum(), x, create_graph=True)
        return torch.autograd.grad(second.sum(), x, create_graph=True)[0]

    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(row(leaf).sum(), leaf)[0]
    for _ in range(6):  # the later ones by kernels, and read by scripts
        assert_close(getattr(pushforward, outer)(middle)(x).reshape(1), expected)
