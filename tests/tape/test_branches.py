"""Functions that take another branch after some calls: it is run once where its operators are known."""

import pytest
import torch

from pushforward import UnsupportedError, grad, jacfwd, jacobian, jacrev, jvp, linearize

F64 = torch.float64
X = torch.tensor([0.4, -1.2, 0.9], dtype=F64)
BRANCHES = {
    "longer": lambda x: x.sin() * x + x.sin() * x * x.sum(),
    "shorter": lambda x: x * 2,
    "another order": lambda x: (x * x.sum()).sin() + x,
    "constant": lambda x: torch.ones(2, dtype=F64),
    "another shape": lambda x: (x.sin() * x).sum() + x.sum(),
    "itself": lambda x: x,
}


def usual(x):
    return x.sin() * x + x.sum() * x


def switched(branch):
    """Return a function that counts its calls, and what switches it."""
    state = {"calls": 0, "branch": usual}

    def f(x):
        state["calls"] += 1
        return state["branch"](x)

    def switch():
        state.update(calls=0, branch=branch)

    return f, state, switch


def along(transform, f, x):
    if transform in (jvp, linearize):
        tangent = torch.ones_like(x)
        return jvp(f, (x,), (tangent,))[1] if transform is jvp else linearize(f, x)[1](tangent)
    return transform(f)(x)


@pytest.mark.parametrize("transform", [jacfwd, jacrev, jacobian, jvp, linearize])
@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES)
def test_a_branch_of_known_operators_runs_once(branch, transform):
    f, state, switch = switched(branch)
    for _ in range(4):
        along(transform, f, X)
    switch()
    expected = torch.autograd.functional.jacobian(branch, X)
    expected = expected.sum(-1) if transform in (jvp, linearize) else expected
    for number in range(4):
        torch.testing.assert_close(along(transform, f, X), expected)
        assert state["calls"] == number + 1


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_other_arguments_of_known_operators_run_once(transform):
    calls = [0]

    def f(x, y):
        calls[0] += 1
        return x.sin() * y.sum()

    for _ in range(4):
        transform(f, (0, 1))(X, X)
    for argnum in (0, 1):
        before = calls[0]
        expected = torch.autograd.functional.jacobian(f, (X, X))[argnum]
        calls[0] = before
        torch.testing.assert_close(transform(f, argnum)(X, X), expected)
        assert calls[0] == before + 1


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("is_view", [True, False])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_a_captured_tensor_written_in_a_branch_of_known_operators(transform, is_view, is_read):
    """It ends as the plain call leaves it, without a history, and its derivative counts."""
    whole = torch.ones(2, 3, dtype=F64)
    captured = whole[1] if is_view else torch.ones(3, dtype=F64)

    def branch(x):
        captured.mul_(x)
        return captured * x.sin() if is_read else x * 2

    f, _, switch = switched(branch)
    for _ in range(4):
        transform(lambda x: f(x * 1).clone())(X)
    switch()
    expected = torch.autograd.functional.jacobian(
        (lambda x: x * x.sin()) if is_read else (lambda x: x * 2), X
    )
    for _ in range(4):
        captured.fill_(1)
        try:
            found = transform(lambda x: f(x * 1).clone())(X)
        except UnsupportedError:  # it had to be run twice
            assert is_view
            torch.testing.assert_close(captured, X)
            continue
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(captured, X)
        assert not captured.requires_grad
        assert not whole.requires_grad
        assert (captured._base is whole) is is_view


def test_a_captured_tensor_is_found_behind_functions_of_libraries():
    """The function that is searched may reach more than is looked at: what is near comes first."""
    captured, state = torch.ones((), dtype=F64), {"writes": False}

    def f(x):
        if state["writes"]:
            captured.copy_(x[0])
        return x

    def total(x):
        leaves = torch.utils._pytree.tree_flatten(f(x))[0]
        return sum((y * y).sum() for y in leaves if isinstance(y, torch.Tensor))

    for _ in range(3):
        grad(total)(X)
    state["writes"] = True
    torch.testing.assert_close(grad(total)(X), 2 * X)
    assert not captured.requires_grad
    assert captured == X[0]


def test_memory_that_a_new_branch_reads_by_numbers_is_that_of_the_input():
    def branch(x):
        return x.as_strided((2,), (1,), 0) * x[:2]

    state = {"branch": lambda x: (x * 1).as_strided((2,), (1,), 0) * x[:2]}
    whole = torch.arange(1, 7, dtype=F64)
    for _ in range(4):
        jacrev(lambda x: state["branch"](x))(whole[2:5])
    state["branch"] = branch

    def alike(x):  # as_strided counts from where the memory begins
        return whole[:2] * x[:2]

    found = jacrev(lambda x: state["branch"](x))(whole[2:5])
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(alike, whole[2:5]))


AROUND = {
    "nothing": (lambda f: f, lambda x: 2 * x),
    "vmap": (torch.func.vmap, lambda x: 2 * x),
    "vmap of jacrev": (lambda f: torch.func.vmap(jacrev(f)), lambda x: 2 * torch.ones_like(x)),
}


@pytest.mark.parametrize("is_view", [True, False])
@pytest.mark.parametrize(("around", "slope"), AROUND.values(), ids=AROUND)
def test_what_is_written_to_captured_tensors_below_vmap_leaves_them_no_history(
    around, slope, is_view
):
    """What is written depends on parameters, and not on the batch."""
    module, whole = torch.nn.Linear(1, 2).double(), torch.zeros(2, 2, dtype=F64)
    captured = whole[1] if is_view else torch.zeros(2, dtype=F64)

    def f(x):
        captured.copy_(module(torch.ones(1, dtype=F64)))
        return x * x * captured.sum()

    expected = module(torch.ones(1, dtype=F64)).detach()
    for _ in range(4):
        captured.zero_()
        gradient = grad(lambda x: around(f)(x).sum())(X)
        torch.testing.assert_close(gradient, slope(X) * expected.sum())
        torch.testing.assert_close(captured, expected)
        assert not captured.requires_grad
        assert (captured._base is whole) is is_view
