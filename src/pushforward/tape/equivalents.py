"""Functions whose nodes tell too little, or whose derivative PyTorch has wrong or not at all: called by others.

Each gives the same values from operators with good derivatives, or None where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pushforward.linear.differentiated import has_duals
from pushforward.tape.private_functorch import batch_axis, functorch_level, wrappers
from pushforward.tape.ruled import call_ruled

Equivalent = Callable[..., Any]


def _polar(abs: Tensor, angle: Tensor, *, out: Tensor | None = None) -> Tensor | None:
    """The node saves the result, which does not tell the sign of ``abs``, nor the angle where it is 0."""
    return torch.complex(abs * angle.cos(), abs * angle.sin()) if out is None else None


def _kron(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor | None:
    """Its views of the arguments hide from autograd that these are written to afterwards."""
    if out is not None:
        return None
    count = max(input.ndim, other.ndim)
    rows, cols = (
        [1] * (count - x.ndim) + [x.shape[i] for i in range(x.ndim)] for x in (input, other)
    )
    left = input.reshape([n for row in rows for n in (row, 1)])
    right = other.reshape([n for col in cols for n in (1, col)])
    return (left * right).reshape([row * col for row, col in zip(rows, cols, strict=True)])


def _as_strided_scatter(
    input: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Tensor | None:
    """The node does not save the input's strides, and keeps the gradient of what is overwritten."""
    offset = 0 if storage_offset is None else storage_offset - input.storage_offset()
    if offset < 0:
        return None
    result = torch.empty_strided(
        input.shape, input.stride(), dtype=input.dtype, device=input.device
    )
    result.copy_(input)
    result.as_strided(size, stride, offset).copy_(src)
    return result


def _linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor | None:
    """In chunks it computes gradients ahead, and backward overwrites them."""
    if options is None:
        return None
    return torch.nn.functional.linear_cross_entropy(*args, **kwargs)


def _scatter(
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Any = None,
    *,
    reduce: str | None = None,
    **rest: Any,
) -> Tensor | None:
    """With ``reduce`` it has no derivative."""
    value = rest.pop("value", src)
    if reduce not in _REDUCTIONS or rest:
        return None
    if not isinstance(value, Tensor):
        value = input.new_full((), value).expand(index.shape)
    return input.scatter_reduce(dim, index, value, _REDUCTIONS[reduce])


def _write_of(take: Any) -> Equivalent:
    """Of complex numbers these writes have no derivative."""

    def written(input: Tensor, src: Tensor, *place: Any, **named: Any) -> Tensor | None:
        if not (input.is_complex() or src.is_complex()):
            return None
        result = input.clone()
        take(result, *place, **named).copy_(src)
        return result

    return written


def _slice(
    x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    return x.movedim(dim, 0)[slice(start, end, step)].movedim(0, dim)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    """A kernel that does not differentiate the mask is taken where a wrapper hides that it has to be.

    And on CPUs ``vmap`` calls kernels for one member of the batch after the other.
    """
    is_masked = isinstance(attn_mask, Tensor) and functorch_level() is not None
    if not (is_masked or _is_called_in_turn(query, key, value)):
        return None
    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, *args, **kwargs
        )


def _heads(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """It calls the same kernels."""
    if not _is_called_in_turn(query, key, value):
        return None
    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.multi_head_attention_forward(query, key, value, *args, **kwargs)


def _is_called_in_turn(*tensors: Tensor) -> bool:
    """Tell whether ``vmap`` would call a kernel of the CPU for one member of the batch after the other."""
    layers = [layer for x in tensors for layer in wrappers(x)]
    return tensors[0].is_cpu and any(batch_axis(layer) is not None for layer in layers)


def _logits_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor | None:
    """Under ``vmap`` it writes to a view, which leaves a node that tells nothing.

    Math: -p t log σ(x) - (1 - t) log σ(-x) = (1 - t) x - (1 + (p - 1) t) log σ(x).
    """
    if functorch_level() is None or not _is_usual(input, target, size_average, reduce, reduction):
        return None
    logarithm = torch.nn.functional.logsigmoid(input)
    if pos_weight is not None:
        logarithm = logarithm * (1 + (pos_weight - 1) * target)
    loss = (1 - target) * input - logarithm
    return _REDUCED[reduction](loss if weight is None else loss * weight)


def _hinge_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
) -> Tensor | None:
    """As that of logits."""
    if functorch_level() is None or not _is_usual(input, target, size_average, reduce, reduction):
        return None
    loss = torch.where(target != 1, (margin - input).clamp_min(0), 0)
    return _REDUCED[reduction](loss + torch.where(target != -1, input, 0))


def _is_usual(x: Tensor, target: Any, size_average: Any, reduce: Any, reduction: str) -> bool:
    """Tell whether a loss is called as PyTorch's documentation recommends."""
    is_modern = size_average is None and reduce is None and reduction in _REDUCED
    return is_modern and isinstance(target, Tensor) and x.shape == target.shape


_REDUCED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean, "sum": torch.sum, "none": lambda loss: loss
}  # fmt: skip


def _lstsq(
    A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None, out: Any = None
) -> Any:
    """The node saves no ``rcond``, and singular values are not followed."""
    if out is not None or (rcond is None and driver not in ("gelsd", "gelss")):
        return None
    operator = torch.ops.aten.linalg_lstsq.default
    found = call_ruled(operator, operator, (A, B, rcond), {"driver": driver})
    return torch.return_types.linalg_lstsq(found)  # type: ignore[attr-defined]


