"""Normalizing flows: invertible maps with their log determinants."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, of_module, randn
from torch import Tensor, nn

import pushforward as pf


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


def real_nvp() -> Model:
    """Affine couplings of the other half each time, with scales of their own; the density of the points.

    References:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP (2017), equations 7 and 8.
    """
    params = {"scale": randn(4, scale=0.3), "shift": randn(4)}
    for layer in range(2):
        params |= {f"w{layer}": randn(4, 3), f"v{layer}": randn(3, 8, scale=0.4)}

    def call(p: Params, x: Tensor) -> Tensor:
        z, log_det = (x + p["shift"]) * p["scale"].exp(), p["scale"].sum().expand(x.shape[0])
        for layer in range(2):
            mask = torch.arange(4).remainder(2).eq(layer).to(x.dtype)
            raw, shift = ((z * mask @ p[f"w{layer}"]).tanh() @ p[f"v{layer}"]).chunk(2, dim=-1)
            log_scale = (1 - mask) * raw.tanh()
            z = mask * z + (1 - mask) * (z * log_scale.exp() + shift)
            log_det = log_det + log_scale.sum(-1)
        log_prob = -0.5 * (z.square().sum(-1) + 4 * math.log(2 * math.pi)) + log_det
        return torch.cat([z.flatten(), log_prob])

    return Model(call, params, randn(2, 4))


class MaskedLinear(nn.Linear):
    """A layer whose outputs depend on inputs of lower degree alone."""

    def __init__(self, degrees_in: list[int], degrees_out: list[int], is_strict: bool) -> None:
        super().__init__(len(degrees_in), len(degrees_out))
        before, after = torch.tensor(degrees_in), torch.tensor(degrees_out)[:, None]
        self.register_buffer("mask", (before < after if is_strict else before <= after).double())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class Autoregressive(nn.Module):
    """Inverse autoregressive: each variable is moved by those before it, one after the other, and back.

    References:
        Papamakarios, Pavlakou and Murray, Masked Autoregressive Flow (2017), equations 3 to 5.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs, hidden = [1, 2, 3], [1, 2, 1, 2]
        self.first = MaskedLinear(inputs, hidden, is_strict=False)
        self.second = MaskedLinear(hidden, inputs * 2, is_strict=True)

    def moved_by(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.second(F.silu(self.first(x))).chunk(2, dim=-1)
        return shift, log_scale.tanh()

    def forward(self, u: Tensor) -> Tensor:
        x = torch.zeros_like(u)
        for place in range(u.shape[-1]):
            shift, log_scale = self.moved_by(x)
            moved = u[..., place] * log_scale[..., place].exp() + shift[..., place]
            x = x.clone()
            x[..., place] = moved
        shift, log_scale = self.moved_by(x)
        back = (x - shift) * (-log_scale).exp()
        log_prob = -0.5 * back.square().sum(-1) - log_scale.sum(-1)
        return torch.cat([x.flatten(), back.flatten(), log_prob])


def autoregressive_flow() -> Model:
    return of_module(Autoregressive(), randn(2, 3))


def glow() -> Model:
    """A step on images: statistics from the data, mixed channels, an affine coupling.

    References:
        Kingma and Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions (2018), table 1.
    """
    params = {"mix": randn(4, 4), "w": randn(4, 2, 3, 3, scale=0.3), "b": randn(4)}

    def call(p: Params, x: Tensor) -> Tensor:
        y = F.pixel_unshuffle(x, 2)
        std, mean = torch.std_mean(y, dim=(0, 2, 3), keepdim=True)
        y = F.conv2d((y - mean) / std, p["mix"][..., None, None])
        kept, moved = y.chunk(2, dim=1)
        raw, shift = F.conv2d(kept, p["w"], p["b"], padding=1).split([2, 2], dim=1)
        scale = (raw + 2).sigmoid()
        num_pixels = y.shape[-1] * y.shape[-2]
        log_det = num_pixels * (torch.linalg.slogdet(p["mix"])[1] - std.log().sum())
        log_det = log_det + scale.log().sum((1, 2, 3))
        return torch.cat([kept.flatten(), ((moved + shift) * scale).flatten(), log_det])

    return Model(call, params, randn(1, 1, 4, 4))


def continuous_flow() -> Model:
    """Points moved along a field, by steps; the trace of its Jacobian, by rows and by a random vector."""
    params = {"w": randn(2, 3), "b": randn(3), "v": randn(3, 2)}
    probe = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])

    def field(p: Params, y: Tensor) -> Tensor:
        return (y @ p["w"] + p["b"]).tanh() @ p["v"]

    def flow(p: Params, y: Tensor, traces: Callable[[Params, Tensor], Tensor]) -> Tensor:
        log_dets = []
        for _ in range(2):
            log_dets.append(0.3 * traces(p, y))
            y = y + 0.3 * field(p, y)
        return torch.cat([y.flatten(), *log_dets])

    def ours(p: Params, y: Tensor) -> Tensor:
        exact = pf.vmap(pf.jacrev(field, argnums=1), in_dims=(None, 0))(p, y)
        vector = probe.to(y.dtype)
        _, pull = pf.vjp(lambda y: field(p, y), y)
        (guess,) = pull(vector)
        return torch.cat([exact.diagonal(dim1=1, dim2=2).sum(-1), (guess * vector).sum(-1)])

    def by_autograd(p: Params, y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        out, vector = field(p, y), probe.to(y.dtype)

        def pulled(cotangent: Tensor) -> Tensor:
            return torch.autograd.grad(out, y, cotangent, create_graph=True)[0]

        units = torch.eye(2, dtype=y.dtype)
        exact = sum(pulled(unit.expand_as(y))[:, i] for i, unit in enumerate(units))
        return torch.cat([exact, (pulled(vector) * vector).sum(-1)])

    return Model(
        lambda p, y: flow(p, y, ours),
        params,
        randn(2, 2),
        plain=lambda p, y: flow(p, y, by_autograd),
    )


MODELS = {
    "spline flow": spline_flow,
    "real nvp": real_nvp,
    "autoregressive flow": autoregressive_flow,
    "glow": glow,
    "continuous flow": continuous_flow,
}
