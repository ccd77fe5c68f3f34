"""Arguments for operators that have a rule but that PyTorch's operator database does not reach."""

import itertools
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
    "aten.cudnn_batch_norm.default",
    "aten.miopen_batch_norm.default",
    "aten._cudnn_ctc_loss",
    "aten._fused_rms_norm",
}

# Rules of operators of which PyTorch itself has a derivative since that version. Ours needs its node.
DIFFERENTIABLE_SINCE = {
    "aten.nextafter": "2.13",
    "aten.aminmax": "2.12",
    "aten.grid_sampler_2d_backward": "2.12",
    "aten.grid_sampler_3d_backward": "2.12",
    "aten.narrow_copy": "2.12",
}
WITHOUT_NODE = {op for op, since in DIFFERENTIABLE_SINCE.items() if torch.__version__ < since}

# Rules of operators that take statistics of their input as further arguments.
OF_STATISTICS = {
    "aten.native_layer_norm_backward.default",
    "aten.native_batch_norm_backward.default",
    "aten.batch_norm_backward.default",
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
        yield from _factorizations(draw)
        yield from _sampling(draw)
        yield from _backward_operators(draw)
        yield from _reducing_writes(draw, index)
        yield from _class_losses(draw, index)

    return [_call(*call) for call in calls()]


def _call(op: Any, *args: Any, **kwargs: Any) -> Call:
    if args and isinstance(args[-1], dict):
        args, kwargs = args[:-1], args[-1]
    return op, args, kwargs


def _views(draw: Any) -> Iterator[tuple[Any, ...]]:
    copies = (
        "_lazy_clone", "lift_fresh_copy", "_conj_physical", "_neg_view",
    )  # fmt: skip
    for name in copies:
        yield getattr(aten, name).default, draw(2, 3)
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


def _indexing(draw: Any, index: Any) -> Iterator[tuple[Any, ...]]:
    rows = torch.tensor([2, 0, 2])
    for op in (aten._unsafe_index_put.default, aten.index_put.default):
        yield op, draw(4, 3), [rows], draw(3, 3), True
        yield op, draw(4, 3), [None, torch.tensor([1, 0])], draw(4, 2), False
    for op in (aten._index_put_impl.default,):
        yield op, draw(4, 3), [rows], draw(3, 3), True, False
    yield aten._unsafe_index.Tensor, draw(4, 3), [None, torch.tensor([[2, 0], [1, 1]])]
    yield aten.scatter.value, draw(3, 4), 1, torch.tensor([[0, 2], [1, 3]]), 0.5
    yield aten.embedding_dense_backward.default, draw(2, 3, 4), index(5, 2, 3), 5, -1, False
    yield aten.embedding_dense_backward.default, draw(2, 3, 4), index(5, 2, 3), 5, 1, False
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
    matrix = torch.tensor([[0, 1.5, 0], [0, 0, 0], [2, 0, -3]], dtype=torch.float64)
    scaled = {"beta": 0.5, "alpha": 2.0}
    yield aten._sparse_addmm.default, draw(3, 2), matrix.to_sparse(), draw(3, 2), scaled
    for reduce in ("sum", "mean", "amax", "amin"):
        yield aten._sparse_mm_reduce_impl.default, matrix.to_sparse_csr(), draw(3, 2), reduce


def _elementwise(draw: Any) -> Iterator[tuple[Any, ...]]:
    yield aten.elu_.default, draw(2, 3), 1.5, 2, 0.5
    yield aten.celu_.default, draw(2, 3), 1.5
    yield aten.clamp_max.default, draw(2, 3), 0.1
    yield aten.pow.Scalar, 2.0, draw(2, 3)
    yield aten.pow.Scalar, 2.0, draw(2, dtype=torch.complex128)
    yield aten.polygamma_.default, draw(2, 3).abs() + 0.5, 1
    yield aten._standard_gamma.default, draw(2, 3).abs() + 0.5
    coarse = draw(4, 5), 0.1, 0, -8, 7
    yield aten.fake_quantize_per_tensor_affine_cachemask.default, *coarse
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    qparams = aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default
    yield qparams, draw(4, 5).float().double(), 0.1 * one, zero, one, -8, 7
    per_channel = aten.fake_quantize_per_channel_affine_cachemask.default
    yield per_channel, draw(2, 3), torch.full((3,), 0.1), zero.expand(3), 1, -8, 7
    yield aten._neg_view_copy.default, draw(2, 3)
    yield aten.copy_.default, draw(2, 3), draw(3)
    noise = draw(2, 3).abs() + 0.1
    yield aten.rrelu_with_noise_.default, draw(2, 3), noise, 0.1, 0.3, False
    for corners in (False, True):
        yield aten.affine_grid_generator.default, draw(2, 2, 3), [2, 3, 4, 5], corners
        yield aten.affine_grid_generator.default, draw(2, 3, 4), [2, 1, 2, 3, 4], corners


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
        factors = [1.5, 2.0, 1.3][:space]
        yield getattr(aten, f"upsample_nearest{space}d").vec, x, None, factors
        yield getattr(aten, f"_upsample_nearest_exact{space}d").vec, x, size, None
        yield getattr(aten, name).vec, x, None, False, factors
    y, size = draw(1, 2, 3, 4), [4, 3]
    for name in (
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "_upsample_lanczos2d_aa",
    ):
        if hasattr(aten, name):
            yield getattr(aten, name).vec, y, None, True, [1.5, 0.7]
            yield getattr(aten, name).default, y, size, False
            yield (
                getattr(aten, f"{name}_backward").default,
                draw(1, 2, *size),
                size,
                list(y.shape),
                False,
            )


def _sampling(draw: Any) -> Iterator[tuple[Any, ...]]:
    for mode, padding, corners in itertools.product((0, 1, 2), (0, 1, 2), (False, True)):
        image, grid = draw(2, 2, 3, 4), 1.3 * draw(2, 2, 3, 2)
        yield aten.grid_sampler_2d.default, image, grid, mode, padding, corners
        backward = aten.grid_sampler_2d_backward.default
        yield backward, draw(2, 2, 2, 3), image, grid, mode, padding, corners, [True, True]
        if mode != 2:
            volume, places = draw(1, 2, 2, 3, 3), 1.3 * draw(1, 2, 1, 2, 3)
            yield aten.grid_sampler_3d.default, volume, places, mode, padding, corners
    yield aten.grid_sampler_2d.default, draw(1, 1, 1, 3), draw(1, 2, 2, 2), 0, 2, True
    yield aten.grid_sampler_2d.default, draw(1, 2, 3, 3), draw(1, 0, 2, 2), 0, 0, False


def _reducing_writes(draw: Any, index: Any) -> Iterator[tuple[Any, ...]]:
    for reduce, keeps in itertools.product(("sum", "prod", "mean", "amax", "amin"), (True, False)):
        kept = {"include_self": keeps}
        yield aten.scatter_reduce.two, draw(4, 5), 0, index(4, 6, 3), draw(7, 4), reduce, kept
        if reduce != "sum":
            yield aten.index_reduce.default, draw(2, 3), 1, index(3, 4), draw(2, 4), reduce, kept
    zeros = torch.tensor([0.0, 0.0, 2.0, 0.0, 3.0, 4.0], dtype=torch.float64)
    cells = torch.tensor([0, 0, 0, 1, 1, 2])
    yield aten.scatter_reduce.two, draw(4), 0, cells, zeros, "prod"
    start = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    yield aten.scatter_reduce.two, start, 0, cells, zeros, "prod"
    yield aten.scatter_reduce.two, draw(), 0, torch.tensor(0), draw(), "prod"
    yield aten.scatter_reduce.two, draw(3, 2), 1, index(2, 0, 2), draw(3, 2), "mean"
    ties = torch.ones(6, dtype=torch.float64)
    yield aten.scatter_reduce.two, torch.ones(4, dtype=torch.float64), 0, cells, ties, "amax"
    for reduce in ("add", "multiply"):
        named = {"reduce": reduce}
        yield aten.scatter.reduce, draw(3, 4), 1, index(4, 2, 5), draw(3, 5), named
        yield aten.scatter.value_reduce, draw(3, 4), 0, index(3, 2, 3), 1.5, named
    lengths = {"lengths": torch.tensor([2, 0, 3]), "unsafe": True}
    for reduce in ("sum", "mean", "max", "min", "prod"):
        yield aten.segment_reduce.default, draw(6, 2), reduce, {**lengths, "initial": 2.0}
    inside = torch.tensor([[True, False, True], [False, True, True]])
    rows = torch.tensor([[2], [9]]), torch.tensor([[0, 7, 1]])
    yield aten._unsafe_masked_index.default, draw(10, 2), inside, list(rows), 0.5
    put = aten._unsafe_masked_index_put_accumulate.default
    yield put, draw(10, 2), inside, list(rows), draw(2, 3)
    yield aten._unsafe_masked_index.default, draw(0, 2), inside, list(rows), 0.5
    yield put, draw(0, 2), inside, list(rows), draw(2, 3)


def _class_losses(draw: Any, index: Any) -> Iterator[tuple[Any, ...]]:
    for reduction, p in itertools.product((0, 1, 2), (1, 2)):
        weight = draw(4).abs()
        loss = aten.multi_margin_loss.default
        yield loss, draw(3, 4), index(4, 3), p, 0.7, {"weight": weight, "reduction": reduction}
        shape = (3,) if reduction == 0 else ()
        backward = aten.multi_margin_loss_backward.default
        yield backward, draw(*shape), draw(3, 4), index(4, 3), p, 0.7, weight, reduction
        labels = torch.tensor([[2, 0, -1, 1], [1, -1, 0, 0], [0, 2, 3, -1]])
        yield aten.multilabel_margin_loss_forward.default, draw(3, 4), labels, reduction
    yield aten.multi_margin_loss.default, draw(4), index(4)
    yield aten.multilabel_margin_loss_forward.default, draw(4), labels[0], 0
    targets = torch.tensor([[1, 1, 2], [2, 3, 0], [1, 0, 0]])
    lengths = [6, 4, 5], [3, 2, 0]
    yield aten._ctc_loss.default, draw(6, 3, 4), targets, *lengths
    yield aten._ctc_loss.default, draw(6, 3, 4), torch.tensor([1, 1, 2, 2, 3]), *lengths, 0, True
    yield aten._ctc_loss.default, draw(2, 1, 3), torch.tensor([[2, 2]]), [2], [2], 0, True
    yield aten._ctc_loss.default, draw(3, 2, 3), torch.tensor([[0], [1]]), [3, 2], [1, 1], 2
    yield aten._ctc_loss.Tensor, draw(6, 3, 4), targets, *map(torch.tensor, lengths)
    log_probs = draw(6, 3, 4).log_softmax(2)
    loss, alpha = aten._ctc_loss.default(log_probs, targets, *lengths)
    backward = aten._ctc_loss_backward.default
    yield backward, draw(3), log_probs, targets, *lengths, loss, alpha, 0
    target = torch.tensor([1, 2, 1, 3, 0])
    x, layer, bias, weight = draw(5, 2), draw(4, 2), draw(4), draw(4).abs()
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):  # before PyTorch 2.13
        return
    for reduction in ("sum", "mean"):
        chunked = torch.ops.torch_nn._linear_cross_entropy_batch_chunked.default
        options = (0.0, 2, "accurate", torch.float64, True, False, False, False)
        yield chunked, x, layer, target, bias, weight, reduction, 2, *options
    chunked = torch.ops.torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default
    yield chunked, x, layer, target, bias, weight, 1, 2, "accurate", torch.float64


