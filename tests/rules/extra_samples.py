"""Arguments for operators that have a rule but that PyTorch's operator database does not reach."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# Rules of operators that have no CPU kernel.
NOT_ON_CPU = {
    "aten._pin_memory",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten.cudnn_batch_norm",
    "aten.miopen_batch_norm",
}

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def extra_samples() -> list[Call]:
    """Return (operator, args, kwargs); those of operators without a rule are not used."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    def index(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def calls() -> Iterator[tuple[Any, ...]]:
        yield from _views(draw)
        yield from _indexing(draw, index)
        yield from _contractions(draw)
        yield from _elementwise(draw)
        yield from _networks(draw, index)
        yield from _resampling(draw)

    return [_call(*call) for call in calls()]


def _call(op: Any, *args: Any, **kwargs: Any) -> Call:
    if args and isinstance(args[-1], dict):
        args, kwargs = args[:-1], args[-1]
    return op, args, kwargs


def _views(draw: Any) -> Iterator[tuple[Any, ...]]:
    copies = (
        "_lazy_clone", "lift", "lift_fresh", "lift_fresh_copy", "_conj_physical", "_neg_view",
    )  # fmt: skip
    for name in copies:
        yield getattr(aten, name).default, draw(2, 3)
    yield aten.detach_copy.default, draw(2, 3)
    yield aten._conj_physical.default, draw(2, 3, dtype=torch.complex128)
    yield aten._neg_view.default, draw(2, 3, dtype=torch.complex128)
    for name in ("_reshape_copy",):
        yield getattr(aten, name).default, draw(2, 3, 4), [6, 4]
    yield aten._reshape_alias.default, draw(2, 3, 4), [6, 4], [4, 1]
    yield aten._reshape_alias_copy.default, draw(2, 3, 4), [6, 4], [4, 1]
    yield aten.view_copy.default, draw(2, 3, 4), [2, -1]
    yield aten.select_copy.int, draw(2, 3, 4), 1, -1
    yield aten.slice_copy.Tensor, draw(5, 3), 0, 1, -1, 2
    yield aten.split_copy.Tensor, draw(5, 3), 2
    yield aten.unsafe_split.Tensor, draw(5, 3), 2
    yield aten.split_with_sizes_copy.default, draw(5, 3), [1, 0, 4]
    yield aten.unsafe_split_with_sizes.default, draw(3, 5), [1, 4], 1
    yield aten.view_as_real_copy.default, draw(2, 3, dtype=torch.complex128)
    yield aten.view_as_complex_copy.default, draw(3, 2)
    yield aten._stack.default, [draw(2, 3), draw(2, 3)], 1
    yield aten.as_strided.default, draw(4, 5), [3, 2], [5, 2], 1
    yield aten.as_strided.default, draw(6), [3, 3], [1, 1]


def _indexing(draw: Any, index: Any) -> Iterator[tuple[Any, ...]]:
    rows = torch.tensor([2, 0, 2])
    for op in (aten._unsafe_index_put.default, aten.index_put.default):
        yield op, draw(4, 3), [rows], draw(3, 3), True
        yield op, draw(4, 3), [None, torch.tensor([1, 0])], draw(4, 2), False
    for op in (aten._index_put_impl.default,):
        yield op, draw(4, 3), [rows], draw(3, 3), True, False
    yield aten.scatter.value, draw(3, 4), 1, torch.tensor([[0, 2], [1, 3]]), 0.5
    yield aten.embedding_dense_backward.default, draw(2, 3, 4), index(5, 2, 3), 5, -1, False
    yield aten.embedding_dense_backward.default, draw(2, 3, 4), index(5, 2, 3), 5, 1, False
    yield aten.embedding_dense_backward.default, draw(2, 3, 4), index(5, 2, 3), 5, -1, True
    yield aten.reflection_pad3d.default, draw(1, 2, 3, 3), [1, 1, 0, 1, 0, 1]
    yield aten.reflection_pad3d.default, draw(1, 1, 2, 2, 3), [1, 2, 1, 0, 1, 1]
    yield aten.replication_pad3d.default, draw(1, 2, 3, 3), [1, 1, 0, 1, 0, 1]
    yield aten.replication_pad3d.default, draw(1, 1, 2, 2, 3), [1, 2, 1, 0, 1, -1]
    yield aten.slice_scatter.default, draw(5, 3), draw(2, 3), 0, 1, -1, 2
    yield aten.select_backward.default, draw(2, 4), [2, 3, 4], 1, 2
    yield aten.slice_backward.default, draw(2, 3), [5, 3], 0, 1, 4, 2
    yield aten.diagonal_backward.default, draw(3), [3, 4], 0, 0, 1
    yield aten.diagonal_backward.default, draw(2, 2), [3, 2, 4], -1, 0, 2
    yield aten.fill.Tensor, draw(2, 3), draw()
    yield aten.col2im.default, draw(1, 4, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]
    yield aten.col2im.default, draw(4, 9), [4, 4], [2, 2], [1, 1], [1, 1], [2, 2]


