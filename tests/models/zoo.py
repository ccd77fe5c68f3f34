"""Small float64 versions of models that people know, built from torch alone, with random weights.

Every builder returns a function of ``(params, x)``, its parameters by name, and an input. Sizes are the
smallest at which every layer still mixes something.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

F64 = torch.float64
Params = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Model:
    """A function of parameters and an input, and a point to differentiate it at."""

    call: Callable[[Params, Tensor], Tensor]
    params: Params
    x: Tensor


def of_module(net: nn.Module, x: Tensor) -> Model:
    """The function that a module computes, its parameters as an argument."""
    net = net.double()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    return Model(lambda p, x: torch.func.functional_call(net, p, (x,)), params, x)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64)


# ---- Images ----


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, **norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, **norm)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, **norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels, **norm),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


def resnet(**norm: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3, **norm),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        ResidualBlock(3, 3, 1, **norm),
        ResidualBlock(3, 4, 2, **norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def resnet_in_evaluation() -> Model:
    net = resnet().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(randn(module.num_features, scale=0.3))
            module.running_var.copy_(randn(module.num_features).exp())
    return of_module(net.eval(), randn(1, 2, 8, 8))


def resnet_in_training() -> Model:
    return of_module(resnet().train(), randn(2, 2, 8, 6))


def resnet_without_running_statistics() -> Model:
    return of_module(resnet(track_running_stats=False).train(), randn(2, 2, 8, 6))


class UNet(nn.Module):
    """Two levels: convolve, pool, convolve, transposed convolution, join the skip, convolve."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.SiLU())
        self.bottom = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU())
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.join = nn.Conv2d(6, 2, 3, padding=1, padding_mode="reflect")
        self.out = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        y = self.up(self.bottom(F.max_pool2d(skip, 2)))
        y = F.pad(y, (0, skip.shape[-1] - y.shape[-1], 0, skip.shape[-2] - y.shape[-2]))
        y = self.join(torch.cat([skip, y], dim=-3)).tanh()
        return F.interpolate(self.out(y), scale_factor=0.5, mode="bilinear")


def unet() -> Model:
    return of_module(UNet(), randn(1, 1, 7, 6))


# ---- Sequences ----


class Encoder(nn.Module):
    """Positions added, then layers of causal self-attention; the last one normalizes first."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(randn(3, 6, scale=0.3))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                6, 2, 8, dropout=0.1, activation=activation, batch_first=True, norm_first=norm_first
            )
            for activation, norm_first in (("relu", False), ("gelu", True))
        )
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[-2], dtype=x.dtype)
        x = x + self.positions
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.norm(x).mean(dim=-2)


def transformer_encoder() -> Model:
    return of_module(Encoder().eval(), randn(2, 3, 6))


class AttentionByHand(nn.Module):
    """One block written out: split heads, scaled scores, masked softmax, residual, normalize."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(-2, -3) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(2)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.norm(x + self.out((weights @ v).transpose(-2, -3).flatten(-2)))


def attention_by_hand() -> Model:
    return of_module(AttentionByHand(), randn(2, 3, 4))


class Recurrent(nn.Module):
    """A recurrent layer; the output sequence and the final states, side by side."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.net = kind(2, 3, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        sequence, state = self.net(x)
        states = state if isinstance(state, tuple) else (state,)
        return torch.cat([sequence.flatten(), *(s.flatten() for s in states)])


def lstm() -> Model:
    return of_module(Recurrent(nn.LSTM, num_layers=2, bidirectional=True), randn(2, 3, 2))


def gru() -> Model:
    return of_module(Recurrent(nn.GRU, num_layers=2), randn(2, 3, 2))


class LSTMByHand(nn.Module):
    """A cell in a loop, its states written into a preallocated sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2, 3)
        self.project = nn.Linear(2, 12)
        self.recur = nn.Linear(3, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 3)
        c = x.new_zeros(x.shape[0], 3)
        sequence = x.new_zeros(x.shape[0], x.shape[1], 3)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            i, f, g, o = (self.project(x[:, t]) + self.recur(h)).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            sequence[:, t] = h
        return sequence


