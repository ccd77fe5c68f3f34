"""Differentiable renderers: images from points, volumes and textures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, randn
from torch import Tensor


def splatting_renderer() -> Model:
    """Points add their colours to the four pixels around them, which are then normalized and sampled again."""
    height, width = 4, 5
    params = {"color": randn(6, 2), "opacity": randn(6)}

    def call(p: Params, x: Tensor) -> Tensor:
        position = 0.5 + x.sigmoid() * x.new_tensor([height - 2.0, width - 2.0])
        corner = position.detach().floor()
        part = position - corner
        row, column = corner.long().unbind(-1)
        weight = p["opacity"].sigmoid()
        paint = x.new_zeros(height * width, 2) + 0 * x.sum()
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
        return torch.cat(
            [shade, (alpha * clear * depth).sum(-1), order.to(x.dtype).mean(-1) * shade]
        )

    return Model(call, params, randn(3, 6))


MODELS = {
    "splatting renderer": splatting_renderer,
    "volume renderer": volume_renderer,
}
