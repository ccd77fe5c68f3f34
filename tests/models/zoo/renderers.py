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


def spatial_transformer() -> Model:
    """An image seen through an affine map that it chooses itself, smoothly; its edges are mirrored.

    References:
        Jaderberg, Simonyan, Zisserman and Kavukcuoglu, Spatial Transformer Networks (2015), equation 1.
    """
    params = {
        "w": randn(6, 12, scale=0.1),
        "b": torch.tensor([0.7, 0.1, 0.2, -0.2, 0.8, 0.1]).double(),
    }

    def call(p: Params, x: Tensor) -> Tensor:
        theta = (F.linear(x.flatten(1).tanh(), p["w"]) + p["b"]).unflatten(-1, (2, 3))
        grid = F.affine_grid(theta, [x.shape[0], 1, 3, 3], align_corners=False)
        bilinear = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        corners = F.affine_grid(theta, [x.shape[0], 1, 2, 2], align_corners=True)
        zeros = F.grid_sample(x, corners, padding_mode="zeros", align_corners=True)
        return torch.cat([bilinear.flatten(1), zeros.flatten(1)], dim=-1)

    return Model(call, params, randn(1, 1, 3, 4))


def bicubic_warp() -> Model:
    """An image moved along a flow, by cubic interpolation; and samples of a volume."""
    params = {
        "flow": randn(1, 3, 2, 2, scale=0.3),
        "volume": randn(1, 1, 3, 3, 2),
        "ray": randn(4, 3, scale=0.4),
    }

    def call(p: Params, x: Tensor) -> Tensor:
        warped = F.grid_sample(
            x, p["flow"].tanh(), mode="bicubic", padding_mode="border", align_corners=False
        )
        rays = (p["ray"] * x.mean()).tanh()[None, :, None, None]
        samples = F.grid_sample(p["volume"], rays, align_corners=True)
        return torch.cat([warped.flatten(), samples.flatten()])

    return Model(call, params, randn(1, 1, 4, 3), order=1)


def radiance_field() -> Model:
    """Rays through planes of features, which a small network turns to colour and density.

    References:
        Mildenhall et al., NeRF (2020), equations 3 and 4; Chan et al., EG3D (2022), section 4.1.
    """
    params = {"planes": randn(3, 2, 3, 3), "w": randn(8, 5, scale=0.5), "v": randn(5, 3)}

    def call(p: Params, x: Tensor) -> Tensor:
        origin, direction = x.chunk(2, dim=-1)
        depth = torch.linspace(0.1, 1.0, 3, dtype=x.dtype)
        points = (origin[:, None] + depth[:, None] * F.normalize(direction, dim=-1)[:, None]).tanh()
        pairs = torch.stack([points[..., [0, 1]], points[..., [1, 2]], points[..., [2, 0]]])
        features = F.grid_sample(p["planes"], 0.9 * pairs, align_corners=True).sum(0)
        encoded = torch.cat([(2 * points).sin(), (2 * points).cos()], dim=-1)
        hidden = F.softplus(torch.cat([features.permute(1, 2, 0), encoded], dim=-1) @ p["w"])
        density, color = (hidden @ p["v"]).split([1, 2], dim=-1)
        optical = F.softplus(density[..., 0]) * 0.45
        reach = torch.exp(-(optical.cumsum(-1) - optical))
        weight = reach * -torch.expm1(-optical)
        shade = (weight[..., None] * color.sigmoid()).sum(1)
        return torch.cat([shade.flatten(), (weight * depth).sum(-1)])

    return Model(call, params, randn(2, 6))


def rasterizer() -> Model:
    """A triangle whose edges are soft, drawn before a background; and its texture, turned by a rotation."""
    params = {"angles": randn(3), "color": randn(3, 2), "background": randn(2)}

    def call(p: Params, x: Tensor) -> Tensor:
        skew = torch.zeros(3, 3, dtype=x.dtype)
        skew[[2, 0, 1], [1, 2, 0]] = p["angles"]
        rotation = torch.linalg.matrix_exp(skew - skew.mT)
        corners = x @ rotation.mT
        flat = corners[:, :2] / (3 + corners[:, 2:])
        axis = torch.linspace(-0.5, 0.5, 3, dtype=x.dtype)
        pixels = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
        edge = flat.roll(-1, 0) - flat
        away = pixels[..., None, :] - flat
        areas = edge[:, 0] * away[..., 1] - edge[:, 1] * away[..., 0]
        inside = (8 * areas * areas.sum(-1, keepdim=True).sign().detach()).sigmoid().prod(-1)
        color = (areas / (areas.sum(-1, keepdim=True).abs() + 1)).tanh() @ p["color"]
        return torch.lerp(p["background"], color, inside[..., None])

    return Model(call, params, randn(3, 3))


MODELS = {
    "splatting renderer": splatting_renderer,
    "volume renderer": volume_renderer,
    "spatial transformer": spatial_transformer,
    "bicubic warp": bicubic_warp,
    "radiance field": radiance_field,
    "rasterizer": rasterizer,
}
