"""Recurrent layers step by step: where they would leave one node for all steps, or have no rule for ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import decomposition

# These take an input, or data and sizes of batches; then the state, the parameters, and settings.
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _is_opaque(x: Tensor) -> bool:
    """Tell whether a cell or layer is one kernel, whose derivative has none, or has to do with ``vmap``."""
    return functorch_level() is not None or x.device.type != "cpu"


def _layer(name: str) -> Callable[..., Any]:
    whole, packed = (decomposition(name, overload) for overload in ("input", "data"))

    def stepped(*args: Any) -> Any:
        is_one_dnn = name == "lstm" and args[0].dtype is not torch.float64
        if not (is_one_dnn or _is_opaque(args[0])):
            return None
        if isinstance(args[1], Tensor) and not args[1].is_floating_point():
            return packed(*args)
        return whole(*args) if name != "lstm" else _as_packed(packed, *args)

    return stepped


def _as_packed(packed: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
    """Call an LSTM on sequences of one length as on packed ones: PyTorch gives others to oneDNN also step by step."""
    *others, is_batch_first = rest
    x = x.transpose(0, 1) if is_batch_first else x
    length, size = x.shape[:2]
    out, *states = packed(x.flatten(0, 1), torch.full((length,), size), *others)
    out = out.unflatten(0, (length, size))
    return out.transpose(0, 1) if is_batch_first else out, *states


def _gates(
    x: Tensor,
    h: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    b_x: Tensor | None = None,
    b_h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return F.linear(x, w_x, b_x), F.linear(h, w_h, b_h)


def _lstm_cell(x: Tensor, state: Sequence[Tensor], *parameters: Tensor) -> Any:
    """Math: i, f, o = σ(·), g = tanh(·), c' = f c + i g, h' = o tanh(c')."""
    if not _is_opaque(x):
        return None
    of_x, of_h = _gates(x, state[0], *parameters)
    i, f, g, o = (of_x + of_h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, h: Tensor, *parameters: Tensor) -> Any:
    """Math: r, z = σ(·), n = tanh(W x + b + r (U h + d)), h' = n + z (h - n)."""
    if not _is_opaque(x):
        return None
    of_x, of_h = _gates(x, h, *parameters)
    r_x, z_x, n_x = of_x.chunk(3, -1)
    r_h, z_h, n_h = of_h.chunk(3, -1)
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return n + (z_x + z_h).sigmoid() * (h - n)


def _rnn_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def stepped(x: Tensor, h: Tensor, *parameters: Tensor) -> Any:
        if not _is_opaque(x):
            return None
        of_x, of_h = _gates(x, h, *parameters)
        return activation(of_x + of_h)

    return stepped


CELLS: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
    torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
    torch.rnn_relu_cell: _rnn_cell(torch.relu),
}
STEPPED = {getattr(torch, name): _layer(name) for name in _LAYERS} | CELLS
