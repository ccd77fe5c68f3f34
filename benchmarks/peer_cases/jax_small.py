"""The programs of `small.py` in JAX, by name: each is made from the data that the one in PyTorch has captured."""

import jax
import jax.numpy as jnp
import numpy as np
from scalar_codes.numbers import Number
from scalar_codes.programs import SCALAR_CODES


def robertson(d):
    def f(y):
        a, b, c = y
        slow, fast = -0.04 * a + 1e4 * b * c, 3e7 * b * b
        return jnp.stack([slow, -slow - fast, fast])

    return f


def robot_arm(d):
    def f(q):
        pose = jnp.eye(4)
        for i in range(6):
            c, s = jnp.cos(q[i]), jnp.sin(q[i])
            ca, sa = (0.0, 1.0) if i % 2 else (1.0, 0.0)
            rows = [[c, -s * ca, s * sa, 0.3 * c], [s, c * ca, -c * sa, 0.3 * s]]
            rows += [[0.0, sa, ca, 0.1], [0.0, 0.0, 0.0, 1.0]]
            pose = pose @ jnp.stack([jnp.stack([jnp.asarray(e) for e in row]) for row in rows])
        return pose[:3, 3]

    return f


def rotated(d):
    def f(q):
        w, x, y, z = q / jnp.linalg.norm(q)
        rotation = jnp.zeros((3, 3))
        values = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        for i in range(3):
            for j in range(3):
                rotation = rotation.at[i, j].set(values[i][j])
        return rotation @ d["points"]

    return f


def stiffness(d):
    def f(k):
        matrix = jnp.zeros((13, 13))
        for i in range(12):
            matrix = matrix.at[i, i].add(k[i]).at[i + 1, i + 1].add(k[i])
            matrix = matrix.at[i, i + 1].add(-k[i]).at[i + 1, i].add(-k[i])
        return matrix

    return f


def pendulums(d):
    def f(x):
        q, p = x[:4], x[4:]
        for _ in range(20):
            p = p + 0.05 * (-jnp.sin(q) - 0.5 * (jnp.roll(q, 1) - q))
            q = q + 0.05 * p
        return jnp.concatenate([q, p])

    return f


def kalman_step(d):
    a, c = d["transition"], d["observation"]

    def f(state):
        predicted = jnp.tanh(a @ state)
        covariance = a @ a.T + jnp.diag(state**2)
        innovation = c @ covariance @ c.T + d["noise"]
        gain = jnp.linalg.solve(innovation, c @ covariance).T
        return predicted + gain @ (jnp.ones(2) - c @ predicted)

    return f


def exponential_fit(d):
    return lambda p: p[0] * jnp.exp(-p[1] * d["times"]) + p[2] - jnp.sin(d["times"])


def _scalar_code(name):
    def make(d):
        return lambda x: jnp.stack(
            [n.value for n in SCALAR_CODES[name].func(*(Number(jnp, v) for v in x))]
        )

    return make


def brusselator(d):
    def f(w):
        u, v = w
        around = [sum(jnp.roll(a, s, i) for s in (1, -1) for i in (0, 1)) - 4 * a for a in (u, v)]
        r, s = 1 + u * u * v - 4.4 * u, 3.4 * u - u * u * v
        return jnp.stack([r + 0.02 * around[0], s + 0.02 * around[1]])

    return f


def heat(d):
    def f(u):
        p = jnp.pad(u, 1)
        return p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2] - 4 * u + u**3

    return f


def heat_line(d):
    def f(u):
        p = jnp.pad(u, 1)
        return p[2:] + p[:-2] - 2 * u

    return f


def rosenbrock(d):
    return lambda x: ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def solved(d):
    def f(x):
        return jnp.linalg.solve(jnp.outer(x, x) + jnp.diag(x**2 + 1), jnp.sin(x))

    return f


def lennard_jones(d):
    def f(p):
        r2 = ((p[:, None] - p[None]) ** 2).sum(-1) + jnp.eye(len(p))
        i6 = 1 / r2**3
        return jnp.triu(4 * (i6**2 - i6), 1).sum()

    return f


def lennard_jones_pairs(d):
    i, j = np.triu_indices(13, 1)

    def f(x):
        r6 = ((x[i] - x[j]) ** 2).sum(-1) ** -3
        return (4 * (r6 * r6 - r6)).sum()

    return f


def logistic(d):
    def f(w):
        z = d["features"] @ w
        return (jnp.logaddexp(0.0, z) - d["labels"] * z).mean()

    return f


def mixture(d):
    x = d["samples"]

    def f(p):
        weights, means, scales = jax.nn.log_softmax(p[:3]), p[3:6], jnp.exp(p[6:])
        terms = weights - jnp.log(scales) - 0.5 * ((x[:, None] - means) / scales) ** 2
        return jax.nn.logsumexp(terms, -1).sum()

    return f


def warped(d):
    picture = jnp.asarray(d["picture"][0, 0])
    steps = ((2 * np.arange(24) + 1) / 24 - 1).astype(np.float32)
    grid = np.stack([*np.meshgrid(steps, steps), np.ones((24, 24), np.float32)], -1)

    def f(affine):
        x, y = ((grid @ row + 1) * 12 - 0.5 for row in affine)
        left, top = jnp.floor(x), jnp.floor(y)

        def at(i, j):
            inside = (i >= 0) & (i < 24) & (j >= 0) & (j < 24)
            rows, columns = (jnp.clip(k, 0, 23).astype(int) for k in (j, i))
            return jnp.where(inside, picture[rows, columns], 0.0)

        right, below = x - left, y - top
        upper = at(left, top) * (1 - right) + at(left + 1, top) * right
        lower = at(left, top + 1) * (1 - right) + at(left + 1, top + 1) * right
        return (upper * (1 - below) + lower * below)[None, None]

    return f


PROGRAMS = {
    f.__name__: f
    for f in (
        robertson, robot_arm, rotated, stiffness, pendulums, kalman_step, exponential_fit, brusselator, heat,
        heat_line, rosenbrock, solved, lennard_jones, lennard_jones_pairs, logistic, mixture, warped,
    )
} | {name: _scalar_code(name) for name in SCALAR_CODES}  # fmt: skip
