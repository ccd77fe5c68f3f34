"""Kernels: the same numbers from other tensors, less work, and nothing repeated that depends on elements."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from peaks import bytes_of
from torch import Tensor

from pushforward.planning import storage
from pushforward.planning.kernels import Replay, written
from pushforward.planning.noting import Rows

aten = torch.ops.aten


def _written(compute: Callable[..., Rows], *values: Tensor) -> Replay | None:
    return written(values, lambda: compute(*values))


def _source(replay: Replay | None) -> str:
    assert replay is not None
    return replay.__doc__ or ""


def _check(compute: Callable[..., Rows], *shapes: tuple[int, ...]) -> Replay:
    replay = _written(compute, *(torch.randn(s) for s in shapes))
    assert replay is not None
    others = [torch.randn(s) for s in shapes]
    copies = [o.clone() for o in others]
    for _ in range(2):
        for given, expected in zip(replay([*others])[0], compute(*others)[0], strict=True):
            torch.testing.assert_close(given, expected, rtol=0, atol=0)
    for other, copy in zip(others, copies, strict=True):
        assert torch.equal(other, copy), "a value was written to"
    return replay


FUNCTIONS: dict[str, tuple[Callable[..., Rows], tuple[tuple[int, ...], ...]]] = {
    "methods and operators": (lambda a, b: [[(1 - a.square()) * b]], ((3,), (3,))),
    "keyword arguments": (lambda a: [[a.sum(dim=0, keepdim=True)]], ((3, 2),)),
    "lists of tensors": (lambda a, b: [[torch.cat([a, b], dim=1)]], ((2, 3), (2, 1))),
    "several results": (lambda a: [[*a.unbind(0)]], ((3, 2),)),
    "named results": (lambda a: [[a.max(dim=0).values]], ((3, 2),)),
    "several rows": (lambda a: [[a + 1], [a]], ((3,),)),
    "views": (lambda a: [[a.t().reshape(6)[2:]]], ((3, 2),)),
    "writes to temporaries": (lambda a: [[torch.zeros(3).add_(a).mul_(2)]], ((3,),)),
    "index writes": (lambda a: [[_with_item(torch.zeros(3), a[0])]], ((3,),)),
    "a value itself": (lambda a, b: [[b]], ((3,), (2,))),
    "products with ones": (lambda a: [[torch.ones(()).reshape(1) * a @ a]], ((3, 3),)),
    "a returned product with ones": (lambda a: [[torch.ones(3) * a.square()]], ((3,),)),
    "integer indices": (lambda a: [[a[torch.tensor([2, 0])]]], ((3,),)),
    "einsum": (lambda a, b: [[torch.einsum("ij,jk->ki", a, b)]], ((2, 3), (3, 4))),
    "axes permuted by einsum": (lambda a: [[torch.einsum("ij->ji", a) * 2]], ((2, 3),)),
    "a diagonal by einsum": (lambda a: [[torch.einsum("ii->i", a.sin()) + 1, a]], ((3, 3),)),
    "a view of a temporary": (
        lambda a: [[a.sin().reshape(6).unsqueeze(0) * 2, a.cos().t().reshape(6) - a.sum()]],
        ((3, 2),),
    ),
    "a view of a temporary that is read later": (
        lambda a: [[(t := a.sin()).reshape(6) * 2, t + a]],
        ((3, 2),),
    ),
    "a view of a temporary that is returned": (
        lambda a: [[(t := a.sin()), t.reshape(6) * 2]],
        ((3, 2),),
    ),
    "two views of a temporary": (
        lambda a: [[(t := a.sin()).reshape(6) * 2, t.reshape(2, 3) * 3]],
        ((3, 2),),
    ),
}


def _with_item(buffer: Tensor, value: Tensor) -> Tensor:
    buffer[1] = value
    return buffer


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_calls_give_the_same_numbers(name: str) -> None:
    compute, shapes = FUNCTIONS[name]
    _check(compute, *shapes)


UNREPEATABLE: dict[str, Callable[[Tensor], Rows]] = {
    "a number read": lambda a: [[a * a.sum().item()]],
    "a branch": lambda a: [[a if a.sum() > 0 else -a]],
    "a mask": lambda a: [[a[a > -9]]],
    "nonzero": lambda a: [[a[torch.nonzero(a)[:, 0]]]],
    "random numbers": lambda a: [[a * torch.rand(3)]],
    "a tensor from elsewhere": lambda a: [[a * _ELSEWHERE]],
    "a length that depends on elements": lambda a: [[torch.unique(a)]],
}
_ELSEWHERE = torch.ones(3)


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_what_depends_on_more_than_structure_is_not_repeated(name: str) -> None:
    assert _written(UNREPEATABLE[name], torch.tensor([1.0, 2.0, 3.0])) is None


def test_a_returned_product_with_ones_is_no_alias_of_a_value() -> None:
    replay = _check(lambda a: [[torch.ones(3) * a]], (3,))
    value = torch.randn(3)
    assert replay([value])[0][0].data_ptr() != value.data_ptr()


def test_ones_that_are_written_to_are_no_ones() -> None:
    def compute(a: Tensor) -> Rows:
        mask = torch.ones(3)
        mask[1] = 0
        other = torch.ones(2, 3)
        other.reshape(6)[0:2].zero_()
        return [[(mask * a).exp(), (other * a).exp()]]

    _check(compute, (3,))


def test_two_returned_products_with_ones_share_nothing() -> None:
    def compute(a: Tensor) -> Rows:
        square = a.square()
        return [[torch.ones(3) * square, torch.ones(3) * square]]

    first, second = _check(compute, (3,))([torch.randn(3)])[0]
    assert first.data_ptr() != second.data_ptr()


def test_products_with_ones_unused_results_and_empty_views_are_left_out() -> None:
    def compute(a: Tensor, b: Tensor) -> Rows:
        a.cos()
        unit = torch.ones(()).reshape(1)
        return [[(unit * a.permute(0, 1)) @ b]]

    source = _source(_check(compute, (2, 3), (3, 2)))
    assert source.count(" = ") == 1, source


def test_temporaries_are_overwritten_only_where_nobody_else_holds_them() -> None:
    def compute(a: Tensor, b: Tensor) -> Rows:
        return [[a.square() * b * b]]

    replay = _check(compute, (3,), (3,))
    assert torch.Tensor.mul_ in _functions(replay)
    b = torch.randn(3, requires_grad=True)
    recording = _written(compute, torch.randn(3), b)
    assert recording is not None
    assert torch.Tensor.mul_ not in _functions(recording)
    (gradient,) = torch.autograd.grad(recording([torch.ones(3), b])[0][0].sum(), b)
    torch.testing.assert_close(gradient, 2 * b)


SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elu": lambda t, y: aten.elu_backward.default(t, 1.5, 1.0, 1.0, False, y),
    "gelu": lambda t, y: aten.gelu_backward.default(t, y, approximate="tanh"),
    "hardsigmoid": lambda t, y: aten.hardsigmoid_backward.default(t, y),
    "hardtanh": lambda t, y: aten.hardtanh_backward.default(t, y, -0.5, 0.5),
    "leaky_relu": lambda t, y: aten.leaky_relu_backward.default(t, y, 0.1, False),
    "logit": lambda t, y: aten.logit_backward.default(t, y.sigmoid()),
    "sigmoid": lambda t, y: aten.sigmoid_backward.default(t, y),
    "silu": lambda t, y: aten.silu_backward.default(t, y),
    "softplus": lambda t, y: aten.softplus_backward.default(t, y, 1.0, 20.0),
    "tanh": lambda t, y: aten.tanh_backward.default(t, y),
    "threshold": lambda t, y: aten.threshold_backward.default(t, y, 0.1),
}


@pytest.mark.parametrize("name", SLOPES)
def test_tangents_are_overwritten_by_their_products_with_slopes(name: str) -> None:
    slope, operator = SLOPES[name], getattr(aten, f"{name}_backward")
    assert storage._SLOPES[operator.default] is operator.grad_input
    assert len(SLOPES) == len(storage._SLOPES)
    shapes = ((4, 3), (3,))
    replay = _check(lambda a, y: [[slope(slope(a.exp(), y), y).cos()]], *shapes)
    assert _source(replay).count("grad_input=t") == 2
    for compute in (
        lambda a, y: [[slope(a, y).cos()]],  # a value
        lambda a, y: [[(t := a.exp()), slope(t, y).cos()]],  # a result
        lambda a, y: [[slope(t := a.exp(), y).cos() * t]],  # read later
        lambda a, y: [[slope(a.exp()[:, :1], y).cos()]],  # of another shape, and a view
    ):
        assert "grad_input" not in _source(_check(compute, *shapes))


def test_results_are_written_where_they_stand_in_the_end() -> None:
    def product(a: Tensor, b: Tensor) -> Rows:
        return [[(a.sin() * b).t().contiguous()]]

    def difference(a: Tensor, b: Tensor) -> Rows:
        return [[(a - b).reshape(3, 2, 2).permute(1, 2, 0).contiguous()]]

    def total(a: Tensor, b: Tensor) -> Rows:
        found = a + b
        return [[found.t().contiguous(), found]]

    def of_two(a: Tensor, b: Tensor) -> Rows:
        return [[(a.sin() * a.cos()).t().contiguous() * b[0]]]

    for compute in (product, difference, total, of_two):
        replay = _check(compute, (3, 4), (4,))
        is_copied = compute in (total, of_two)  # needed itself; made of two that are not needed
        assert ("contiguous" in _names(replay)) == is_copied
        result = replay([torch.randn(3, 4), torch.randn(4)])[0][0]
        assert result.is_contiguous()
        assert result._base is None


def test_large_pieces_are_joined_where_they_stand_in_the_end() -> None:
    def compute(a: Tensor, b: Tensor) -> Rows:
        return [[torch.cat([a.t(), b], 1).reshape(200, 2, 250).permute(1, 2, 0).contiguous()]]

    replay = _check(compute, (300, 200), (200, 200))
    assert "contiguous" not in _names(replay)
    assert replay([torch.randn(300, 200), torch.randn(200, 200)])[0][0].is_contiguous()
    small = _written(lambda a: [[torch.cat([a, a]).t().contiguous()]], torch.randn(3, 2))
    assert "contiguous" in _names(small)


def test_zeros_too_large_to_be_kept_are_made_for_each_write() -> None:
    def compute(a: Tensor) -> Rows:
        places = torch.tensor([1, 0])
        zeros = torch.zeros(2**18, 2)
        found = torch.index_add(zeros, 1, places, a), torch.zeros(2**18, 2) + a
        return [[*found, zeros.index_add(1, 1 - places, a)]]

    replay = _check(compute, (2**18, 2))
    assert "index_add_" in _names(replay)
    assert "index_add" not in _names(replay)
    peak, _ = bytes_of(lambda: replay([torch.ones(2**18, 2)]))
    assert peak <= 4.5 * 2**21, "three results, and what was given"


def _by_index_add(zeros: Tensor, places: Tensor, a: Tensor) -> Tensor:
    return zeros.index_add(1, places, a)


def _by_scatter_add(zeros: Tensor, places: Tensor, a: Tensor) -> Tensor:
    return zeros.scatter_add(1, places.expand(200, 100), a)


@pytest.mark.parametrize("added", [_by_index_add, _by_scatter_add])
def test_what_is_added_to_large_zeros_is_added_where_it_stands_in_the_end(
    added: Callable[..., Tensor],
) -> None:
    def compute(a: Tensor) -> Rows:
        found = added(torch.zeros(200, 400), torch.tensor([*range(99, -1, -1)]), a)
        return [[found.reshape(200, 20, 20).permute(1, 2, 0).contiguous()]]

    replay = _check(compute, (200, 100))
    assert _names(replay).isdisjoint({"contiguous", "index_add", "scatter_add"})
    given = torch.ones(200, 100)
    assert replay([given])[0][0].is_contiguous()
    peak, left = bytes_of(lambda: replay([given]))
    assert peak <= 1.1 * 200 * 400 * 4, "the result alone"
    assert left < 2**10, "no zeros are kept"


def test_what_no_value_has_a_part_in_is_made_once() -> None:
    def compute(a: Tensor) -> Rows:
        seed = torch.eye(3)
        return [[a * (seed.select(1, 0) - seed.select(1, 2)), torch.ones(3)]]

    replay = _check(compute, (3,))
    assert "sub" not in _names(replay)
    ones = [replay([torch.ones(3)])[0][1] for _ in range(2)]
    assert ones[0].data_ptr() != ones[1].data_ptr(), "what the caller gets is the caller's"


def test_products_are_added_as_they_are_made() -> None:
    def compute(a: Tensor, b: Tensor) -> Rows:
        return [[(a.sin() * b + b.square() * a) + b * b]]

    replay = _written(compute, torch.randn(3, 4), torch.randn(4))
    assert replay is not None
    names = _names(replay)
    assert "addcmul_" in names
    assert "add" not in names
    a, b = torch.randn(3, 4), torch.randn(4)
    torch.testing.assert_close(replay([a, b])[0][0], compute(a, b)[0][0])


def test_matrices_of_one_row_are_vectors() -> None:
    def compute(a: Tensor, b: Tensor) -> Rows:
        row = torch.mm(a.reshape(1, 4), b.t())
        return [[row.reshape(3), torch.mm(a.reshape(2, 2), b[:2, :2].t()).reshape(4)]]

    replay = _written(compute, torch.randn(4), torch.randn(3, 4))
    assert replay is not None
    assert {"mv", "mm"} <= _names(replay)
    a, b = torch.randn(4), torch.randn(3, 4)
    torch.testing.assert_close(replay([a, b])[0], compute(a, b)[0])


def test_views_of_views_are_one_or_none() -> None:
    def compute(a: Tensor) -> Rows:
        there = a.permute(1, 2, 0).permute(2, 0, 1) * 2
        turned = a.permute(1, 2, 0).permute(1, 0, 2).sin()
        flat = a.reshape(2, 12).t().t().reshape(24).reshape(2, 3, 4).cos()
        return [[there, turned, flat, a.sum(0).t().reshape(3, 4)]]

    source = _source(_check(compute, (2, 3, 4)))
    assert source.count(" = ") == len(["mul", "permute", "sin", "cos", "sum", "t", "reshape"])


def test_columns_by_rows_are_multiplied_element_by_element() -> None:
    def compute(a: Tensor, b: Tensor) -> Rows:
        return [[torch.mm(a[:, None], b[None])]]

    assert "mm" not in _names(_check(compute, (3,), (4,)))


def test_products_that_are_needed_or_of_another_dtype_are_made_apart() -> None:
    def needed(a: Tensor) -> Rows:
        product = a * a
        return [[a + product, product]]

    def mixed(a: Tensor) -> Rows:
        return [[a.double() + a * a]]

    for compute in (needed, mixed):
        assert "addcmul" not in _names(_check(compute, (3,)))


def test_a_temporary_that_is_read_later_is_kept() -> None:
    def compute(a: Tensor) -> Rows:
        square = a.square()
        return [[square * a + square, square.neg()]]

    _check(compute, (3,))


def test_intermediate_results_are_let_go() -> None:
    source = _source(_check(lambda a: [[a.cos().sin().exp()]], (3,)))
    assert source.count("del ") == 2


def test_results_are_not_kept_alive_while_they_are_noted() -> None:
    def compute(a: Tensor) -> Rows:
        for _ in range(50):  # names of the dead come again
            result = a + 1
            reference = weakref.ref(result)
            del result
            assert reference() is None
            a = (a * 2).view(4, 5).view(20)
        return [[a]]

    assert "add" not in _source(_check(compute, (20,)))


def test_views_of_what_is_gone_are_known() -> None:
    def compute(a: Tensor) -> Rows:
        b = (a * 2).t()
        c = b.sin().unbind(0)
        return [[c[0] * c[1], b.expand(2, 3, 2).sum(0)]]

    _check(compute, (2, 3))


def _functions(replay: Replay) -> list[object]:
    return list(replay.__globals__.values())  # type: ignore[attr-defined]


def _names(replay: Replay) -> set[str]:
    return {getattr(value, "__name__", "") for value in _functions(replay)}
