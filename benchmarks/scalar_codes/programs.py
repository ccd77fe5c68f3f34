"""The programs, each a function of numbers (tensors without axes), and what is published on them.

Written so that every operation of the published formulations is one operation here, what is computed twice there
included: the graphs are the same, and multiplications can be compared. `SCALAR_CODES` has them with their counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # interpreters without PyTorch run them, too, on numbers of their own
    from torch import Tensor

    Numbers = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class ScalarCode:
    """A program, a point, and multiplications.

    Attributes:
        func: Takes numbers and gives a tuple of numbers.
        point: Where it is differentiated.
        forward: Multiplications of forward mode, as published with Graphax and AlphaGrad.
        reverse: Likewise of reverse mode.
        markowitz: Likewise of their Markowitz order.
        learned: The best order that AlphaGrad's reinforcement learning found.
        aim: What we hold ourselves to.
    """

    func: Callable[..., Numbers]
    point: tuple[float, ...]
    forward: int
    reverse: int
    markowitz: int
    learned: int
    aim: int


GAMMA = 0.5  # as published


def _pressure(density: Tensor, momentum: Tensor, energy: Tensor) -> Tensor:
    return (GAMMA - 1.0) * (energy - 0.5 * momentum**2 / density)


def _flux(
    density: Tensor, momentum: Tensor, energy: Tensor, pressure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the flux of the Euler equations in one dimension."""
    velocity = momentum / density
    return momentum, pressure + momentum * velocity, velocity * (pressure + energy)


def roe_flux(l0: Tensor, l1: Tensor, l2: Tensor, r0: Tensor, r1: Tensor, r2: Tensor) -> Numbers:
    """Return Roe's flux between two states (density, momentum, energy) of a gas in one dimension.

    References:
        Roe, Approximate Riemann solvers, parameter vectors, and difference schemes (1981).
    """
    density_step = r0 - l0
    mean_density = (l0 * r0).sqrt()
    weight = l0.sqrt() + r0.sqrt()
    velocity_l, pressure_l = l1 / l0, _pressure(l0, l1, l2)
    enthalpy_l = (l2 + pressure_l) / l0
    velocity_r, pressure_r = r1 / r0, _pressure(r0, r1, r2)
    enthalpy_r = (r2 + pressure_r) / r0
    pressure_step = pressure_r - pressure_l
    velocity_step = velocity_r - velocity_l

    def mean(left: Tensor, right: Tensor) -> Tensor:
        return (l0.sqrt() * left + r0.sqrt() * right) / weight

    u, h = mean(velocity_l, velocity_r), mean(enthalpy_l, enthalpy_r)
    u_squared = u**2
    a_squared = (GAMMA - 1.0) * (h - 0.5 * u_squared)
    a = a_squared.sqrt()
    faster, first, second = (u + a).abs(), u.abs(), u.abs()
    impedance = a * mean_density
    c0 = (density_step - pressure_step / a_squared) * first
    c1 = (velocity_step + pressure_step / impedance) * faster
    c2 = (velocity_step - pressure_step / impedance) * second
    flux_l, flux_r = _flux(l0, l1, l2, pressure_l), _flux(r0, r1, r2, pressure_r)
    c = 0.5 * mean_density / a
    jumps = (
        c0 + c * c1 - c * c2,
        c0 * u + c * c1 * (u + a) - c * c2 * (u - a),
        c0 * 0.5 * u_squared + c * c1 * (h + u * a) - c * c2 * (h - u * a),
    )
    sums = [left + right for left, right in zip(flux_l, flux_r, strict=True)]
    return tuple(0.5 * (total - jump) for total, jump in zip(sums, jumps, strict=True))


