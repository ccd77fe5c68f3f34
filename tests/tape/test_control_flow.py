"""Values are concrete: branching, loops, printing work; leaving the trace is no silent zero."""

import math

import numpy as np
import pytest
import torch
from oracles import assert_close, central_jacobian

from pushforward import grad, jacfwd, jacrev, jvp, linearize

F64 = torch.float64
X = torch.tensor([0.8, -0.3, 1.7], dtype=F64)


def branch_on_a_sum(x):
    if x.sum() > 0:
        return x.sin()
    return x**2


def branch_on_each_value(x):
    return torch.stack([v.exp() if v > 0 else v**3 for v in x])


def while_loop_until_small(x):
    y, steps = x, 0
    while y.norm() > 0.5 and steps < 20:
        y = y * 0.7 + 0.01 * y.sin()
        steps += 1
    return y


def newton_for_the_cube_root(x):
    y = torch.ones_like(x)
    for _ in range(30):
        step = (y**3 - (x.abs() + 1)) / (3 * y**2)
        y = y - step
        if float(step.abs().max()) < 1e-14:
            break
    return y


def index_by_argmax(x):
    return x * x[x.argmax()] + x[int(x.argmin())]


def sort_by_values_in_python(x):
    order = sorted(range(len(x)), key=lambda i: x[i].item())
    return x[order] * torch.arange(3.0, dtype=F64)


def boolean_masks(x):
    return x[x > 0] ** 2


def nonzero_positions(x):
    return x[torch.nonzero(x > 0).squeeze(1)].cumsum(0)


def comparisons_of_every_kind(x):
    y = x
    if bool((x > -10).all()) and torch.allclose(x, x) and not torch.equal(x, x + 1):
        y = y * 2
    if x.isnan().any() or (x[0] == x[1]):
        y = y * 100
    return y.max() * x if 0.5 <= x[0] < 0.9 else y


def iterate_and_unpack(x):
    a, b, c = x
    total = a * b
    for v in x:
        total = total + v * c
    return total


def builtin_functions(x):
    return torch.stack([sum(x), max(x[0], x[2]) ** 2, min(x), abs(x[1]), x[0] ** 2.5])


def python_numbers_on_the_left(x):
    return 2 - x + 3 / (4 + x * x) + 2**x - (-x)


def shapes_and_lengths(x):
    assert len(x) == 3
    assert x.ndim == x.dim() == 1
    assert x.size(0) == x.shape[0] == x.numel() == 3
    return x / len(x)


FUNCTIONS = [
    branch_on_a_sum,
    branch_on_each_value,
    while_loop_until_small,
    newton_for_the_cube_root,
    index_by_argmax,
    sort_by_values_in_python,
    boolean_masks,
    nonzero_positions,
    comparisons_of_every_kind,
    iterate_and_unpack,
    builtin_functions,
    python_numbers_on_the_left,
    shapes_and_lengths,
]


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_control_flow_on_values_is_followed(func):
    expected = central_jacobian(func, X)
    assert_close(jacfwd(func)(X), expected)
    assert_close(linearize(func, X)[1](X), expected @ X)
    assert_close(jvp(func, (X,), (X,))[1], expected @ X)


@pytest.mark.parametrize("func", FUNCTIONS, ids=lambda f: f.__name__)
def test_control_flow_works_at_second_order(func):
    assert_close(jacfwd(jacfwd(func))(X), central_jacobian(jacfwd(func), X))


def test_both_branches_are_taken_at_their_own_points():
    assert_close(jacfwd(branch_on_a_sum)(X), torch.diag(X.cos()))
    assert_close(jacfwd(branch_on_a_sum)(-X), torch.diag(-2 * X))


def test_conversions_give_python_values():
    def f(x):
        first = x[0]
        assert type(first.item()) is float
        assert first.item() == 0.8
        assert float(first) == 0.8
        assert int(x[2]) == 1
        assert bool(first)
        assert complex(first) == 0.8
        assert math.isclose(math.sin(first), math.sin(0.8))
        assert x.tolist() == [0.8, -0.3, 1.7]
        assert f"{first:.2f}" == "0.80"
        return x * first

    assert_close(jacfwd(f)(X), central_jacobian(lambda x: x * x[0], X))


def test_item_and_tolist_are_constants_as_in_torch_func():
    assert_close(jacfwd(lambda x: x * x[0].item())(X), 0.8 * torch.eye(3, dtype=F64))
    assert_close(jacfwd(lambda x: x * float(x[0]))(X), 0.8 * torch.eye(3, dtype=F64))
    constant = jacfwd(lambda x: x * torch.tensor(x.tolist(), dtype=F64))(X)
    assert_close(constant, torch.diag(X))


