"""Chains of writes: reads find what was written, and a base is joined of its parts."""

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch.utils.checkpoint import checkpoint

from pushforward import jacfwd, jacrev
from pushforward.tape import black_boxes
from pushforward.tape.lowering import lower
from pushforward.tape.run import Run
from pushforward.tape.stores import axes_of

F64 = torch.float64
X = torch.tensor([0.7, -0.4, 1.2], dtype=F64)


def kinds(func):
    """Return the kinds of maps of the program of ``func``."""
    black_boxes.COUNTS.clear()
    with Run("test", [X], "same") as run:
        reading = run.reading([run.call(func, (run.tracked[0],), {})])
        program = lower("test", reading)
    assert not black_boxes.COUNTS
    return {type(term.linear_map).__name__ for e in program.equations for term in e.terms}


def filled_element_by_element(x):
    y = x.new_zeros(3, 3)
    for i in range(3):
        y[i, i] += x[i]
        y[i, (i + 1) % 3] -= x[i]
    return y


def filled_row_by_row(x):
    y = x.new_zeros(4, 3)
    y[0] = x
    for i in range(3):
        y[i + 1] = y[i] * 2
    return y


def filled_column_by_column(x):
    y = x.new_empty(3, 2)
    y[:, 0] = x
    y[:, 1] = y[:, 0] * x
    return y


@pytest.mark.parametrize(
    "func", [filled_element_by_element, filled_row_by_row, filled_column_by_column]
)
def test_a_filled_tensor_is_a_concatenation(func):
    assert kinds(func) <= {"Concat", "Reshape", "Scale", "Select"}
    for _ in range(3):
        assert_close(jacfwd(func)(X), central_jacobian(func, X))
        assert_close(jacrev(func)(X), central_jacobian(func, X))


def test_what_is_overwritten_has_no_derivative_left():
    def f(x):
        y = x.new_zeros(3)
        y[0] = x[0].exp()
        y[0] = x[1]
        y[1:] = 2.0
        return y

    assert "Scale" not in kinds(f)
    assert_close(jacfwd(f)(X), central_jacobian(f, X))


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        (lambda t: t[1], [1, range(4), range(5)]),
        (lambda t: t[:, 2, 1:4], [range(3), 2, range(1, 4)]),
        (lambda t: t[::2, 1:3, ::3], [range(0, 3, 2), range(1, 3), range(0, 4, 3)]),
        (lambda t: t[2, 3, 4], [2, 3, 4]),
        (lambda t: t.diagonal(), None),
        (lambda t: t.transpose(0, 1), None),
    ],
)
def test_regular_regions_are_found_axis_by_axis(take, expected):
    base = torch.empty(3, 4, 5)
    for strides in (base.stride(), (1, 3, 12)):
        view = take(base.as_strided(base.shape, strides))
        region = (tuple(view.shape), view.stride(), view.storage_offset())
        assert axes_of((3, 4, 5), strides, region) == expected


def test_strided_views_beside_checkpoints():
    def f(x):
        y = checkpoint(lambda x: x.sin().exp(), x, use_reentrant=False)
        return x.as_strided((2,), (1,), 1) * y[:2]

    for transform in (jacfwd, jacrev):
        for _ in range(3):
            assert_close(transform(f)(X), central_jacobian(f, X))