def lstm_by_hand() -> Model:
    return of_module(LSTMByHand(), randn(2, 3, 2))


# ---- Graphs ----

SOURCE = torch.tensor([0, 1, 1, 2, 3, 3, 4, 0])
TARGET = torch.tensor([1, 0, 2, 1, 1, 4, 3, 3])
NUM_NODES = 5


def graph_convolution() -> Model:
    """Two layers, normalized by degrees; messages are gathered and added up by ``index_add``."""
    params = {
        "w1": randn(3, 4),
        "w2": randn(4, 2),
        "edge": randn(len(SOURCE), scale=0.5),
    }

    def call(p: Params, x: Tensor) -> Tensor:
        weight = p["edge"].exp()
        degree = torch.ones(NUM_NODES, dtype=F64).index_add(0, TARGET, weight)
        norm = weight * degree[SOURCE].rsqrt() * degree[TARGET].rsqrt()

        def propagate(h: Tensor) -> Tensor:
            return (h / degree[:, None]).index_add(0, TARGET, norm[:, None] * h[SOURCE])

        h = propagate(x @ p["w1"]).tanh()
        return propagate(h @ p["w2"])

    return Model(call, params, randn(NUM_NODES, 3))


def graph_attention() -> Model:
    """Attention over the incoming edges: scores by gather, softmax by scatter_reduce and scatter_add."""
    params = {"w": randn(3, 4), "a": randn(8)}

    def call(p: Params, x: Tensor) -> Tensor:
        h = x @ p["w"]
        pair = torch.cat([h.index_select(0, SOURCE), h.index_select(0, TARGET)], dim=1)
        score = F.leaky_relu(pair @ p["a"], 0.2)
        largest = score.new_full((NUM_NODES,), -1e3).scatter_reduce(0, TARGET, score, "amax")
        weight = (score - largest.gather(0, TARGET)).exp()
        total = score.new_zeros(NUM_NODES).scatter_add(0, TARGET, weight)
        alpha = weight / total[TARGET].clamp(min=1e-9)
        place = TARGET[:, None].expand(-1, 4)
        return h.new_zeros(NUM_NODES, 4).scatter_add(0, place, alpha[:, None] * h[SOURCE])

    return Model(call, params, randn(NUM_NODES, 3))


# ---- Filters, flows ----


def kalman_filter() -> Model:
    """Log likelihood and last state of a linear Gaussian model with 3 states, 2 observed, 4 steps."""
    params = {
        "transition": 0.8 * torch.eye(3, dtype=F64) + randn(3, 3, scale=0.1),
        "observe": randn(2, 3),
        "process": randn(3, 3, scale=0.3),
        "noise": randn(2, 2, scale=0.3),
    }

    def call(p: Params, observed: Tensor) -> Tensor:
        eye = torch.eye(3, dtype=F64)
        q = p["process"] @ p["process"].mT + 0.1 * eye
        r = p["noise"] @ p["noise"].mT + 0.2 * torch.eye(2, dtype=F64)
        a, h = p["transition"], p["observe"]
        mean, cov = observed.new_zeros(3), eye
        total = observed.new_zeros(())
        for y in observed:
            mean, cov = a @ mean, a @ cov @ a.mT + q
            innovation = y - h @ mean
            factor = torch.linalg.cholesky(h @ cov @ h.mT + r)
            gain = torch.cholesky_solve(h @ cov, factor).mT
            white = torch.linalg.solve_triangular(factor, innovation[:, None], upper=False)
            total = total - 0.5 * white.square().sum() - factor.diagonal().log().sum()
            mean = mean + gain @ innovation
            keep = eye - gain @ h
            cov = keep @ cov @ keep.mT + gain @ r @ gain.mT
        return torch.cat([total[None], mean, cov.flatten()])

    return Model(call, params, randn(4, 2))