def _factorizations(draw: Any) -> Iterator[tuple[Any, ...]]:
    wide, tall, square = (2, 2, 4), (4, 3), (3, 3)
    for dtype in (torch.float64, torch.complex128):
        a, b, c = (draw(*shape, dtype=dtype) for shape in (wide, tall, square))
        yield aten._linalg_eigvals.default, c
        yield aten._linalg_eigvals.default, draw(2, 2, 2, dtype=dtype)
        for x in (a, b, c):
            yield aten._linalg_svd.default, x
            yield aten.geqrf.default, x
            yield aten.linalg_lu.default, x
            yield aten.linalg_lu_factor_ex.default, x
            yield aten.lu_unpack.default, *torch.linalg.lu_factor(x)
        yield aten.linalg_qr.default, a, "complete"
        vectors, tau = draw(2, 4, 3, dtype=dtype), draw(2, 2, dtype=dtype)
        yield aten.linalg_householder_product.default, vectors, tau
        for left, transpose in itertools.product((True, False), repeat=2):
            other = draw(2, *((4, 3) if left else (3, 4)), dtype=dtype)
            yield aten.ormqr.default, vectors[..., :2], tau, other, left, transpose
            lu, pivots = torch.linalg.lu_factor(draw(2, 3, 3, dtype=dtype))
            rhs = draw(*((1, 3, 2) if left else (2, 3)), dtype=dtype)
            yield (
                aten.linalg_lu_solve.default,
                lu,
                pivots,
                rhs,
                {"left": left, "adjoint": transpose},
            )
        yield aten.linalg_lstsq.default, b, draw(4, 2, dtype=dtype)
        yield aten.linalg_lstsq.default, b, draw(4, 2, dtype=dtype), {"driver": "gelsd"}
        yield aten.linalg_lstsq.default, b, draw(4, dtype=dtype)
        yield aten.linalg_lstsq.default, a, draw(2, 2, dtype=dtype)
        yield aten.linalg_lstsq.default, draw(2, 3, 2, dtype=dtype), draw(1, 3, 1, dtype=dtype)


