"""Small programs that solvers differentiate thousands of times, in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Problem(NamedTuple):
    """A function at a point, and what is wanted of it."""

    transform: str  # of torch.func, pushforward and JAX alike
    function: Callable[[Tensor], Tensor]
    x: Tensor
    is_batched: bool = False


def robertson(y: Tensor) -> Tensor:
    """Stiff kinetics of three species."""
    a, b, c = y.unbind()
    slow, fast = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return torch.stack([slow, -slow - fast, fast])


def robot_arm(q: Tensor) -> Tensor:
    """Position of the hand, from six angles."""
    pose = torch.eye(4, dtype=q.dtype)
    zero, one = torch.zeros((), dtype=q.dtype), torch.ones((), dtype=q.dtype)
    for i in range(6):
        c, s = torch.cos(q[i]), torch.sin(q[i])
        ca, sa = (0.0, 1.0) if i % 2 else (1.0, 0.0)
        rows = [[c, -s * ca, s * sa, 0.3 * c], [s, c * ca, -c * sa, 0.3 * s]]
        rows += [[zero, one * sa, one * ca, one * 0.1], [zero, zero, zero, one]]
        pose = pose @ torch.stack([torch.stack(row) for row in rows])
    return pose[:3, 3]


def pendulums(x: Tensor) -> Tensor:
    """Four coupled pendulums, 20 steps."""
    q, p = x[:4], x[4:]
    for _ in range(20):
        p = p + 0.05 * (-torch.sin(q) - 0.5 * (torch.roll(q, 1) - q))
        q = q + 0.05 * p
    return torch.cat([q, p])


def brusselator(w: Tensor) -> Tensor:
    """Reaction and diffusion on a periodic 8 x 8 grid."""
    u, v = w[0], w[1]
    around = [sum(torch.roll(a, s, d) for s in (1, -1) for d in (0, 1)) - 4 * a for a in (u, v)]
    r, s = 1 + u * u * v - 4.4 * u, 3.4 * u - u * u * v
    return torch.stack([r + 0.02 * around[0], s + 0.02 * around[1]])


def lennard_jones(x: Tensor) -> Tensor:
    """Energy of 13 atoms."""
    i, j = torch.triu_indices(13, 13, 1)
    r6 = (x[i] - x[j]).square().sum(-1) ** -3
    return (4 * (r6 * r6 - r6)).sum()


def _net(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


NET, FIELD = _net(64, 128, 128, 10), _net(2, 32, 32, 1)
U, V = torch.linspace(-1, 1, 32 * 32).sin().reshape(32, 32), torch.linspace(0, 1, 32)


def recurrent(h: Tensor) -> Tensor:
    """The state of a recurrent net after 50 steps."""
    for _ in range(50):
        h = torch.tanh(U @ h / 4 + V)
    return h


def problems() -> dict[str, Problem]:
    """Return all, by name."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    single: dict[str, Any] = {"dtype": torch.float32}
    return {
        "robertson jacfwd": Problem("jacfwd", robertson, rand(3)),
        "robot arm jacfwd": Problem("jacfwd", robot_arm, rand(6)),
        "robot arm jacrev": Problem("jacrev", robot_arm, rand(6)),
        "pendulums jacfwd": Problem("jacfwd", pendulums, rand(8)),
        "brusselator 8x8 jacfwd": Problem("jacfwd", brusselator, rand(2, 8, 8)),
        "13 atoms hessian": Problem("hessian", lennard_jones, 3 * rand(13, 3)),
        "MLP 64-128-128-10 jacrev": Problem("jacrev", NET, rand(64, **single)),
        "MLP 64-128-128-10 jacfwd": Problem("jacfwd", NET, rand(64, **single)),
        "PINN vmap(hessian), 64 points": Problem(
            "hessian", lambda x: FIELD(x)[0], rand(64, 2, **single), True
        ),
        "RNN 50 steps jacfwd": Problem("jacfwd", recurrent, rand(32, **single)),
    }
