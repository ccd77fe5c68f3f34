"""Making the missing direction of a linear function out of the other one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pushforward.linear.axes import Shape

LinearFunction = Callable[[Tensor], Tensor]


def per_seed(function: LinearFunction) -> LinearFunction:
    """Return ``function`` mapped over a leading axis of seeds: by ``vmap`` where it can be, else in a loop."""

    def mapped(seeds: Tensor) -> Tensor:
        if seeds.shape[0] == 1:
            return function(seeds[0]).unsqueeze(0)
        if seeds.shape[0] > 1:
            try:
                result: Tensor = torch.func.vmap(function, randomness="same")(seeds)
                return result
            except (RuntimeError, NotImplementedError, ValueError):
                return torch.stack([function(seed) for seed in seeds])
        like = function(seeds.new_zeros(seeds.shape[1:]))
        return like.new_zeros((0, *like.shape))

    return mapped


def transposed(function: LinearFunction, in_shape: Shape, like: Tensor) -> LinearFunction:
    """Return the adjoint of a linear ``function`` of a tensor of ``in_shape`` with the dtype of ``like``.

    By reverse-mode differentiation of the function where PyTorch can do that, else from its matrix.
    """

    def adjoint(cotangent: Tensor) -> Tensor:
        origin = torch.zeros(in_shape, dtype=like.dtype, device=like.device)
        try:
            pull = torch.func.vjp(function, origin)[1]
            result: Tensor = pull(cotangent)[0]
            return result
        except (RuntimeError, NotImplementedError):
            return _by_matrix(function, origin, cotangent)

    return adjoint


def _by_matrix(function: LinearFunction, origin: Tensor, cotangent: Tensor) -> Tensor:
    directions = [torch.eye(origin.numel(), dtype=origin.dtype, device=origin.device)]
    if origin.is_complex():
        directions.append(1j * directions[0])
    products = []
    for basis in directions:
        columns = [function(row.reshape(origin.shape)) for row in basis]
        inner = [torch.real(torch.sum(column.conj() * cotangent)) for column in columns]
        products.append(torch.stack(inner) if inner else origin.real.flatten())
    if origin.is_complex():
        return torch.complex(products[0], products[1]).reshape(origin.shape)
    return products[0].to(origin.dtype).reshape(origin.shape)
