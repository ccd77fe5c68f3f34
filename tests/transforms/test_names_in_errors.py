"""An error begins with the name of the function that was called, also where others do its work."""

import pytest
import torch

import pushforward as pf

X, INTEGERS = torch.ones(3), torch.ones(3, dtype=torch.int64)
SCALAR = {
    "grad",
    "grad_and_value",
    "hvp",
    "hessian_operator",
}  # of a function that returns a number


def cubes(x):
    return (x**3).sum()


CALLS = {
    "jacfwd": lambda f, x: pf.jacfwd(f)(x),
    "jacrev": lambda f, x: pf.jacrev(f)(x),
    "jacobian": lambda f, x: pf.jacobian(f)(x),
    "value_and_jacobian": lambda f, x: pf.value_and_jacobian(f)(x),
    "hessian": lambda f, x: pf.hessian(f)(x),
    "grad": lambda f, x: pf.grad(f)(x),
    "grad_and_value": lambda f, x: pf.grad_and_value(f)(x),
    "hvp": lambda f, x: pf.hvp(f, (x,), (x,)),
    "jvp": lambda f, x: pf.jvp(f, (x,), (x,)),
    "vjp": lambda f, x: pf.vjp(f, x),
    "linearize": lambda f, x: pf.linearize(f, x),
    "jacobian_operator": lambda f, x: pf.jacobian_operator(f, x),
    "hessian_operator": lambda f, x: pf.hessian_operator(f, x),
    "gauss_newton_operator": lambda f, x: pf.gauss_newton_operator(f, x),
    "pattern": lambda f, x: pf.pattern(f, x),
    "explain": lambda f, x: pf.explain(f, x),
}
MISTAKES = {
    "not a function": (3, X),
    "not a tensor": (cubes, "x"),
    "integers": (cubes, INTEGERS),
    "no output": (lambda x: None, X),
    "integer output": (lambda x: x.argmax(), X),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", CALLS)
def test_every_transform(name, mistake):
    with pytest.raises(pf.PushforwardError, match=f"^{name}: .*(got|but)"):
        CALLS[name](*MISTAKES[mistake])


@pytest.mark.parametrize("name", sorted(SCALAR))
def test_what_wants_a_number(name):
    with pytest.raises(ValueError, match=rf"^{name}: .*scalar tensor, got .*1 dims.*\.sum\(\)"):
        CALLS[name](torch.sin, X)


def test_the_loss_of_gauss_newton_matrices():
    with pytest.raises(ValueError, match=r"^gauss_newton_operator: .*scalar tensor"):
        pf.gauss_newton_operator(torch.sin, X, loss=torch.cos)


@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "jacobian", "value_and_jacobian", "hessian"])
@pytest.mark.parametrize(
    "options",
    [
        {"argnums": 3},
        {"argnums": (0, 0)},
        {"chunk_size": 0},
        {"memory_limit": 1},
        {"has_aux": True},
    ],
    ids=str,
)
def test_options_of_jacobians(name, options):
    with pytest.raises(pf.PushforwardError, match=f"^{name}: "):
        getattr(pf, name)(cubes, **options)(X)


@pytest.mark.parametrize("name", ["jacobian", "value_and_jacobian", "hessian"])
@pytest.mark.parametrize(
    "options",
    [
        {"output": "cube"},
        {"output": "csr", "pattern": 3},
        {"output": "csr", "pattern": torch.eye(4)},
        {"output": "csr", "chunk_size": 1},
    ],
    ids=str,
)
def test_options_of_sparse_results(name, options):
    with pytest.raises(pf.PushforwardError, match=f"^{name}: "):
        getattr(pf, name)(cubes, **options)(X)


@pytest.mark.parametrize("name", ["jacobian", "value_and_jacobian"])
@pytest.mark.parametrize(
    ("options", "x"),
    [
        ({"mode": "sideways"}, X),
        ({"mode": "cross", "chunk_size": 1}, X),
        ({"mode": "cross"}, X.to(torch.complex64)),
        ({"randomness": "some"}, X),
    ],
    ids=str,
)
def test_options_of_orders(name, options, x):
    with pytest.raises(pf.PushforwardError, match=f"^{name}: "):
        getattr(pf, name)(torch.sin, **options)(x)


def test_tangents_of_another_shape_or_structure():
    for vectors in ((torch.ones(4),), (X, X)):
        with pytest.raises(pf.PushforwardError, match=r"^hvp: "):
            pf.hvp(cubes, (X,), vectors)


@pytest.mark.parametrize("function", [pf.spy, pf.coloring, pf.Pattern.from_matrix])
def test_what_is_no_matrix(function):
    with pytest.raises(pf.PushforwardError, match=rf"^{function.__qualname__}: .*got int"):
        function(3)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: pf.rule(3),
        lambda: pf.elementwise(3),
        lambda: pf.nondifferentiable(3),
        lambda: pf.primitive(3),
        lambda: pf.rule(torch.ops.aten.sin, lambda x: x),
        lambda: pf.elementwise(torch.ops.aten.sin, torch.cos),
        lambda: pf.nondifferentiable(torch.ops.aten.sin),
        lambda: pf.rule(pf.primitive(torch.sin), 3),
        lambda: pf.elementwise(pf.primitive(torch.sin), 3),
    ],
)
def test_rules(declare):
    with pytest.raises(
        pf.PushforwardError, match=r"^(rule|elementwise|nondifferentiable|primitive): .*: got "
    ):
        declare()
