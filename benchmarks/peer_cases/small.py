"""Small codes with scalars, fields, and statistics, in PyTorch."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from scalar_codes.programs import SCALAR_CODES
from torch import Tensor

from peer_cases.workload import Draws, workload

draw = Draws(0)
f64: dict[str, Any] = {"dtype": torch.float64}


# ----- Kinetics, kinematics, integrators -----


@workload("Robertson kinetics", "jacfwd", torch.tensor([0.9, 2e-5, 0.1], **f64))
def robertson(y: Tensor) -> Tensor:
    a, b, c = y
    slow, fast = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return torch.stack([slow, -slow - fast, fast])


@workload("robot arm jacfwd", "jacfwd", draw.normal(6))
@workload("robot arm jacrev", "jacrev", draw.normal(6))
def robot_arm(q: Tensor) -> Tensor:
    pose = torch.eye(4, dtype=q.dtype)
    zero, one = torch.zeros((), dtype=q.dtype), torch.ones((), dtype=q.dtype)
    for i in range(6):
        c, s = torch.cos(q[i]), torch.sin(q[i])
        ca, sa = (0.0, 1.0) if i % 2 else (1.0, 0.0)
        rows = [[c, -s * ca, s * sa, 0.3 * c], [s, c * ca, -c * sa, 0.3 * s]]
        rows += [[zero, one * sa, one * ca, one * 0.1], [zero, zero, zero, one]]
        pose = pose @ torch.stack([torch.stack(row) for row in rows])
    return pose[:3, 3]


def rotation_of(q: Tensor) -> Tensor:
    w, x, y, z = q / q.norm()
    rotation = q.new_zeros(3, 3)
    rotation[0, 0], rotation[0, 1] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z)
    rotation[0, 2], rotation[1, 0] = 2 * (x * z + w * y), 2 * (x * y + w * z)
    rotation[1, 1], rotation[1, 2] = 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    rotation[2, 0], rotation[2, 1] = 2 * (x * z - w * y), 2 * (y * z + w * x)
    rotation[2, 2] = 1 - 2 * (x * x + y * y)
    return rotation


POINTS = draw.normal(3, 10)


@workload("quaternion, index writes", "jacfwd", draw.normal(4), data={"points": POINTS})
def rotated(q: Tensor) -> Tensor:
    return rotation_of(q) @ POINTS


@workload("stiffness matrix, index writes", "jacfwd", draw.uniform(12))
def stiffness(k: Tensor) -> Tensor:
    matrix = k.new_zeros(13, 13)
    for i in range(12):
        matrix[i, i] += k[i]
        matrix[i + 1, i + 1] += k[i]
        matrix[i, i + 1] -= k[i]
        matrix[i + 1, i] -= k[i]
    return matrix


@workload("pendulums, 20 steps jacfwd", "jacfwd", draw.normal(8))
@workload("pendulums, 20 steps jacrev", "jacrev", draw.normal(8))
def pendulums(x: Tensor) -> Tensor:
    q, p = x[:4], x[4:]
    for _ in range(20):
        force = -torch.sin(q) - 0.5 * (torch.roll(q, 1) - q)
        p = p + 0.05 * force
        q = q + 0.05 * p
    return torch.cat([q, p])


TRANSITION, OBSERVATION, NOISE = (
    draw.normal(4, 4) / 2,
    draw.normal(2, 4),
    torch.eye(2, **f64),
)


@workload(
    "Kalman step",
    "jacfwd",
    draw.normal(4),
    data={"transition": TRANSITION, "observation": OBSERVATION, "noise": NOISE},
)
def kalman_step(state: Tensor) -> Tensor:
    predicted = torch.tanh(TRANSITION @ state)
    covariance = TRANSITION @ TRANSITION.mT + torch.diag(state**2)
    innovation = OBSERVATION @ covariance @ OBSERVATION.mT + NOISE
    gain = torch.linalg.solve(innovation, OBSERVATION @ covariance).mT
    return predicted + gain @ (torch.ones(2, **f64) - OBSERVATION @ predicted)


TIMES = torch.linspace(0, 4, 200, **f64)


@workload(
    "exponential fit, residuals",
    "jacfwd",
    torch.tensor([2.0, 0.7, 0.3], **f64),
    data={"times": TIMES},
)
def exponential_fit(p: Tensor) -> Tensor:
    return p[0] * torch.exp(-p[1] * TIMES) + p[2] - torch.sin(TIMES)


# ----- Scalar codes of the literature: functions of numbers -----


def _of_numbers(name: str) -> None:
    code = SCALAR_CODES[name]

    @workload(name, "jacobian", torch.tensor(code.point, **f64))
    @functools.wraps(code.func)
    def function(x: Tensor) -> Tensor:
        return torch.stack(code.func(*x.unbind()))

    function.__name__ = name


for _name in SCALAR_CODES:
    _of_numbers(_name)


# ----- Fields -----


@workload("Brusselator 8×8, dense", "jacfwd", draw.uniform(2, 8, 8))
@workload("Brusselator 32×32, dense", "jacfwd", draw.uniform(2, 32, 32))
def brusselator(w: Tensor) -> Tensor:
    u, v = w
    around = [sum(torch.roll(a, s, d) for s in (1, -1) for d in (0, 1)) - 4 * a for a in (u, v)]
    r, s = 1 + u * u * v - 4.4 * u, 3.4 * u - u * u * v
    return torch.stack([r + 0.02 * around[0], s + 0.02 * around[1]])


@workload("heat 16×16, pad and slices", "jacfwd", draw.uniform(16, 16))
def heat(u: Tensor) -> Tensor:
    p = F.pad(u, (1, 1, 1, 1))
    return p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2] - 4 * u + u**3


@workload("heat, 200 points", "jacfwd", draw.uniform(200))
def heat_line(u: Tensor) -> Tensor:
    p = F.pad(u, (1, 1))
    return p[2:] + p[:-2] - 2 * u


@workload("Rosenbrock, 200 variables", "hessian", draw.uniform(200))
def rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


@workload("linear solve", "jacfwd", draw.normal(8))
def solved(x: Tensor) -> Tensor:
    matrix = torch.outer(x, x) + torch.diag(x**2 + 1)
    return torch.linalg.solve(matrix, torch.sin(x))


ATOMS = 2 * draw.normal(13, 3)


@workload("Lennard-Jones, 13 atoms hessian", "hessian", ATOMS)
@workload("Lennard-Jones, 13 atoms grad", "grad", ATOMS)
def lennard_jones(p: Tensor) -> Tensor:
    r2 = ((p[:, None] - p[None]) ** 2).sum(-1) + torch.eye(len(p), dtype=p.dtype)
    i6 = 1 / r2**3
    return torch.triu(4 * (i6**2 - i6), 1).sum()


@workload("Lennard-Jones by pairs hessian", "hessian", 3 * draw.uniform(13, 3))
def lennard_jones_pairs(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(13, 13, 1)
    r6 = (x[i] - x[j]).square().sum(-1) ** -3
    return (4 * (r6 * r6 - r6)).sum()


# ----- Statistics -----

FEATURES, LABELS = draw.normal(200, 50), draw.uniform(200).round()


@workload(
    "logistic regression",
    "hessian",
    draw.normal(50),
    data={"features": FEATURES, "labels": LABELS},
)
def logistic(w: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(FEATURES @ w, LABELS)


SAMPLES = draw.normal(100)


@workload("mixture likelihood", "hessian", draw.normal(9), data={"samples": SAMPLES})
def mixture(p: Tensor) -> Tensor:
    weights, means, scales = p[:3].log_softmax(0), p[3:6], p[6:].exp()
    return torch.logsumexp(
        weights - scales.log() - 0.5 * ((SAMPLES[:, None] - means) / scales) ** 2, -1
    ).sum()


PICTURE = draw.uniform(1, 1, 24, 24, dtype=torch.float32)


@workload(
    "image warp by grid_sample",
    "jacfwd",
    torch.tensor([[1.0, 0.1, 0.0], [-0.1, 1.0, 0.1]]),
    data={"picture": PICTURE},
)
def warped(affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine[None], (1, 1, 24, 24), align_corners=False)
    return F.grid_sample(PICTURE, grid, align_corners=False)
