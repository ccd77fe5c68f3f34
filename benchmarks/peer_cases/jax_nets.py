"""The programs of `nets.py` in JAX, by name: each is made from the data that the one in PyTorch has captured."""

import jax
import jax.numpy as jnp


def dense(d, x, prefix=""):
    """Apply linear layers with hyperbolic tangents between them."""
    numbers = sorted({int(k[len(prefix) :].split(".")[0]) for k in d if k.startswith(prefix)})
    for n in numbers:
        x = linear(d, f"{prefix}{n}", x)
        x = x if n == numbers[-1] else jnp.tanh(x)
    return x


def linear(d, name, x):
    """Apply a linear layer."""
    return x @ d[f"{name}.weight"].T + d[f"{name}.bias"]


def layer_norm(d, name, x):
    """Apply a LayerNorm."""
    centred = x - x.mean(-1, keepdims=True)
    # Not rsqrt, with which the jitted Jacobian of a block by its parameters is wrong (JAX 0.10.2, CPU).
    scale = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / scale * d[f"{name}.weight"] + d[f"{name}.bias"]


def conv(d, name, x, padding=0):
    """Apply a convolution of the axes behind the first two."""
    weight = d[f"{name}.weight"]
    around = [(padding, padding)] * (x.ndim - 2)
    y = jax.lax.conv_general_dilated(x, weight, (1,) * (x.ndim - 2), around)
    bias = d.get(f"{name}.bias")
    return y if bias is None else y + bias.reshape((-1,) + (1,) * (x.ndim - 2))


def pool(x, start, operation):
    """Reduce windows of 2 × 2."""
    return jax.lax.reduce_window(x, start, operation, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def cross_entropy(logits, labels):
    """Return the mean of the negative log-likelihoods."""
    found = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(found, labels[:, None], 1).mean()


def net(d):
    return lambda x: dense(d, x, "net.")


def net_squared(d):
    return lambda x: (dense(d, x, "net.") ** 2).sum()


def net_of_batch(d):
    return lambda x: dense(d, x, "net.")[:, 0]


def outputs(d):
    return lambda parameters: dense(parameters, d["rows"])


def sample_loss(d):
    return lambda parameters, x, y: cross_entropy(dense(parameters, x[None]), y[None])


def field(d):
    return lambda x: dense(d, x, "net.")[0]


def field_by_parameters(d):
    return lambda parameters, x: dense(parameters, x)[0]


def rnn(d):
    wi, wh = d["cell.weight_ih"], d["cell.weight_hh"]

    def f(h):
        for x in d["xs"]:
            h = jnp.tanh(wi @ x + d["cell.bias_ih"] + wh @ h + d["cell.bias_hh"])
        return h

    return f


def recurrent(d):
    def f(h):
        for _ in range(50):
            h = jnp.tanh(d["u"] @ h / 4 + d["v"])
        return h

    return f


def gru(d):
    def f(h):
        for x in d["xs"][:10]:
            i = jnp.split(d["cell.weight_ih"] @ x + d["cell.bias_ih"], 3)
            g = jnp.split(d["cell.weight_hh"] @ h + d["cell.bias_hh"], 3)
            reset, update = jax.nn.sigmoid(i[0] + g[0]), jax.nn.sigmoid(i[1] + g[1])
            new = jnp.tanh(i[2] + reset * g[2])
            h = (1 - update) * new + update * h
        return h

    return f


def convolved(d, x, prefix=""):
    """Apply the convolutional net."""
    x = jax.nn.relu(conv(d, f"{prefix}0", x))
    x = jax.nn.relu(conv(d, f"{prefix}3", pool(x, -jnp.inf, jax.lax.max)))
    return linear(d, f"{prefix}6", x.reshape(1, -1))[0]


def conv_net(d):
    return lambda x: convolved(d, x, "net.")


def conv_by_parameters(d):
    return lambda parameters, x: convolved(parameters, x[None])


def lenet_loss(d):
    def f(parameters):
        x = jax.nn.relu(conv(parameters, "0", d["images"], 2))
        x = jax.nn.relu(conv(parameters, "3", pool(x, 0.0, jax.lax.add) / 4))
        x = (pool(x, 0.0, jax.lax.add) / 4).reshape(8, -1)
        for name in ("7", "9"):
            x = jax.nn.relu(linear(parameters, name, x))
        return cross_entropy(linear(parameters, "11", x), d["digits"])

    return f


def conv_chain(d):
    def f(x):
        h = jnp.tanh(conv(d, "net.0", x[None, None], 2))
        h = jnp.tanh(conv(d, "net.2", h, 1))
        return conv(d, "net.4", h, 1)[0]

    return f


def conv_kernel(d):
    return lambda x: conv(d, "net", x[None])[0]


def resnet_block(d):
    def norm(name, x):
        mean, var, weight, bias = (
            d[f"net.{name}.{n}"][:, None, None]
            for n in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias

    def f(x):
        h = jax.nn.relu(norm("norm1", conv(d, "net.conv1", x[None], 1)))
        h = norm("norm2", conv(d, "net.conv2", h, 1))
        return jax.nn.relu(h + x).mean((0, 2, 3))

    return f


def attention(d):
    def f(x):
        q, k, v = jnp.split(linear(d, "qkv", layer_norm(d, "norm", x)), 3, -1)
        return (x + jax.nn.softmax(q @ k.T / 32**0.5) @ v).mean(0)

    return f


def by_temperature(d):
    def f(t):
        q, k, v = jnp.split(linear(d, "qkv", layer_norm(d, "norm", d["tokens"])), 3, -1)
        return jax.nn.softmax(q @ k.T * t) @ v

    return f


def plain_attention(d):
    return lambda x: jax.nn.softmax(x @ x.T / 8**0.5) @ x


def transformer_block(d):
    def f(x):
        found = linear(d, "block.qkv", layer_norm(d, "block.norm1", x))
        q, k, v = (a.reshape(8, 4, 8).swapaxes(0, 1) for a in jnp.split(found, 3, -1))
        a = jax.nn.softmax(q @ k.swapaxes(1, 2) / 8**0.5) @ v
        x = x + linear(d, "block.out", a.swapaxes(0, 1).reshape(8, 32))
        h = jax.nn.gelu(linear(d, "block.up", layer_norm(d, "block.norm2", x)), approximate=False)
        return (x + linear(d, "block.down", h)).mean(0)

    return f


def block_by_parameters(d):
    def f(p):
        x = d["samples"]
        found = linear(p, "qkv", layer_norm(p, "norm1", x))
        q, k, v = (a.reshape(16, 8, 4, 8).swapaxes(1, 2) for a in jnp.split(found, 3, -1))
        a = jax.nn.softmax(q @ k.swapaxes(2, 3) / 8**0.5) @ v
        x = x + linear(p, "out", a.swapaxes(1, 2).reshape(16, 8, 32))
        h = jax.nn.gelu(linear(p, "up", layer_norm(p, "norm2", x)), approximate=False)
        return (x + linear(p, "down", h)).mean(1)[:, :3]

    return f


PROGRAMS = {
    f.__name__: f
    for f in (
        net, net_squared, net_of_batch, outputs, sample_loss, field, field_by_parameters, rnn, recurrent, gru,
        conv_net, lenet_loss, conv_chain, conv_kernel, resnet_block, attention, by_temperature, plain_attention,
        transformer_block, block_by_parameters, conv_by_parameters,
    )
} | {"small_net": net, "sample_net": net, "wave": field}  # fmt: skip
