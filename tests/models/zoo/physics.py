"""Networks that solve differential equations: residuals of up to the third derivative, and operators on fields."""

from __future__ import annotations

from collections.abc import Callable

import torch
from models.zoo.model import Model, Params, randn
from torch import Tensor

import pushforward as pf

Field = Callable[[Params, Tensor, Tensor], Tensor]


def weights(num_in: int = 2) -> Params:
    return {"w": randn(num_in, 4), "b": randn(4), "v": randn(4)}


def field(p: Params, t: Tensor, x: Tensor) -> Tensor:
    """The network's value at one time and place, or at several."""
    return (torch.stack([t, x], dim=-1) @ p["w"] + p["b"]).tanh() @ p["v"]


def slope(y: Tensor, x: Tensor) -> Tensor:
    """The derivative of each element of ``y`` by the same of ``x``, by autograd."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def leaves(points: Tensor) -> tuple[Tensor, Tensor]:
    points = points if points.requires_grad else points.detach().requires_grad_()
    t, x = points.unbind(-1)
    return t * 1, x * 1


def korteweg_de_vries() -> Model:
    """The residual of u_t + 6 u u_x + u_xxx = 0 at some points, each derivative by itself."""
    u_t = pf.grad(field, argnums=1)
    u_x = pf.grad(field, argnums=2)
    u_xxx = pf.grad(pf.grad(u_x, argnums=2), argnums=2)

    def residual(p: Params, point: Tensor) -> Tensor:
        t, x = point.unbind()
        return u_t(p, t, x) + 6 * field(p, t, x) * u_x(p, t, x) + u_xxx(p, t, x)

    def call(p: Params, points: Tensor) -> Tensor:
        return pf.vmap(residual, in_dims=(None, 0))(p, points)

    def plain(p: Params, points: Tensor) -> Tensor:
        t, x = leaves(points)
        u = field(p, t, x)
        first = slope(u, x)
        return slope(u, t) + 6 * u * first + slope(slope(first, x), x)

    return Model(call, weights(), randn(3, 2), plain=plain)


def third_derivatives_forward() -> Model:
    """The same residual by forward derivatives of forward derivatives."""

    def along(func: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: pf.jvp(func, (x,), (torch.ones_like(x),))[1]

    def call(p: Params, points: Tensor) -> Tensor:
        t, x = points.unbind(-1)

        def at(x: Tensor) -> Tensor:
            return field(p, t, x)

        u_t = along(lambda t: field(p, t, x))(t)
        return u_t + 6 * at(x) * along(at)(x) + along(along(along(at)))(x)

    return Model(call, weights(), randn(3, 2), plain=korteweg_de_vries().plain)


def poisson() -> Model:
    """The Laplacian by a Hessian, the divergence of a flux by a Jacobian, and a boundary condition."""

    def potential(p: Params, x: Tensor) -> Tensor:
        return (x @ p["w"] + p["b"]).sin() @ p["v"]

    def flux(p: Params, x: Tensor) -> Tensor:
        return (1 + potential(p, x) ** 2) * pf.grad(potential, argnums=1)(p, x)

    def at(p: Params, x: Tensor) -> Tensor:
        laplacian = pf.hessian(potential, argnums=1)(p, x).trace()
        divergence = pf.jacfwd(flux, argnums=1)(p, x).trace()
        return torch.stack([laplacian, divergence, potential(p, x / x.norm())])

    def call(p: Params, points: Tensor) -> Tensor:
        return pf.vmap(at, in_dims=(None, 0))(p, points)

    def plain(p: Params, points: Tensor) -> Tensor:
        points = points if points.requires_grad else points.detach().requires_grad_()
        axes = [axis * 1 for axis in points.unbind(-1)]
        u = potential(p, torch.stack(axes, dim=-1))
        first = [slope(u, axis) for axis in axes]
        laplacian = sum(slope(s, axis) for s, axis in zip(first, axes, strict=True))
        divergence = sum(slope((1 + u**2) * s, axis) for s, axis in zip(first, axes, strict=True))
        edge = potential(p, points / points.norm(dim=-1, keepdim=True))
        return torch.stack([laplacian, divergence, edge], dim=-1)

    return Model(call, weights(), randn(2, 2), plain=plain)


def wave_on_a_grid() -> Model:
    """A scheme of finite differences with periodic ends, its speed a field: a few steps of a wave."""
    params = {"speed": randn(6), "damping": randn(1)}

    def call(p: Params, x: Tensor) -> Tensor:
        before, now = x.unbind()
        for _ in range(4):
            curvature = now.roll(1) - 2 * now + now.roll(-1)
            change = (1 - 0.1 * p["damping"].sigmoid()) * (now - before)
            before, now = now, now + change + 0.2 * p["speed"].sigmoid() * curvature
        energy = (now - before).square().sum() + torch.gradient(now)[0].square().sum()
        return torch.cat([now, energy[None], torch.trapezoid(now.square())[None]])

    return Model(call, params, randn(2, 6))


MODELS = {
    "korteweg-de vries": korteweg_de_vries,
    "korteweg-de vries, forward": third_derivatives_forward,
    "poisson": poisson,
    "wave on a grid": wave_on_a_grid,
}