def kalman_smoother_by_solve() -> Model:
    """The information form: one banded system for all states, by ``solve`` and ``slogdet``."""
    params = {
        "transition": 0.7 * torch.eye(2, dtype=F64) + randn(2, 2, scale=0.1),
        "log_q": randn(2),
    }

    def call(p: Params, observed: Tensor) -> Tensor:
        steps = observed.shape[0]
        precision = torch.zeros(steps, 2, steps, 2, dtype=F64)
        weight = p["log_q"].exp().diag()
        block = p["transition"].mT @ weight @ p["transition"]
        rows = []
        for t in range(steps):
            row = [torch.zeros(2, 2, dtype=F64)] * steps
            row[t] = torch.eye(2, dtype=F64) + weight + (block if t + 1 < steps else 0)
            if t > 0:
                row[t - 1] = -weight @ p["transition"]
            if t + 1 < steps:
                row[t + 1] = -p["transition"].mT @ weight
            rows.append(torch.cat(row, dim=1))
        precision = torch.cat(rows)
        states = torch.linalg.solve(precision, observed.flatten())
        sign, log_det = torch.linalg.slogdet(precision)
        return torch.cat([states, (sign * log_det)[None], torch.linalg.inv(precision)[0]])

    return Model(call, params, randn(3, 2))


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


# ---- Renderers, molecules ----


def splatting_renderer() -> Model:
    """Points add their colours to the four pixels around them, which are then normalized and sampled again."""
    height, width = 4, 5
    params = {"color": randn(6, 2), "opacity": randn(6)}

    def call(p: Params, x: Tensor) -> Tensor:
        position = 0.5 + x.sigmoid() * torch.tensor([height - 2.0, width - 2.0], dtype=F64)
        corner = position.detach().floor()
        part = position - corner
        row, column = corner.long().unbind(-1)
        weight = p["opacity"].sigmoid()
        paint = torch.zeros(height * width, 2, dtype=F64) + 0 * x.sum()
        mass = x.new_zeros(height, width)
        for i in (0, 1):
            for j in (0, 1):
                share = weight * (part[:, 0] if i else 1 - part[:, 0])
                share = share * (part[:, 1] if j else 1 - part[:, 1])
                pixel = (row + i) * width + column + j
                paint = paint.scatter_add(
                    0, pixel[:, None].expand(-1, 2), share[:, None] * p["color"]
                )
                mass = mass.index_put((row + i, column + j), share, accumulate=True)
        image = (paint / (mass.flatten()[:, None] + 0.1)).T.reshape(1, 2, height, width)
        grid = (position.flip(-1)[None, None] - 1.3) / 2
        sampled = F.grid_sample(image, grid, align_corners=False, padding_mode="border")
        return torch.cat([image.flatten(), sampled.flatten()])

    return Model(call, params, randn(6, 2))


def volume_renderer() -> Model:
    """Samples along rays, sorted by depth and composited by a running product of transparencies."""
    params = {"density": randn(4, 4, 4), "color": randn(4, 4, 4)}

    def call(p: Params, x: Tensor) -> Tensor:
        depth, order = (1 + x[:, 2:].tanh() * 0.5).cumsum(-1).roll(2, -1).sort(dim=-1)
        points = torch.stack([x[:, :1].expand_as(depth), x[:, 1:2].expand_as(depth), depth], dim=-1)
        scaled = (points.sigmoid() * 2.999).clamp(max=2.999)
        low = scaled.detach().floor().long()
        part = scaled - low
        density, color = x.new_zeros(depth.shape), x.new_zeros(depth.shape)
        for corner in range(8):
            bits = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
            share = torch.where(bits.bool(), part, 1 - part).prod(-1)
            i, j, k = (low + bits).unbind(-1)
            density = density + share * p["density"][i, j, k]
            color = color + share * torch.take(p["color"], (i * 4 + j) * 4 + k)
        spacing = torch.diff(depth, append=depth[:, -1:] + 1, dim=-1)
        alpha = 1 - torch.exp(-F.softplus(density) * spacing)
        clear = torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], -1).cumprod(-1)
        shade = (alpha * clear * color.sigmoid()).sum(-1)
        return torch.cat([shade, (alpha * clear * depth).sum(-1), order.to(F64).mean(-1) * shade])

    return Model(call, params, randn(3, 6))