def _backward_operators(draw: Any) -> Iterator[tuple[Any, ...]]:
    y, volume = draw(1, 1, 3, 3, 4), draw(1, 1, 2, 2, 3)
    for name in ("reflection", "replication"):
        backward = getattr(aten, f"{name}_pad3d_backward").default
        yield backward, y, volume, [1, 0, 1, 0, 0, 1]
    everything = [True, True, True]
    for transposed in (False, True):
        for stride, padding, dilation, extra, groups in (
            ([2], [1], [1], [1], 2),
            ([1, 2], [0, 1], [2, 1], [0, 1], 1),
            ([1], [0], [2], [1], 1),  # more output padding than the stride
        ):
            space = (5, 6)[: len(stride)]
            x, w = draw(2, 4, *space), draw(4, 4 // groups, *(2, 3)[: len(stride)])
            options = (stride, padding, dilation, transposed, extra if transposed else [0], groups)
            y = draw(*torch.convolution(x, w, None, *options).shape)
            yield aten.convolution_backward.default, y, x, w, [4], *options, everything
    for op in (aten.mse_loss_backward, aten.smooth_l1_loss_backward, aten.huber_loss_backward):
        extra = [] if op is aten.mse_loss_backward else [0.8]
        yield op.default, draw(3, 2), draw(3, 2), draw(3, 2), 0, *extra
        yield op.default, draw(), draw(3, 2), draw(3, 2), 1, *extra
    volume, places = draw(1, 2, 2, 3, 3), draw(1, 2, 1, 2, 3)
    backward = aten.grid_sampler_3d_backward.default
    yield backward, draw(1, 2, 2, 1, 2), volume, places, 0, 0, False, [True, True]
    backward = aten.native_batch_norm_backward.default
    x, y, weight, mean, var = draw(3, 2, 4), draw(3, 2, 4), draw(2), draw(2), draw(2).abs() + 1
    yield backward, y, x, weight, mean, var, None, None, False, 1e-5, everything
    yield backward, y, x, weight, None, None, mean, var, True, 1e-5, everything
    backward = aten.soft_margin_loss_backward.default
    yield backward, draw(3, 2), draw(3, 2), draw(3, 2).sign(), 0
    yield backward, draw(), draw(3, 2), draw(3, 2).sign(), 1
    backward = aten.binary_cross_entropy_backward.default
    yield backward, draw(3, 2), draw(3, 2).sigmoid(), draw(3, 2), draw(2).abs(), 0
    yield backward, draw(), draw(3, 2).sigmoid(), draw(3, 2), draw(2).abs(), 1
    target, weight = torch.tensor([1, 0, 2]), draw(3).abs() + 1
    backward = aten.nll_loss_backward.default
    yield backward, draw(3), draw(3, 3), target, weight, 0, -100, draw()
    total = weight[0] + weight[1]
    yield backward, draw(), draw(3, 3), target, weight, 1, 2, total
    backward, target = aten.nll_loss2d_backward.default, torch.tensor([[[1, 0]], [[2, 1]]])
    total = weight[0] + 2 * weight[1]
    yield backward, draw(), draw(2, 3, 1, 2), target, weight, 1, 2, total
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    heads = [draw(1, 2, n, 4) for n in (3, 5, 5)]
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    out, total = forward(*heads, attn_mask=draw(1, 2, 3, 5))
    mask = {"attn_mask": draw(1, 2, 3, 5), "scale": 0.4}
    yield backward, draw(1, 2, 3, 4), *heads, out, total, 0.0, False, mask
    heads = [draw(1, 1, 3, 4) for _ in range(3)]
    out, total = forward(*heads, 0.0, True)
    yield backward, draw(1, 1, 3, 4), *heads, out, total, 0.0, True
