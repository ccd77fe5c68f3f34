"""Normalizing flows: invertible maps with their log determinants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, randn
from torch import Tensor


def spline_flow() -> Model:
    """A coupling layer of monotone rational-quadratic splines; the values and the log determinant.

    References:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows (2019), section 3.1, equations 4 and 5.
    """
    num_bins, bound = 4, 3.0
    params = {
        "w1": randn(2, 5),
        "b1": randn(5),
        "w2": randn(5, 2 * (3 * num_bins - 1), scale=0.4),
    }

    def knots(logits: Tensor) -> tuple[Tensor, Tensor]:
        widths = 2 * bound * (0.02 + (1 - 0.02 * num_bins) * logits.softmax(-1))
        right = widths.cumsum(-1) - bound
        return widths, F.pad(right, (1, 0), value=-bound)

    def call(p: Params, x: Tensor) -> Tensor:
        kept, moved = x.chunk(2, dim=-1)
        logits = ((kept @ p["w1"] + p["b1"]).tanh() @ p["w2"]).unflatten(-1, (2, -1))
        raw_w, raw_h, raw_d = logits.split([num_bins, num_bins, num_bins - 1], dim=-1)
        widths, lefts = knots(raw_w)
        heights, bottoms = knots(raw_h)
        slopes = F.pad(F.softplus(raw_d) + 1e-3, (1, 1), value=1.0)
        inside = moved.clamp(-bound + 1e-6, bound - 1e-6)
        place = torch.searchsorted(
            lefts[..., 1:-1].detach().contiguous(), inside.detach()[..., None]
        )

        def at(values: Tensor, offset: int = 0) -> Tensor:
            return values.gather(-1, place + offset).squeeze(-1)

        width, height = at(widths), at(heights)
        slope, low, high = height / width, at(slopes), at(slopes, 1)
        t = (inside - at(lefts)) / width
        blend = slope + (low + high - 2 * slope) * t * (1 - t)
        y = at(bottoms) + height * (slope * t**2 + low * t * (1 - t)) / blend
        rate = slope**2 * (high * t**2 + 2 * slope * t * (1 - t) + low * (1 - t) ** 2) / blend**2
        outside = moved.abs() >= bound
        y = torch.where(outside, moved, y)
        log_det = torch.where(outside, torch.zeros_like(rate), rate.log()).sum(-1)
        return torch.cat([kept.flatten(), y.flatten(), log_det.flatten()])

    x = randn(3, 4)
    x[0, 3] = 3.7  # one value beyond the last knot, where the map is the identity
    return Model(call, params, x)


MODELS = {
    "spline flow": spline_flow,
}
