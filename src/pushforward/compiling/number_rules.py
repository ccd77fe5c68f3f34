"""Rules: what operators are on numbers. Most work element by element or move elements; the rest has functions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from pushforward.compiling.numbers import COMPARISONS, Numbers

aten = torch.ops.aten


class Program(Protocol):
    """A graph that is taken apart, as rules see it."""

    numbers: Numbers
    found: dict[fx.Node, Any]  # arrays of numbers, for each node
    known: dict[fx.Node, Any]  # tensors, of what depends on no input

    def array(self, node: Any) -> Tensor:
        """Return the numbers that a tensor's elements are; those of a Python number."""

    def of(self, name: str, dtype: torch.dtype, *arrays: Tensor) -> Tensor:
        """Return the numbers of an operation on arrays of numbers."""

    def summed(self, array: Tensor, dtype: torch.dtype, axes: Sequence[int]) -> Tensor:
        """Return sums over axes."""


class UnsuitableError(Exception):
    """A graph has something that is not taken apart."""


def _scaled(name: str, order: tuple[int, int] = (0, 1)) -> Callable[[Program, fx.Node], Tensor]:
    """Return the rule of a sum or difference, of which the second operand in this order may have a factor."""

    def rule(program: Program, node: fx.Node) -> Tensor:
        factor = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
        first, second = (program.array(node.args[i]) for i in order)
        dtype = node.meta["val"].dtype
        if factor != 1:
            second = program.of("mul", dtype, second, program.array(factor))
        return program.of(name, dtype, first, second)

    return rule


def _power(program: Program, node: fx.Node) -> Tensor:
    x, exponent = node.args
    dtype = node.meta["val"].dtype
    array = program.array(x)
    if not isinstance(exponent, (int, float)) or abs(exponent) not in (0.5, 1, 2, 3, 4):
        return program.of("pow", dtype, array, program.array(exponent))
    size = abs(exponent)
    if size == 0.5:
        found = program.of("sqrt", dtype, array)
    else:
        found = program.of("cast", dtype, array)
        if size == 4:
            found = program.of("mul", dtype, found, found)
        for _ in range({1: 0, 2: 1, 3: 2, 4: 1}[int(size)]):
            found = program.of("mul", dtype, found, found if size == 4 else array)
    return found if exponent > 0 else program.of("reciprocal", dtype, found)


def _sum(program: Program, node: fx.Node) -> Tensor:
    array, dtype = program.array(node.args[0]), node.meta["val"].dtype
    given: Any = node.args[1] if len(node.args) > 1 else None
    axes = list(range(array.dim())) if given is None or given == [] else list(given)
    return program.summed(array, dtype, axes).reshape(node.meta["val"].shape)


def _mean(program: Program, node: fx.Node) -> Tensor:
    found, array = _sum(program, node), program.array(node.args[0])
    count = array.numel() // max(found.numel(), 1)
    return program.of("div", node.meta["val"].dtype, found, program.array(count))


def _product(
    axis: int, left: int | None = None, right: int | None = None
) -> Callable[[Program, fx.Node], Tensor]:
    """Return the rule of a product of matrices or vectors, which get an axis each."""

    def rule(program: Program, node: fx.Node) -> Tensor:
        x, y = map(program.array, node.args[:2])
        dtype = node.meta["val"].dtype
        x = x if left is None else x.unsqueeze(left)
        y = y if right is None else y.unsqueeze(right)
        return program.summed(program.of("mul", dtype, x, y), dtype, [axis])

    return rule


def _addmm(program: Program, node: fx.Node) -> Tensor:
    if node.kwargs:
        raise UnsuitableError
    bias, x, y = map(program.array, node.args)
    dtype = node.meta["val"].dtype
    terms = program.of("mul", dtype, x.unsqueeze(2), y.unsqueeze(0))
    return program.of("add", dtype, program.summed(terms, dtype, [1]), bias)


def _addcmul(program: Program, node: fx.Node) -> Tensor:
    x, y, z = map(program.array, node.args)
    dtype = node.meta["val"].dtype
    product = program.of("mul", dtype, y, z)
    factor: Any = node.kwargs.get("value", 1)
    if factor != 1:
        product = program.of("mul", dtype, product, program.array(factor))
    return program.of("add", dtype, x, product)


def _cast(program: Program, node: fx.Node) -> Tensor:
    return program.of("cast", node.meta["val"].dtype, program.array(node.args[0]))


def _norm(program: Program, node: fx.Node) -> Tensor:
    order: Any = node.args[1] if len(node.args) > 1 else 2
    if order != 2 or len(node.args) > 2 or node.kwargs:
        raise UnsuitableError
    array, dtype = program.array(node.args[0]).flatten(), node.meta["val"].dtype
    squares = program.summed(program.of("mul", dtype, array, array), dtype, [0])
    return program.of("sqrt", dtype, squares)