def test_printing_shows_the_values(capsys):
    def f(x):
        print(x)
        print(repr(x.sum()), str(x[0]))
        return x.sin()

    assert_close(jacfwd(f)(X), torch.diag(X.cos()))
    shown = capsys.readouterr().out
    assert "0.8" in shown
    assert "-0.3" in shown
    assert "2.2" in shown


def test_printing_works_in_nested_recordings(capsys):
    def f(x):
        print(x)
        return x**2

    jacfwd(jacfwd(f))(X)
    assert "1.7" in capsys.readouterr().out


LEAVING = {
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "numpy of an intermediate": lambda x: torch.from_numpy(x.sin().numpy()) + x,
    "numpy asarray": lambda x: torch.from_numpy(np.asarray(x)) * x,
    "numpy array": lambda x: torch.as_tensor(np.array(x)) * x,
    "numpy ufunc": lambda x: torch.as_tensor(np.sin(x)),
}


# NumPy 2 warns that torch.Tensor.__array__ (PyTorch 2.13) has no copy keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", LEAVING)
def test_leaving_for_numpy_raises_as_in_torch_func(name):
    """The derivative would be lost unseen."""
    func = LEAVING[name]
    with pytest.raises((RuntimeError, TypeError), match=r"(?i)numpy|data pointer|detach"):
        jacfwd(func)(X)


def test_numpy_of_a_detached_value_is_a_constant():
    def f(x):
        return x * torch.from_numpy(x.detach().clone().numpy().copy())

    try:
        jac = jacfwd(f)(X)
    except RuntimeError as error:
        assert "numpy" in str(error).lower() or "data pointer" in str(error)  # noqa: PT017
    else:
        assert_close(jac, torch.diag(X))


REBUILDING = {
    "tensor of a list": lambda x: torch.tensor([x[0] * 2, x[1]]),
    "as_tensor of a list": lambda x: torch.as_tensor([x[0] * 2, x[1]]),
    "tensor of nested lists": lambda x: torch.tensor([[x[0]], [x[1] * 3]]),
}


@pytest.mark.parametrize("name", REBUILDING)
def test_a_tensor_rebuilt_from_a_list_of_numbers_is_a_constant_as_in_torch_func(name):
    """torch.func gives zeros silently; we raise, or carry the derivative, never a silent zero."""
    func = REBUILDING[name]
    assert_close(jacfwd(func)(X), torch.func.jacfwd(func)(X))


def test_stack_of_scalars_is_the_way_to_rebuild():
    jac = jacfwd(lambda x: torch.stack([x[0] * 2, x[1] * x[2]]))(X)
    expected = torch.tensor(
        [
            [2.0, 0.0, 0.0],  # d(2 x0)
            [0.0, 1.7, -0.3],  # d(x1 x2)
        ],
        dtype=F64,
    )
    assert_close(jac, expected)


def test_data_attribute_and_new_tensor_are_constants():
    assert_close(jacfwd(lambda x: x.data * x)(X), torch.diag(X))
    assert_close(jacfwd(lambda x: x.new_tensor([1.0, 2.0, 3.0]) * x)(X).sum(), torch.tensor(6.0))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (jacfwd, grad),
        (jacfwd, torch.func.grad),
        (jacrev, torch.func.grad),
        (torch.func.jacrev, grad),
    ],
)
def test_data_attribute_has_a_derivative_at_no_level(outer, inner):
    """As what `detach` returns."""
    for _ in range(4):
        for constant in (lambda x: x.data, lambda x: x.detach()):
            nested = outer(inner(lambda x, c=constant: ((c(x) * 2 + x) ** 2).sum()))
            assert_close(nested(X), 2 * torch.eye(3, dtype=F64))


def test_attributes_of_a_tracer_are_those_of_its_value():
    seen = {}

    def f(x):
        seen.update(
            dtype=x.dtype,
            device=x.device,
            shape=tuple(x.shape),
            floating=x.is_floating_point(),
            leaf=isinstance(x, torch.Tensor),
            tensor=torch.is_tensor(x),
            layout=x.layout,
        )
        return x * 1

    jacfwd(f)(X)
    assert seen == {
        "dtype": F64,
        "device": torch.device("cpu"),
        "shape": (3,),
        "floating": True,
        "leaf": True,
        "tensor": True,
        "layout": torch.strided,
    }
