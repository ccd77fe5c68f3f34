"""Pooling and resampling of images. Batch and channels are kept: each plane is a map of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.take_along import TakeAlong
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import no_map, rule, with_output
from pushforward.rules.resampling import resampler

aten = torch.ops.aten

Sizes = int | Sequence[int]


# Averages


def _average(
    in_shape: Shape,
    out_shape: Shape,
    num_space: int,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> General:
    forward = (aten.avg_pool2d, aten.avg_pool3d)[num_space - 2]
    backward = (aten.avg_pool2d_backward, aten.avg_pool3d_backward)[num_space - 2]
    window = [
        (value,) * num_space if isinstance(value, int) else value
        for value in (kernel_size, stride, padding)
    ]
    options = (*window, ceil_mode, count_include_pad, divisor_override)
    sizes, strides, around = (tuple(each) for each in window)
    lead = len(in_shape) - num_space
    is_parted = (
        len(sizes) == num_space
        and (not strides or strides == sizes)
        and not any(around)
        and all(
            n == m * k for n, m, k in zip(in_shape[lead:], out_shape[lead:], sizes, strict=True)
        )
    )
    divisor = divisor_override or math.prod(sizes)

    def pull(y: Tensor, shape: Shape) -> Tensor:
        if is_parted and _is_plain(y):
            return _spread(y, sizes, 1 / divisor, shape)
        pulled: Tensor = backward(y, y.new_empty(shape), *options)  # for its shape
        return pulled

    return resampler(in_shape, out_shape, num_space, lambda x: forward(x, *options), pull)


def _is_plain(y: Tensor) -> bool:
    if type(y) is not Tensor or y.device.type != "cpu" or not y.is_contiguous():
        return False
    return y.dtype in (torch.float32, torch.float64)


def _spread(y: Tensor, sizes: Sequence[int], factor: float, shape: Shape) -> Tensor:
    """Return what windows that part an image among them pull: half to a third of PyTorch's time on CPUs.

    Along the last axis by a product, which is as fast as a copy.
    """
    weights = torch.full((sizes[-1],), factor, dtype=y.dtype, device=y.device)
    rows = (y.unsqueeze(-1) * weights).flatten(-2)
    first = y.ndim - len(sizes)
    repeated = list(rows.shape[:first])
    for axis, size in enumerate(sizes[:-1]):
        rows = rows.unsqueeze(first + 2 * axis + 1)
        repeated += (y.shape[first + axis], size)
    return rows.expand(*repeated, rows.shape[-1]).reshape(shape)


def _adaptive_average(in_shape: Shape, out_shape: Shape, num_space: int) -> General:
    forward = (aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d)[num_space - 2]
    backward = (aten._adaptive_avg_pool2d_backward, aten._adaptive_avg_pool3d_backward)[
        num_space - 2
    ]
    size = out_shape[len(out_shape) - num_space :]
    return resampler(
        in_shape,
        out_shape,
        num_space,
        lambda x: forward(x, size),
        lambda y, shape: backward(y, y.new_empty(shape)),
    )


def _declare_averages(num_space: int, pools: Sequence[Any], adaptives: Sequence[Any]) -> None:
    """Declare pooling and its adjoint, for windows of fixed size and for adaptive ones."""

    def shapes(x: Tensor, y: Tensor) -> tuple[Shape, Shape, int]:
        return tuple(x.shape), tuple(y.shape), num_space

    rule(
        pools[0],
        with_output(
            lambda self, *options, out, **named: _average(*shapes(self, out), *options, **named)
        ),
    )
    rule(
        pools[1],
        lambda grad_output, self, *options, **named: transpose(
            _average(*shapes(self, grad_output), *options, **named)
        ),
        no_map,
        like=1,
    )
    rule(
        adaptives[0],
        with_output(lambda self, output_size, *, out: _adaptive_average(*shapes(self, out))),
    )
    rule(
        adaptives[1],
        lambda grad_output, self: transpose(_adaptive_average(*shapes(self, grad_output))),
        no_map,
        like=1,
    )


_declare_averages(
    2,
    (aten.avg_pool2d, aten.avg_pool2d_backward.default),
    (aten._adaptive_avg_pool2d, aten._adaptive_avg_pool2d_backward),
)
_declare_averages(
    3,
    (aten.avg_pool3d, aten.avg_pool3d_backward.default),
    (aten._adaptive_avg_pool3d, aten._adaptive_avg_pool3d_backward.default),
)

# Maxima: a gather from the places found, plane by plane


def _taken(in_shape: Shape, indices: Tensor, num_space: int) -> AbstractLinearMap:
    """Return the map that takes the flat positions ``indices`` of each plane."""
    lead = len(in_shape) - num_space
    kept, sizes, out_shape = in_shape[:lead], in_shape[lead:], tuple(indices.shape)
    flat = (*kept, math.prod(sizes))
    places = indices.flatten(lead)
    taken = TakeAlong(flat, tuple(places.shape), lead, places, is_total=True)
    return compose(Reshape(in_shape, flat), taken, Reshape(taken.out_shape, out_shape))


def _max_pool(num_space: int) -> Callable[..., Any]:
    @with_output
    def partial(
        self: Tensor, *options: Any, out: tuple[Tensor, Tensor], **named: Any
    ) -> tuple[AbstractLinearMap, None]:
        return _taken(tuple(self.shape), out[1], num_space), None

    return partial


def _max_pool_backward(num_space: int) -> Callable[..., Any]:
    """Take the indices from the last argument: the operator is linear in its first."""

    def partial(grad_output: Tensor, self: Tensor, *options: Any, **named: Any) -> Any:
        indices = named["indices"] if "indices" in named else options[-1]
        return transpose(_taken(tuple(self.shape), indices, num_space))

    return partial


def _declare_max_pool(num_space: int, operator: Any, backward: Any) -> None:
    rule(operator, _max_pool(num_space))
    rule(backward, _max_pool_backward(num_space), no_map, like=1)


_declare_max_pool(2, aten.max_pool2d_with_indices, aten.max_pool2d_with_indices_backward.default)
_declare_max_pool(3, aten.max_pool3d_with_indices, aten.max_pool3d_with_indices_backward.default)
_declare_max_pool(2, aten.adaptive_max_pool2d, aten.adaptive_max_pool2d_backward.default)
_declare_max_pool(3, aten.adaptive_max_pool3d, aten.adaptive_max_pool3d_backward.default)
_declare_max_pool(2, aten.fractional_max_pool2d, aten.fractional_max_pool2d_backward.default)
_declare_max_pool(3, aten.fractional_max_pool3d, aten.fractional_max_pool3d_backward.default)

# Of several values put at one place one counts, and which is not defined.
rule(
    aten.max_unpool2d,
    with_output(
        lambda self, indices, *sizes, out, **named: transpose(_taken(tuple(out.shape), indices, 2))
    ),
)
rule(
    aten.max_unpool3d,
    with_output(
        lambda self, indices, *sizes, out, **named: transpose(_taken(tuple(out.shape), indices, 3))
    ),
)

# Interpolation


def _declare_upsample(operator: Any, backward: Any, num_space: int) -> None:
    """Declare an interpolation and its backward operator."""

    def linear_map(x_shape: Shape, y_shape: Shape, *options: Any, **named: Any) -> General:
        size = y_shape[2:]
        return resampler(
            x_shape,
            y_shape,
            num_space,
            lambda x: operator(x, size, *options, **named),
            lambda y, shape: backward(y, size, shape, *options, **named),
        )

    rule(
        operator,
        with_output(
            lambda self, output_size, *options, out, **named: linear_map(
                tuple(self.shape), tuple(out.shape), *options, **named
            )
        ),
    )
    rule(
        backward,
        lambda grad_output, output_size, input_size, *options, **named: transpose(
            linear_map(tuple(input_size), tuple(grad_output.shape), *options, **named)
        ),
    )


for _name, _num_space in {
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_nearest3d": 3,
    "_upsample_nearest_exact1d": 1,
    "_upsample_nearest_exact2d": 2,
    "_upsample_nearest_exact3d": 3,
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "upsample_bicubic2d": 2,
    "_upsample_bicubic2d_aa": 2,
    "_upsample_lanczos2d_aa": 2,
    "upsample_trilinear3d": 3,
}.items():
    if hasattr(aten, _name):  # not every PyTorch has them all
        _forward, _backward = getattr(aten, _name), getattr(aten, f"{_name}_backward")
        _declare_upsample(_forward.default, _backward.default, _num_space)