def _item(program: Program, node: fx.Node) -> Tensor:
    """Return one of several results."""
    arguments: Any = node.args
    several, place = arguments
    found: Tensor = program.found[several][place]
    return found


def _index_add(program: Program, node: fx.Node) -> Tensor:
    arguments: Any = node.args
    target, axis, index, source, *_ = arguments
    if index not in program.known or node.kwargs.get("alpha", 1) != 1 or len(node.args) > 4:
        raise UnsuitableError
    found, added = program.array(target).clone(), program.array(source)
    dtype, places = node.meta["val"].dtype, program.known[index].flatten().tolist()
    if not found.dim():
        raise UnsuitableError
    for number, place in enumerate(places):
        row = found.select(axis, place)
        row.copy_(program.of("add", dtype, row, added.select(axis, number)))
    return found


def _filled(program: Program, node: fx.Node) -> Tensor:
    """Return the rule of ``zeros_like``, ``new_ones`` and the like: only shapes matter."""
    value = 1.0 if "ones" in str(node.target) else 0.0
    if "full" in str(node.target):
        given: Any = node.args[-1]
        value = float(given)
    y = node.meta["val"]
    # Laid out as the tensor is: others may become views of it.
    found = torch.empty_strided(y.shape, y.stride(), dtype=torch.int64)
    return found.fill_(program.numbers.constant(value))


INDEXING = (aten.index.Tensor, aten.index_select.default, aten.gather.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
MOVING = {
    *VIEWS, *INDEXING, aten.permute.default, aten.transpose.int, aten.t.default, aten.select.int,
    aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.cat.default, aten.stack.default, aten.clone.default, aten.detach.default,
    aten.alias.default, aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.roll.default, aten.flip.default,
    aten.diagonal.default, aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.repeat.default,
    aten.constant_pad_nd.default, aten.select_scatter.default, aten.slice_scatter.default,
    aten.diagonal_scatter.default, aten.select_backward.default, aten.slice_backward.default,
    aten.diag_embed.default, aten.triu.default, aten.tril.default, aten.movedim.int, aten.unfold.default,
}  # fmt: skip
ELEMENTWISE: dict[Any, str] = {
    aten.mul.Tensor: "mul", aten.mul.Scalar: "mul", aten.div.Tensor: "div", aten.div.Scalar: "div",
    aten.where.self: "where", aten.where.ScalarOther: "where", aten.where.ScalarSelf: "where",
    aten.sgn.default: "sign", aten.bitwise_not.default: "logical_not",
    aten.bitwise_and.Tensor: "logical_and", aten.bitwise_or.Tensor: "logical_or",
    aten.pow.Tensor_Tensor: "pow", aten.pow.Scalar: "pow",
} | {
    getattr(aten, name).default: name
    for name in (
        "neg", "abs", "reciprocal", "sqrt", "rsqrt", "sign", "maximum", "minimum", "relu",
        "tanh_backward", "sigmoid_backward", "threshold_backward", "logical_not", "logical_and", "logical_or",
        "atan2", "sigmoid", "sin", "cos",
        "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "expm1", "log", "log1p", "log2", "erf",
    )
} | {
    getattr(getattr(aten, name), overload): name for name in COMPARISONS for overload in ("Tensor", "Scalar")
}  # fmt: skip
SPECIAL: dict[Any, Callable[[Program, fx.Node], Any]] = {
    aten.add.Tensor: _scaled("add"), aten.add.Scalar: _scaled("add"),
    aten.sub.Tensor: _scaled("sub"), aten.sub.Scalar: _scaled("sub"),
    aten.rsub.Tensor: _scaled("sub", (1, 0)), aten.rsub.Scalar: _scaled("sub", (1, 0)),
    aten.pow.Tensor_Scalar: _power, aten.sum.default: _sum, aten.sum.dim_IntList: _sum,
    operator.getitem: _item, aten.linalg_vector_norm.default: _norm, aten.mean.default: _mean, aten.mean.dim: _mean,
    aten.mm.default: _product(1, 2, 0), aten.bmm.default: _product(2, 3, 1),
    aten.mv.default: _product(1), aten.dot.default: _product(0),
    aten.addmm.default: _addmm, aten.addcmul.default: _addcmul, aten.index_add.default: _index_add,
    aten._to_copy.default: _cast,
} | {
    getattr(aten, name).default: _filled
    for name in (
        "zeros_like", "ones_like", "new_zeros", "new_ones", "full_like", "new_full",
        "empty_like", "new_empty", "new_empty_strided", "empty_strided",  # which may hold anything
    )
}  # fmt: skip
