"""Rules of views.py and indexing.py: affine operators, their Jacobian is differences of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import pushforward
from pushforward.linear.block import identity, seeds
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules import families as families
from pushforward.rules.registry import lookup, maps_of

aten = torch.ops.aten
F, T = False, True


def _x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _i(*values: Any) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else list(values))


Case = tuple[Any, Sequence[Any], dict[str, Any]]


def _case(op: Any, *args: Any, **kwargs: Any) -> Any:
    shown = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args]
    return pytest.param(op, args, kwargs, id=f"{op}{shown}"[:90])


MASK = torch.tensor([[T, F, T, T], [F, F, T, F], [T, T, F, F]])

torch.manual_seed(0)
CASES = [
    # Views
    _case(aten.alias.default, _x(2, 3)),
    _case(aten.clone.default, _x(2, 3)),
    _case(aten._to_copy.default, _x(2, 3), dtype=torch.float64),
    _case(aten.view.default, _x(2, 3, 4), [6, -1]),
    _case(aten.view.default, _x(2, 6), [2, 2, 3]),
    _case(aten.view.default, _x(4, 3), [2, 6]),
    _case(aten.view.default, _x(), [1, 1]),
    _case(aten.view.default, _x(0, 3), [3, 0, 2]),
    _case(aten._unsafe_view.default, _x(2, 3), [3, 2]),
    _case(aten._reshape_alias.default, _x(2, 3), [6], [1]),
    _case(aten.unsqueeze.default, _x(2, 3), -1),
    _case(aten.squeeze.default, _x(1, 3, 1)),
    _case(aten.squeeze.dim, _x(1, 3, 1), -1),
    _case(aten.squeeze.dims, _x(1, 3, 1), [0, -1]),
    _case(aten.permute.default, _x(2, 3, 4), [-1, 0, 1]),
    _case(aten.transpose.int, _x(2, 3, 4), 0, -1),
    _case(aten.transpose.int, _x(), 0, -1),
    _case(aten.t.default, _x(2, 3)),
    _case(aten.t.default, _x(3)),
    _case(aten.expand.default, _x(3, 1), [2, -1, 4]),
    _case(aten.select.int, _x(2, 3, 4), 1, -1),
    _case(aten.slice.Tensor, _x(2, 7), 1, 1, 6, 2),
    _case(aten.slice.Tensor, _x(7, 2)),
    _case(aten.slice.Tensor, _x(7, 2), 0, -3, 2**63 - 1),
    _case(aten.slice.Tensor, _x(7, 2), 0, 5, 3),
    _case(aten.slice.Tensor, _x(7, 2), 0, -100, 100, 3),
    _case(aten.narrow_copy.default, _x(7, 2), 0, 2, 3),
    _case(aten.split.Tensor, _x(2, 7), 3, 1),
    _case(aten.split.Tensor, _x(0, 7), 3),
    _case(aten.split_with_sizes.default, _x(6, 2), [1, 0, 5]),
    _case(aten.unbind.int, _x(2, 3), -1),
    _case(aten.diagonal.default, _x(3, 4)),
    _case(aten.diagonal.default, _x(3, 2, 4), 1, 2, 0),
    _case(aten.diagonal.default, _x(3, 2, 4), -1, 0, -1),
    _case(aten.diagonal.default, _x(3, 2), 5),
    _case(aten.unfold.default, _x(2, 7, 3), 1, 3, 2),
    _case(aten.unfold.default, _x(), 0, 1, 1),
    # Advanced indexing
    _case(aten.index.Tensor, _x(4, 3), [_i([0, 2, 2, -1])]),
    _case(aten.index.Tensor, _x(2, 4, 3), [None, _i([[0, 2], [2, -1]])]),
    _case(aten.index.Tensor, _x(2, 4, 3), [_i([1, 0, 0]), None, _i([0, 2, 2])]),
    _case(aten.index.Tensor, _x(2, 4, 3), [None, _i([[1], [0]]), _i([0, 2, 2])]),
    _case(aten.index.Tensor, _x(3, 4), [MASK]),
    _case(aten.index.Tensor, _x(2, 3, 4, 2), [None, MASK]),
    _case(aten.index.Tensor, _x(3, 4, 2, 2), [MASK, None, _i([1])]),
    _case(aten.index.Tensor, _x(3, 4), [_i(1), _i(-1)]),
    _case(aten.index.Tensor, _x(3, 4), [_i([], []).long()[0]]),
    _case(aten.index_put.default, _x(4, 3), [_i([0, 2])], _x(2, 3)),
    _case(aten.index_put.default, _x(4, 3), [_i([0, 2, 2])], _x(3)),
    _case(aten.index_put.default, _x(4, 3), [_i([0, 2, 2])], _x(3, 3), True),
    _case(aten.index_put.default, _x(2, 4, 3), [_i([1, 0]), None, _i([0, 2])], _x(2, 4)),
    _case(aten.index_put.default, _x(2, 4, 3), [None, _i([[1], [0]]), _i([0, 2, 1])], _x()),
    _case(aten.index_put.default, _x(3, 4), [MASK], _x(6)),
    _case(aten.index_put.default, _x(2, 3, 4), [None, MASK], _x(1)),
    _case(aten._unsafe_index_put.default, _x(4, 3), [_i([0, 2])], _x(2, 3)),
    # index_select and its kin
    _case(aten.index_select.default, _x(2, 4), 1, _i([3, 0, 0])),
    _case(aten.index_select.default, _x(), 0, _i([0])),
    _case(aten.index_select.default, _x(3), 0, _i(1)),
    _case(aten.index_add.default, _x(4, 2), 0, _i([3, 0, 0]), _x(3, 2), alpha=2.5),
    _case(aten.index_add.default, _x(), 0, _i(0), _x()),
    _case(aten.index_copy.default, _x(4, 2), 0, _i([3, 0]), _x(2, 2)),
    _case(aten.index_copy.default, _x(2, 4), 1, _i([3, 3]), _x(2, 2)),
    _case(aten.index_fill.int_Scalar, _x(2, 4), 1, _i([3, 0]), 1.5),
    _case(aten.index_fill.int_Tensor, _x(2, 4), 1, _i([3, 0]), _x()),
    # gather and scatter
    _case(aten.gather.default, _x(2, 4), 1, _i([[3, 0, 0], [1, 1, 2]])),
    _case(aten.gather.default, _x(3, 4), 0, _i([[2, 0], [1, 1]])),
    _case(aten.gather.default, _x(), 0, _i(0)),
    _case(aten.gather.default, _x(3), -1, _i(1)),
    _case(aten.gather.default, _x(3, 4), 0, torch.zeros(0, 4, dtype=torch.long)),
    _case(aten.scatter.src, _x(3, 4), 0, _i([[2, 0], [1, 1]]), _x(3, 3)),
    _case(aten.scatter.src, _x(3, 4), 1, _i([[2, 0], [1, 1]]), _x(2, 2)),
    _case(aten.scatter.src, _x(), 0, _i(0), _x()),
    _case(aten.scatter.src, _x(3), 0, _i([]).long(), _x(2)),
    _case(aten.scatter.value, _x(3, 4), 0, _i([[2, 0], [1, 1]]), 2.0),
    _case(aten.scatter_add.default, _x(3, 4), 0, _i([[2, 0], [1, 0]]), _x(3, 3)),
    # Flat indices and masks
    _case(aten.take.default, _x(3, 4), _i([[0, -1], [5, 5]])),
    _case(aten.put.default, _x(3, 4), _i([[0, -1]]), _x(1, 2)),
    _case(aten.put.default, _x(3, 4), _i([[0, -1, 0]]), _x(1, 3), True),
    _case(aten.masked_select.default, _x(3, 4), MASK),
    _case(aten.masked_select.default, _x(3, 1), MASK[0]),
    _case(aten.masked_scatter.default, _x(3, 4), MASK, _x(8)),
    _case(aten.masked_scatter.default, _x(3, 4), MASK[0], _x(3, 4)),
    _case(aten.embedding.default, _x(5, 3), _i([[1, 4], [1, 0]])),
    _case(aten.embedding_dense_backward.default, _x(2, 3), _i([1, 1]), 4, -1, False),
    # Joining
    _case(aten.cat.default, [_x(2, 3), _x(0), _x(2, 1)], -1),
    _case(aten.cat.default, [_x(2), _x(3)]),
    _case(aten.stack.default, [_x(2, 3), _x(2, 3)], 1),
    _case(aten.stack.default, [_x(), _x()]),
    _case(aten.block_diag.default, [_x(2, 3), _x(), _x(2)]),
    # Padding
    _case(aten.constant_pad_nd.default, _x(2, 4), [1, 2], 3.0),
    _case(aten.constant_pad_nd.default, _x(2, 4), [-1, 2, 1, -1]),
    _case(aten.constant_pad_nd.default, _x(2, 4), [0, 0]),
    _case(aten.reflection_pad1d.default, _x(2, 4), [3, 1]),
    _case(aten.reflection_pad2d.default, _x(2, 4, 3), [2, 1, 0, 3]),
    _case(aten.reflection_pad3d.default, _x(1, 2, 3, 2), [1, 0, 2, 1, 1, 1]),
    _case(aten.replication_pad1d.default, _x(2, 4), [5, 1]),
    _case(aten.replication_pad2d.default, _x(2, 4, 3), [2, 1, 0, 3]),
    _case(aten.replication_pad3d.default, _x(1, 2, 3, 2), [1, 0, 2, 1, 1, 1]),
    # Rolls, flips, repetitions, triangles
    _case(aten.roll.default, _x(3, 4), [5]),
    _case(aten.roll.default, _x(3, 4), [1, -2], [0, -1]),
    _case(aten.roll.default, _x(0, 4), [1], [0]),
    _case(aten.flip.default, _x(3, 4), [0, -1]),
    _case(aten.flip.default, _x(), []),
    *[_case(aten.rot90.default, _x(2, 3), k, [1, 0]) for k in range(-1, 4)],
    _case(aten.repeat.default, _x(3, 2), [2, 1, 3]),
    _case(aten.repeat.default, _x(), [2]),
    _case(aten.repeat.default, _x(3), [0]),
    _case(aten.tril.default, _x(2, 3, 4), 1),
    _case(aten.triu.default, _x(3, 4), -1),
    _case(aten.diag_embed.default, _x(2, 3), 1),
    _case(aten.diag_embed.default, _x(2, 3), -1, 2, 0),
    # Writes into a copy
    _case(aten.select_scatter.default, _x(3, 4), _x(3), 1, -1),
    _case(aten.slice_scatter.default, _x(3, 7), _x(3, 3), 1, 1, 6, 2),
    _case(aten.slice_scatter.default, _x(3, 2), _x(3, 2)),
    _case(aten.diagonal_scatter.default, _x(3, 4), _x(3), 1),
    _case(aten.as_strided_scatter.default, _x(3, 4), _x(2, 2), [2, 2], [3, 1], 1),
    _case(aten.select_backward.default, _x(3), [3, 4], 1, 2),
    _case(aten.slice_backward.default, _x(3, 2), [3, 4], 1, 0, 2, 1),
    _case(aten.diagonal_backward.default, _x(3), [3, 4], 1, 0, 1),
    _case(aten.unfold_backward.default, _x(3, 3), [7], 0, 3, 2),
    _case(aten.copy.default, _x(3, 4), _x(4)),
    _case(aten.fill.Tensor, _x(3, 4), _x()),
    # Images
    _case(aten.pixel_shuffle.default, _x(1, 8, 2, 3), 2),
    _case(aten.pixel_unshuffle.default, _x(2, 4, 6), 2),
    _case(aten.channel_shuffle.default, _x(1, 6, 2), 3),
    _case(aten.im2col.default, _x(1, 2, 4, 3), [2, 2], [1, 1], [1, 0], [2, 1]),
    _case(aten.im2col.default, _x(2, 4, 5), [2, 2], [2, 1], [0, 0], [1, 1]),
    _case(aten.col2im.default, _x(1, 8, 6), [4, 3], [2, 2], [1, 1], [1, 0], [2, 1]),
]  # fmt: skip


def _active(args: Sequence[Any]) -> list[tuple[int, int | None, Tensor]]:
    found: list[tuple[int, int | None, Tensor]] = []
    for position, arg in enumerate(args):
        items = enumerate(arg) if isinstance(arg, (list, tuple)) else [(None, arg)]
        for place, item in items:
            if isinstance(item, Tensor) and item.is_floating_point():
                found.append((position, place, item))
    return found


def _replaced(args: Sequence[Any], position: int, place: int | None, value: Tensor) -> list[Any]:
    result = list(args)
    if place is None:
        result[position] = value
    else:
        result[position] = [*args[position][:place], value, *args[position][place + 1 :]]
    return result


def _differences(function: Any, x: Tensor) -> list[Tensor]:
    """Return, for each output, what a unit step in each element of ``x`` changes: (*out, *in).

    The moved copies have the strides and the offset of ``x``, which as_strided sees.
    """
    columns = []
    start = _outputs(function(x))
    for step in torch.eye(x.numel(), dtype=x.dtype):
        base = torch.zeros(x.untyped_storage().nbytes() // 8, dtype=x.dtype)
        moved = base.as_strided(x.shape, x.stride(), x.storage_offset())
        moved.copy_(x + step.reshape(x.shape))
        columns.append([b - a for a, b in zip(start, _outputs(function(moved)), strict=True)])
    return [
        torch.stack([c[i] for c in columns], -1).reshape((*out.shape, *x.shape))
        if columns
        else out.new_zeros((*out.shape, *x.shape))
        for i, out in enumerate(start)
    ]


def _outputs(out: Any) -> Sequence[Tensor]:
    return out if isinstance(out, (tuple, list)) else (out,)


def _check(linear_map: AbstractLinearMap | None, x: Tensor, expected: Tensor) -> None:
    out_shape = tuple(expected.shape[: expected.ndim - x.ndim])
    if linear_map is None:
        assert not expected.any()
        return
    assert (linear_map.in_shape, linear_map.out_shape) == (tuple(x.shape), out_shape)
    pushed = linear_map.push(identity(x, 0)).to_dense().reshape(expected.shape)
    torch.testing.assert_close(pushed, expected)
    n = math.prod(out_shape)
    rows = torch.eye(n, dtype=x.dtype).reshape(n, *out_shape)
    pulled = linear_map.pull(seeds(rows, (n,), 0)).expanded_values()
    torch.testing.assert_close(pulled, expected.reshape(n, *x.shape))
    indicator = torch.zeros(n, x.numel())
    indicator[linear_map.pattern()] += 1
    assert bool((indicator.bool() | (expected.reshape(n, x.numel()) == 0)).all())


@pytest.mark.parametrize(("op", "args", "kwargs"), CASES)
def test_rule_is_what_the_values_say(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    rule = lookup(op)
    assert rule is not None
    out = op(*args, **kwargs)
    for position, place, x in _active(args):
        maps = maps_of(rule, position, out, tuple(args), kwargs, x)
        maps = maps if place is None else maps[place]
        expected = _differences(
            lambda v, position=position, place=place: op(
                *_replaced(args, position, place, v), **kwargs
            ),
            x,
        )
        each = maps if isinstance(maps, (tuple, list)) else (maps,)
        assert len(each) == len(expected)
        for linear_map, one in zip(each, expected, strict=True):
            _check(linear_map, x, one)


@pytest.mark.parametrize("dims", [(0,), (1,), (1, 0), ()])
def test_large_rolls_give_what_small_ones_do(dims: tuple[int, ...]) -> None:
    x, weight = _x(30, 50), _x(40, 30)

    def func(x: Tensor) -> Tensor:
        shifts = (3, -60)[: len(dims)] or 7
        return weight @ torch.roll(
            x * torch.roll(weight.mT @ weight @ x, shifts, dims), shifts, dims
        )

    for name in ("jvp", "vjp"):
        ours, theirs = (_along(getattr(lib, name), func, x) for lib in (pushforward, torch.func))
        torch.testing.assert_close(ours, theirs)


def _along(transform: Any, func: Any, x: Tensor) -> Tensor:
    if transform.__name__ == "jvp":
        return transform(func, (x,), (x.sin(),))[1]
    value, pull = transform(func, x)
    return pull(value.cos())[0]