def _vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor | None:
    """It overwrites what it saves."""
    if x.ndim != 1 or (len(x) if N is None else N) < 2:
        return None
    powers: Tensor = torch.linalg.vander(x, N=N)
    return powers if increasing else powers.flip(-1)


def _qr(A: Tensor, mode: str = "reduced", *, out: Any = None) -> Any:
    """Of R alone it has no derivative."""
    if mode != "r" or out is not None:
        return None
    return torch.return_types.linalg_qr((A.new_empty(0), torch.linalg.qr(A).R))  # type: ignore[attr-defined]


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor | None:
    """PyTorch's forward mode takes mean and deviation for constants, also where its tangents are differentiated."""
    if not has_duals():
        return None
    result = _normalized(input, tuple(range(-len(normalized_shape), 0)), eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """As with layers."""
    if not has_duals() or not training:
        return None
    if running_mean is not None:  # update the statistics
        torch.nn.functional.batch_norm(
            input.detach(), running_mean, running_var, None, None, training, momentum, eps
        )
    shape = (1, -1) + (1,) * (input.dim() - 2)
    result = _normalized(input, (0, *range(2, input.dim())), eps)
    result = result if weight is None else result * weight.view(shape)
    return result if bias is None else result + bias.view(shape)


def _normalized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def _pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor | None:
    """Around a circle it is copied into views, one after the other, which leaves nodes that tell nothing."""
    count = len(pad) // 2
    if mode != "circular" or input.dim() - count not in (1, 2) or not any(pad):
        return None
    sizes = input.shape[::-1]
    if any(not 0 <= n <= sizes[i // 2] for i, n in enumerate(pad)):
        return None
    for axis, before, after in zip(range(-1, -count - 1, -1), pad[::2], pad[1::2], strict=True):
        size = input.shape[axis]
        parts = [input.narrow(axis, size - before, before), input, input.narrow(axis, 0, after)]
        input = torch.cat([part for part in parts if part.shape[axis]], axis)
    return input


BY_RULE: set[Any] = set()  # operators that autograd does not follow


def _by_rule(operator: Any, function: Any) -> Equivalent:
    """Let a rule of ours say the derivative; there is none of PyTorch's."""
    BY_RULE.add(operator)
    return lambda *args, **kwargs: call_ruled(operator, function, args, kwargs)


_WITHOUT_DERIVATIVE = (
    "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "modified_bessel_i0", "modified_bessel_i1",
    "modified_bessel_k0", "modified_bessel_k1", "scaled_modified_bessel_k0", "scaled_modified_bessel_k1",
    "spherical_bessel_j0", "airy_ai", "chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v",
    "chebyshev_polynomial_w", "shifted_chebyshev_polynomial_t", "shifted_chebyshev_polynomial_u",
    "shifted_chebyshev_polynomial_v", "shifted_chebyshev_polynomial_w", "hermite_polynomial_h",
    "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p",
)  # fmt: skip
_REDUCTIONS = {"add": "sum", "multiply": "prod"}

EQUIVALENTS: dict[Any, Equivalent] = {
    torch.polar: _polar,
    torch.kron: _kron,
    Tensor.kron: _kron,
    torch.as_strided_scatter: _as_strided_scatter,
    Tensor.as_strided_scatter: _as_strided_scatter,
    torch.scatter: _scatter,
    Tensor.scatter: _scatter,
}
for _name, _take in (
    ("slice_scatter", _slice),
    ("select_scatter", torch.select),
    ("diagonal_scatter", torch.diagonal),
):
    for _owner in (torch, Tensor):
        EQUIVALENTS[getattr(_owner, _name)] = _write_of(_take)
for _name in _WITHOUT_DERIVATIVE:
    _function, _operator = (
        getattr(torch.special, _name),
        getattr(torch.ops.aten, f"special_{_name}"),
    )
    EQUIVALENTS[_function] = _by_rule(_operator, _function)
for _function, _operator in (
    (torch.heaviside, torch.ops.aten.heaviside),
    (Tensor.heaviside, torch.ops.aten.heaviside),
    (torch.geqrf, torch.ops.aten.geqrf.default),
    (Tensor.geqrf, torch.ops.aten.geqrf.default),
):
    EQUIVALENTS[_function] = _by_rule(_operator, _function)
EQUIVALENTS[torch.linalg.qr] = _qr
EQUIVALENTS[torch.vander] = _vander
EQUIVALENTS[torch.linalg.lstsq] = _lstsq
EQUIVALENTS[torch.nn.functional.pad] = _pad
EQUIVALENTS[torch.nn.functional.binary_cross_entropy_with_logits] = _logits_loss
EQUIVALENTS[torch.nn.functional.hinge_embedding_loss] = _hinge_loss
EQUIVALENTS[torch.nn.functional.scaled_dot_product_attention] = _attention
EQUIVALENTS[torch.nn.functional.multi_head_attention_forward] = _heads
EQUIVALENTS[torch.layer_norm] = EQUIVALENTS[torch.nn.functional.layer_norm] = _layer_norm
EQUIVALENTS[torch.nn.functional.batch_norm] = _batch_norm
if hasattr(torch.nn.functional, "linear_cross_entropy"):
    EQUIVALENTS[torch.nn.functional.linear_cross_entropy] = _linear_cross_entropy