def robot_arm(t1: Tensor, t2: Tensor, t3: Tensor, t4: Tensor, t5: Tensor, t6: Tensor) -> Numbers:
    """Return position and Tait-Bryan angles of the tool of an arm with six joints, by the joints' angles.

    The sixth joint turns the tool and moves nothing. Lengths are in millimetres.
    """
    a1, a2, a3 = 175.0, 890.0, 50.0
    d1, d4, d6 = 575.0, 1035.0, 185.0
    c1, c2, c4, c5, c6 = (t.cos() for t in (t1, t2, t4, t5, t6))
    s1, s2, s4, s5, s6 = (t.sin() for t in (t1, t2, t4, t5, t6))
    c23 = t2.cos() * t3.cos() - t2.sin() * t3.sin()
    s23 = t2.cos() * t3.sin() + t2.sin() * t3.cos()

    ax = s5 * (c1 * c23 * c4 + s1 * s4) + c1 * s23 * c5
    ay = s5 * (s1 * c23 * c4 - c1 * s4) + s1 * s23 * c5
    az = s23 * c4 * s5 - c23 * c5
    nz = c6 * (c23 * s5 + s23 * c4 * c5) - s23 * s4 * s6
    oz = -s6 * (c23 * s5 + s23 * c4 * c5) - s23 * s4 * c6
    angles = (ay.atan2(ax), (1.0 - az**2).sqrt().atan2(az), oz.atan2(-nz))

    px = d6 * (s5 * (c1 * c23 * c4 + s1 * s4) + c1 * s23 * c5)
    px = px + c1 * (a1 + a2 * c2 + a3 * c23 + d4 * s23)
    py = d6 * (s5 * (s1 * c23 * c4 + c1 * s4) + s1 * s23 * c5)
    py = py + s1 * (a1 + a2 * c2 + a3 * c23 + d4 * s23)
    pz = a2 * s2 + d1 + a3 * s23 - d4 * c23 + d6 * (s23 * c4 * s5 - c23 * c5)
    return px, py, pz, *angles


def heart_dipole(*x: Tensor) -> Numbers:
    """Return the residuals of the human heart dipole, eight equations of MINPACK-2, all data 1.

    References:
        Averick, Carter, Moré and Xue, The MINPACK-2 test problem collection (1992), section 2.7.
    """
    a, b, c, d, t, u, v, w = x
    square_tv, square_uw = t**2 - v**2, u**2 - w**2
    cubic_t, cubic_v = t * (t**2 - 3 * v**2), v * (v**2 - 3 * t**2)
    cubic_u, cubic_w = u * (u**2 - 3 * w**2), w * (w**2 - 3 * u**2)
    return (
        a + b - 1.0,
        c + d - 1.0,
        t * a + u * b - v * c - w * d - 1.0,
        v * a + w * b + t * c + u * d - 1.0,
        a * square_tv - 2 * c * t * v + b * square_uw - 2 * d * u * w - 1.0,
        c * square_tv - 2 * a * t * v + d * square_uw - 2 * b * u * w - 1.0,
        a * cubic_t + c * cubic_v + b * cubic_u + d * cubic_w - 1.0,
        c * cubic_t - a * cubic_v + d * cubic_u - b * cubic_w - 1.0,
    )


def propane_combustion(*x: Tensor) -> Numbers:
    """Return the residuals of the combustion of propane in air, eleven equations of MINPACK-2.

    References:
        Averick, Carter, Moré and Xue, The MINPACK-2 test problem collection (1992), section 2.6.
    """
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11 = x
    pressure, ratio = 40.0, 10.0  # of the mixture, in atmospheres; of air to fuel
    root = (x11 / pressure).rsqrt()
    return (
        x1 + x4 - 3.0,
        2 * x1 + x2 + x4 + x7 + x8 + x9 + 2 * x10 - ratio,
        2 * x2 + 2 * x5 + x6 + x7 - 8.0,
        2 * x3 + x9 - 4 * ratio,
        x2 * x4 - x1 * x5,
        (x2 * x4).sqrt() - x1.sqrt() * root * x6,
        (x1 * x2).sqrt() - x4.sqrt() * x7 * root,
        x1 - x4 * x8 * pressure / x11,
        x1 * x3.sqrt() - x4 * x9 * root,
        x1**2 - x4**2 * x10 * pressure / x11,
        x11 - x1 - x2 - x3 - x4 - x5 - x6 - x7 - x8 - x9 - x10,
    )


SCALAR_CODES = {
    "RoeFlux_1d": ScalarCode(
        roe_flux, (1.0, 0.6, -3.0, 1.4, 0.5, -4.0), 620, 364, 407, 320, aim=295
    ),
    "RobotArm_6DOF": ScalarCode(
        robot_arm, (0.3, -0.5, 0.7, 0.4, -0.6, 0.2), 397, 301, 288, 231, aim=221
    ),
    "HumanHeartDipole": ScalarCode(
        heart_dipole, (0.3, 0.7, -0.4, 1.4, 0.9, -1.1, 0.5, 1.3), 240, 172, 194, 148, aim=148
    ),
    "PropaneCombustion": ScalarCode(
        propane_combustion,
        (0.9, 1.2, 8.0, 1.7, 0.4, 0.6, 1.1, 0.5, 2.2, 0.3, 14.0),
        151, 90, 111, 88, aim=88,
    ),
}  # fmt: skip