def _contractions(draw: Any) -> Iterator[tuple[Any, ...]]:
    yield aten.linear.default, draw(2, 3, 4), draw(5, 4), draw(5)
    yield aten.linear.default, draw(4), draw(5, 4)
    yield aten.matmul.default, draw(2, 3, 4), draw(4)
    yield aten.matmul.default, draw(2, 1, 3, 2), draw(2, 2, 3)
    yield aten.matmul.default, draw(3), draw(2, 3, 4)
    yield aten.matmul.default, draw(3), draw(3)
    yield aten._cdist_forward.default, draw(2, 3, 2), draw(2, 4, 2), 2.0, None
    yield aten._cdist_forward.default, draw(3, 2), draw(4, 2), 1.0, None
    yield aten._cdist_forward.default, draw(3, 2), draw(4, 2), 3.5, None
    yield aten._euclidean_dist.default, draw(3, 2), draw(4, 2)
    convolution = [False, False, False, False]
    for op, extra in ((aten._convolution.default, convolution), (aten.convolution.default, [])):
        yield op, draw(2, 2, 5), draw(4, 1, 2), draw(4), [2], [1], [1], False, [0], 2, *extra
        yield (
            op,
            draw(1, 2, 3, 4),
            draw(2, 2, 2, 2),
            draw(2),
            [1, 1],
            [0, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            *extra,
        )
        yield op, draw(1, 2, 4), draw(2, 2, 3), None, [2], [1], [1], True, [1], 1, *extra
        yield op, draw(1, 4, 3), draw(4, 1, 2), draw(2), [1], [0], [2], True, [0], 2, *extra
    yield aten.conv_tbc.default, draw(4, 2, 3), draw(2, 3, 2), draw(2), 1


def _elementwise(draw: Any) -> Iterator[tuple[Any, ...]]:
    yield aten.pow.Scalar, 2.0, draw(2, 3)
    yield aten.pow.Scalar, 2.0, draw(2, dtype=torch.complex128)
    yield aten._aminmax.default, draw(2, 3)
    yield aten._aminmax.dim, draw(2, 3), 1


def _networks(draw: Any, index: Any) -> Iterator[tuple[Any, ...]]:
    flash = aten._scaled_dot_product_flash_attention_for_cpu.default
    yield flash, draw(1, 2, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 4)
    yield flash, draw(1, 1, 3, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 4), 0.0, True
    mask = {"attn_mask": draw(1, 2, 3, 5), "scale": 0.3}
    yield flash, draw(1, 2, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 4), 0.0, False, mask
    mean, var = draw(3), draw(3).abs() + 0.5
    yield (
        aten._native_batch_norm_legit_no_training.default,
        draw(2, 3, 4),
        draw(3),
        draw(3),
        mean,
        var,
        0.1,
        1e-5,
    )
    yield aten._batch_norm_no_update.default, draw(2, 3, 4), draw(3), draw(3), mean, var, 0.1, 1e-5
    yield aten._native_batch_norm_legit.no_stats, draw(2, 3, 4), draw(3), draw(3), True, 0.1, 1e-5
    target = draw(3, 4).sigmoid()
    for reduction in (0, 1, 2):
        yield (
            aten.binary_cross_entropy.default,
            draw(3, 4).sigmoid(),
            target,
            draw(4).abs(),
            reduction,
        )
        yield (
            aten.binary_cross_entropy_with_logits.default,
            draw(3, 4), target, draw(3, 1).abs(), draw(4).abs(), reduction,
        )  # fmt: skip
    words, bags = index(5, 6), torch.tensor([0, 2, 2])
    for mode in (0, 1, 2):
        yield aten._embedding_bag.default, draw(5, 3), words, bags, False, mode
        yield (
            aten._embedding_bag.default,
            draw(5, 3),
            words,
            bags,
            False,
            mode,
            False,
            None,
            False,
            2,
        )
    yield aten._embedding_bag.default, draw(5, 3), words, bags, False, 0, False, draw(6)
    yield (
        aten._embedding_bag.default,
        draw(5, 3),
        words,
        torch.tensor([0, 2, 6]),
        False,
        0,
        False,
        draw(6),
        True,
    )
    yield aten._weight_norm_interface.default, draw(3, 4), draw(3, 1).abs(), 0
    yield aten._weight_norm_interface.default, draw(3, 4), draw(1, 4).abs(), 1


def _resampling(draw: Any) -> Iterator[tuple[Any, ...]]:
    for space in (1, 2, 3):
        x, size = draw(1, 2, *(3, 2, 4)[:space]), [4, 3, 5][:space]
        smooth = {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}
        for name in (f"upsample_nearest{space}d", f"_upsample_nearest_exact{space}d"):
            yield getattr(aten, name).default, x, size
            yield getattr(aten, f"{name}_backward").default, draw(1, 2, *size), size, list(x.shape)
        name = smooth[space]
        for corners in (False, True):
            yield getattr(aten, name).default, x, size, corners
        yield (
            getattr(aten, f"{name}_backward").default,
            draw(1, 2, *size),
            size,
            list(x.shape),
            False,
        )
    y, size = draw(1, 2, 3, 4), [4, 3]
    for name in (
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "_upsample_lanczos2d_aa",
    ):
        if hasattr(aten, name):
            yield getattr(aten, name).default, y, size, False
            yield (
                getattr(aten, f"{name}_backward").default,
                draw(1, 2, *size),
                size,
                list(y.shape),
                False,
            )
