"""The smallest workloads again, at sizes at which memory matters, and long programs, whose tapes are large."""

from __future__ import annotations

import torch
from peer_cases.small import rotation_of
from peer_cases.workload import Draws, workload
from torch import Tensor

draw = Draws(2)


@workload("100 pendulums, 20 steps jacfwd", "jacfwd", draw.normal(200))
@workload("100 pendulums, 20 steps jacrev", "jacrev", draw.normal(200))
def many_pendulums(x: Tensor) -> Tensor:
    q, p = x.chunk(2)
    for _ in range(20):
        force = -torch.sin(q) - 0.5 * (torch.roll(q, 1) - q)
        p = p + 0.05 * force
        q = q + 0.05 * p
    return torch.cat([q, p])


SIZE = 40
TRANSITION, OBSERVATION = draw.normal(SIZE, SIZE) / SIZE**0.5, draw.normal(SIZE // 2, SIZE)


@workload("Kalman step, 40 unknowns", "jacfwd", draw.normal(SIZE))
def large_kalman_step(state: Tensor) -> Tensor:
    predicted = torch.tanh(TRANSITION @ state)
    covariance = TRANSITION @ TRANSITION.mT + torch.diag(state**2)
    noise = torch.eye(SIZE // 2, dtype=state.dtype)
    innovation = OBSERVATION @ covariance @ OBSERVATION.mT + noise
    gain = torch.linalg.solve(innovation, OBSERVATION @ covariance).mT
    return predicted + gain @ (1 - OBSERVATION @ predicted)


@workload("stiffness matrix of 60 springs", "jacfwd", draw.uniform(60))
def large_stiffness(k: Tensor) -> Tensor:
    matrix = k.new_zeros(len(k) + 1, len(k) + 1)
    for i in range(len(k)):
        matrix[i, i] += k[i]
        matrix[i + 1, i + 1] += k[i]
        matrix[i, i + 1] -= k[i]
        matrix[i + 1, i] -= k[i]
    return matrix


POINTS = draw.normal(3, 5000)


@workload("quaternion, 5000 points", "jacfwd", draw.normal(4))
def all_rotated(q: Tensor) -> Tensor:
    return rotation_of(q) @ POINTS


@workload("40 robot arms", "jacfwd", draw.normal(40, 6))
def robot_arms(q: Tensor) -> Tensor:
    pose = torch.eye(4, dtype=q.dtype).expand(len(q), 4, 4)
    zero, one = torch.zeros(len(q), dtype=q.dtype), torch.ones(len(q), dtype=q.dtype)
    for i in range(6):
        c, s = torch.cos(q[:, i]), torch.sin(q[:, i])
        ca, sa = (0.0, 1.0) if i % 2 else (1.0, 0.0)
        rows = [[c, -s * ca, s * sa, 0.3 * c], [s, c * ca, -c * sa, 0.3 * s]]
        rows += [[zero, one * sa, one * ca, one * 0.1], [zero, zero, zero, one]]
        pose = pose @ torch.stack([torch.stack(row, -1) for row in rows], -2)
    return pose[:, :3, 3]


WEIGHT = draw.normal(256, 256) / 16


@workload("RNN of 256 by hand, 50 steps", "jacfwd", draw.normal(256))
def large_recurrent(h: Tensor) -> Tensor:
    for _ in range(50):
        h = torch.tanh(WEIGHT @ h)
    return h


MATRIX = draw.normal(80, 80) / 9


@workload("5 linear solves of 80", "jacfwd", draw.normal(80))
def solves(x: Tensor) -> Tensor:
    for _ in range(5):
        x = torch.linalg.solve(MATRIX + torch.diag(x.cosh()), x.sin())
    return x


def _wave(p: Tensor, steps: int, size: int) -> Tensor:
    places = torch.linspace(0, 1, size, dtype=p.dtype)
    u = torch.stack([torch.sin((i + 1) * places) for i in range(len(p))], 1) @ p
    v = torch.zeros_like(u)
    for _ in range(steps):
        v = v + 0.1 * (torch.roll(u, 1) + torch.roll(u, -1) - 2 * u - torch.tanh(u))
        u = u + 0.1 * v
    return u


@workload("wave of 20 parameters, 100 steps", "jacfwd", draw.normal(20))
def wave_of_parameters(p: Tensor) -> Tensor:
    return _wave(p, 100, 1000)


@workload("wave of 20 parameters, 600 steps", "jacfwd", draw.normal(20))
def long_wave_of_parameters(p: Tensor) -> Tensor:
    return _wave(p, 600, 5000)
