"""Several networks at once: stacked modules, and networks that are trained inside a function."""

from __future__ import annotations

import copy

import torch
from models.zoo.model import Function, Model, Params, randn
from torch import Tensor, nn

import pushforward as pf

SIZE = 3


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def stacked_modules() -> Model:
    """Networks with statistics of their own, called by one ``vmap``: mean, spread, and disagreement."""
    nets = [network().eval() for _ in range(SIZE)]
    for net in nets:
        net[2].running_mean.copy_(randn(3))
    params, buffers = torch.func.stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def typed(x: Tensor) -> Params:
        return {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in buffers.items()}

    def summary(outputs: Tensor) -> Tensor:
        return torch.cat([outputs.mean(0), outputs.std(0), outputs.softmax(-1).log().mean(0)])

    def call(p: Params, x: Tensor) -> Tensor:
        def one(params: Params, buffers: Params) -> Tensor:
            return torch.func.functional_call(base, (params, buffers), (x,))

        return summary(torch.func.vmap(one)(p, typed(x)))

    def plain(p: Params, x: Tensor) -> Tensor:
        state = p | typed(x)
        each = [{k: v[i] for k, v in state.items()} for i in range(SIZE)]
        return summary(torch.stack([torch.func.functional_call(base, s, (x,)) for s in each]))

    return Model(call, {k: p.detach() for k, p in params.items()}, randn(2, 2), plain=plain)


def weights() -> Params:
    return {"w": randn(2, 3), "b": randn(3), "v": randn(3, 1)}


def regress(p: Params, x: Tensor) -> Tensor:
    return (x @ p["w"] + p["b"]).tanh() @ p["v"]


def loss(p: Params, x: Tensor) -> Tensor:
    return (regress(p, x)[..., 0] - x.sin().sum(-1)).square().mean()


def meta_learning() -> Model:
    """Two steps down the gradient of a loss, of one size for each parameter, and then the loss."""

    def steps(gradient: Function) -> Function:
        def call(p: Params, x: Tensor) -> Tensor:
            rates, inner = p["rates"].exp(), {k: v for k, v in p.items() if k != "rates"}
            for _ in range(2):
                slopes = gradient(inner, x)
                inner = {
                    k: v - 0.1 * rate * slopes[k]
                    for (k, v), rate in zip(inner.items(), rates, strict=True)
                }
            return torch.stack([loss(inner, x), regress(inner, x.flip(-1)).sum()])

        return call

    def by_autograd(p: Params, x: Tensor) -> Params:
        p = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in p.items()}
        slopes = torch.autograd.grad(loss(p, x), list(p.values()), create_graph=True)
        return dict(zip(p, slopes, strict=True))

    params = weights() | {"rates": randn(3)}
    return Model(steps(pf.grad(loss)), params, randn(3, 2), plain=steps(by_autograd))


def tangent_kernel() -> Model:
    """The products of a network's gradients at pairs of points, each by a Jacobian per sample."""

    def call(p: Params, x: Tensor) -> Tensor:
        jac = pf.vmap(pf.jacrev(regress), in_dims=(None, 0))(p, x)
        flat = torch.cat([j.flatten(1) for j in jac.values()], dim=1)
        return flat @ flat.mT

    def plain(p: Params, x: Tensor) -> Tensor:
        p = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in p.items()}
        rows = [
            torch.autograd.grad(regress(p, row).sum(), list(p.values()), create_graph=True)
            for row in x
        ]
        flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        return flat @ flat.mT

    return Model(call, weights(), randn(3, 2), plain=plain)


MODELS = {
    "ensemble": stacked_modules,
    "meta-learning": meta_learning,
    "tangent kernel": tangent_kernel,
}
