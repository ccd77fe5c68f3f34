"""The same programs in JAX, jitted; run by an interpreter that has JAX: prints a line of JSON."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)


def robertson(y):
    a, b, c = y
    slow, fast = -0.04 * a + 1e4 * b * c, 3e7 * b * b
    return jnp.stack([slow, -slow - fast, fast])


def robot_arm(q):
    pose = jnp.eye(4)
    for i in range(6):
        c, s = jnp.cos(q[i]), jnp.sin(q[i])
        ca, sa = (0.0, 1.0) if i % 2 else (1.0, 0.0)
        rows = [[c, -s * ca, s * sa, 0.3 * c], [s, c * ca, -c * sa, 0.3 * s]]
        rows += [[0.0, sa, ca, 0.1], [0.0, 0.0, 0.0, 1.0]]
        pose = pose @ jnp.stack([jnp.stack([jnp.asarray(e) for e in row]) for row in rows])
    return pose[:3, 3]


def pendulums(x):
    q, p = x[:4], x[4:]
    for _ in range(20):
        p = p + 0.05 * (-jnp.sin(q) - 0.5 * (jnp.roll(q, 1) - q))
        q = q + 0.05 * p
    return jnp.concatenate([q, p])


def brusselator(w):
    u, v = w[0], w[1]
    around = [sum(jnp.roll(a, s, d) for s in (1, -1) for d in (0, 1)) - 4 * a for a in (u, v)]
    r, s = 1 + u * u * v - 4.4 * u, 3.4 * u - u * u * v
    return jnp.stack([r + 0.02 * around[0], s + 0.02 * around[1]])


def lennard_jones(x):
    i, j = np.triu_indices(13, 1)
    r6 = ((x[i] - x[j]) ** 2).sum(-1) ** -3
    return (4 * (r6 * r6 - r6)).sum()


def main():
    """Time each problem of the file of inputs that is given."""
    data = np.load(sys.argv[1], allow_pickle=False)

    def net(prefix):
        layers = []
        while f"{prefix}{len(layers)}w" in data:
            n = len(layers)
            layers.append((data[f"{prefix}{n}w"], data[f"{prefix}{n}b"]))

        def apply(x):
            for number, (w, b) in enumerate(layers):
                x = w @ x + b
                x = x if number == len(layers) - 1 else jnp.tanh(x)
            return x

        return apply

    def recurrent(h):
        for _ in range(50):
            h = jnp.tanh(data["U"] @ h / np.float32(4) + data["V"])
        return h

    field = net("field")
    functions = {
        "robertson": robertson,
        "robot arm": robot_arm,
        "pendulums": pendulums,
        "brusselator": brusselator,
        "13 atoms": lennard_jones,
        "MLP": net("net"),
        "PINN": lambda x: field(x)[0],
        "RNN": recurrent,
    }
    found = {}
    for name in json.loads(sys.argv[2]):
        function = next(f for key, f in functions.items() if name.startswith(key))
        transform = next(t for t in ("jacfwd", "jacrev", "hessian") if t in name)
        derivative = getattr(jax, transform)(function)
        if "vmap" in name:
            derivative = jax.vmap(derivative)
        x = jnp.asarray(data["x " + name])
        start = time.perf_counter()
        jitted = jax.jit(derivative)
        result = jitted(x).block_until_ready()
        compiling = time.perf_counter() - start
        count = max(1, int(2e-3 / timed(jitted, x, 5)))
        times = [timed(jitted, x, count) for _ in range(50)]
        found[name] = [compiling, sorted(times)[len(times) // 2], float(jnp.abs(result).sum())]
    print(json.dumps(found))


def timed(jitted, x, count):
    start = time.perf_counter()
    for _ in range(count):
        jitted(x).block_until_ready()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