FIRST, SECOND = torch.triu_indices(5, 5, offset=1)


def molecular_energy() -> Model:
    """Bonds, angles, one torsion, Lennard-Jones and screened charges of five atoms; energy and terms."""
    params = {
        "length": 1 + 0.1 * randn(4),
        "stiffness": randn(4).exp(),
        "charge": randn(5),
        "sigma": 0.8 + 0.1 * randn(5),
    }

    def call(p: Params, x: Tensor) -> Tensor:
        apart = x[FIRST] - x[SECOND]
        distance = torch.linalg.vector_norm(apart, dim=-1)
        sigma = 0.5 * (p["sigma"][FIRST] + p["sigma"][SECOND])
        ratio = (sigma / distance) ** 6
        dispersion = 0.1 * (ratio**2 - ratio)
        charge = p["charge"][FIRST] * p["charge"][SECOND] * torch.exp(-distance) / distance
        bond = x[1:] - x[:-1]
        stretch = 0.5 * p["stiffness"] * (bond.norm(dim=-1) - p["length"]) ** 2
        cosine = F.cosine_similarity(-bond[:-1], bond[1:], dim=-1)
        bend = (torch.acos(cosine.clamp(-0.999, 0.999)) - 1.9) ** 2
        n1 = torch.linalg.cross(bond[0], bond[1])
        n2 = torch.linalg.cross(bond[1], bond[2])
        torsion = torch.atan2(bond[1].norm() * (bond[0] @ n2), n1 @ n2)
        terms = [dispersion.sum(), charge.sum(), stretch.sum(), bend.sum(), 1 + (3 * torsion).cos()]
        return torch.stack([sum(terms), *terms])

    chain = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1.4, 0.9, 0], [2.4, 1, 0.5], [2.7, 1.9, 1]])
    return Model(call, params, chain.to(F64) + randn(5, 3, scale=0.1))


def symmetry_functions() -> Model:
    """Radial descriptors from ``cdist`` and ``pdist``, cut off smoothly, into a small network per atom."""
    params = {"centers": torch.linspace(0.5, 2, 3, dtype=F64), "w": randn(3, 4), "v": randn(4)}

    def call(p: Params, x: Tensor) -> Tensor:
        distance = torch.cdist(x, x.roll(1, 0))
        cutoff = torch.where(distance < 2.5, 0.5 * (1 + (torch.pi * distance / 2.5).cos()), 0.0)
        radial = (torch.exp(-((distance[..., None] - p["centers"]) ** 2)) * cutoff[..., None]).sum(
            1
        )
        energy = (radial @ p["w"]).tanh() @ p["v"]
        return torch.cat([energy, F.pdist(x).reciprocal().sum()[None]])

    return Model(call, params, randn(4, 3))


BUILDERS: dict[str, Callable[[], Model]] = {
    "resnet in evaluation": resnet_in_evaluation,
    "resnet in training": resnet_in_training,
    "resnet without running statistics": resnet_without_running_statistics,
    "u-net": unet,
    "transformer encoder": transformer_encoder,
    "attention by hand": attention_by_hand,
    "lstm": lstm,
    "gru": gru,
    "lstm by hand": lstm_by_hand,
    "graph convolution": graph_convolution,
    "graph attention": graph_attention,
    "kalman filter": kalman_filter,
    "kalman smoother by solve": kalman_smoother_by_solve,
    "spline flow": spline_flow,
    "splatting renderer": splatting_renderer,
    "volume renderer": volume_renderer,
    "molecular energy": molecular_energy,
    "symmetry functions": symmetry_functions,
}


def build(name: str) -> Model:
    """The model of that name; the same weights in every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return BUILDERS[name]()
