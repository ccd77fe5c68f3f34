"""Networks, in PyTorch: their parameters are frozen, as other libraries know no flag that asks for more."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from peer_cases.workload import Draws, workload

f32: dict[str, Any] = {"dtype": torch.float32}
draw = Draws(1)


def normal(*shape: int) -> Tensor:
    return draw.normal(*shape, **f32)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


with torch.random.fork_rng():
    torch.manual_seed(0)
    NET, SMALL, FIELD, BATCH = (
        mlp(64, 128, 128, 10),
        mlp(8, 16, 16, 3),
        mlp(2, 32, 32, 1),
        mlp(4, 100, 100, 100, 1),
    )
    SAMPLE, WAVE = mlp(3, 64, 5), mlp(5, 64, 64, 1)
    CELL, GRU = nn.RNNCell(4, 16).requires_grad_(False), nn.GRUCell(4, 16).requires_grad_(False)
    CONV = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 10),
    ).requires_grad_(False)  # fmt: skip
    LENET = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).requires_grad_(False)  # fmt: skip
    CHAIN = nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv1d(8, 4, 3, padding=1), nn.Tanh(),
        nn.Conv1d(4, 2, 3, padding=1),
    ).requires_grad_(False)  # fmt: skip
    KERNEL = nn.Conv2d(3, 2, 5).requires_grad_(False)
    NORM, QKV = nn.LayerNorm(32).requires_grad_(False), nn.Linear(32, 96).requires_grad_(False)
    BLOCK = nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(32), "qkv": nn.Linear(32, 96), "out": nn.Linear(32, 32),
            "norm2": nn.LayerNorm(32), "up": nn.Linear(32, 64), "down": nn.Linear(64, 32),
        }
    ).requires_grad_(False)  # fmt: skip
    RESIDUAL = nn.ModuleDict(
        {
            "conv1": nn.Conv2d(8, 8, 3, padding=1, bias=False), "norm1": nn.BatchNorm2d(8),
            "conv2": nn.Conv2d(8, 8, 3, padding=1, bias=False), "norm2": nn.BatchNorm2d(8),
        }
    ).requires_grad_(False).eval()  # fmt: skip


# ----- Dense -----


@workload("MLP 64-128-128-10 jacfwd", "jacfwd", normal(64), data={"net": NET})
@workload("MLP 64-128-128-10 jacrev", "jacrev", normal(64), data={"net": NET})
@workload("MLP 64-128-128-10 jacobian", "jacobian", normal(64), data={"net": NET})
@workload("MLP jvp", "jvp", normal(64), normal(64), data={"net": NET})
@workload("MLP vjp", "vjp", normal(64), normal(10), data={"net": NET})
@workload("MLP, linearized, 10 pushes", "pushes", normal(64), normal(10, 64), data={"net": NET})
def net(x: Tensor) -> Tensor:
    return NET(x)


@workload("MLP Hessian times vector", "hvp", normal(64), normal(64), data={"net": NET})
def net_squared(x: Tensor) -> Tensor:
    return NET(x).square().sum()


@workload("MLP of a batch, 100×4", "jacrev", normal(100, 4), data={"net": BATCH})
def net_of_batch(x: Tensor) -> Tensor:
    return BATCH(x)[:, 0]


ROWS = normal(16, 8)


@workload("NTK features", "jacrev", parameters_of(SMALL), data={"rows": ROWS})
def outputs(parameters: dict[str, Tensor]) -> Tensor:
    return functional_call(SMALL, parameters, (ROWS,))


@workload(
    "per-sample gradients",
    "grad",
    parameters_of(SMALL),
    normal(32, 8),
    torch.arange(32) % 3,
    batch=(None, 0, 0),
)
def sample_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(SMALL, parameters, (x[None],)), y[None])


@workload(
    "per-sample Jacobians 8-16-16-3", "jacrev", normal(32, 8), data={"net": SMALL}, batch=(0,)
)
def small_net(x: Tensor) -> Tensor:
    return SMALL(x)


@workload("per-sample Jacobians 3-64-5", "jacrev", normal(128, 3), data={"net": SAMPLE}, batch=(0,))
def sample_net(x: Tensor) -> Tensor:
    return SAMPLE(x)


# ----- Physics-informed nets -----


@workload("PINN Hessians, 64 points", "hessian", normal(64, 2), data={"net": FIELD}, batch=(0,))
def field(x: Tensor) -> Tensor:
    return FIELD(x)[0]


@workload("PINN Laplacians 5-64-64-1", "laplacians", normal(64, 5), data={"net": WAVE})
def wave(x: Tensor) -> Tensor:
    return WAVE(x)[0]


@workload("PINN residuals, Gauss-Newton", "residuals", parameters_of(FIELD), normal(64, 2))
def field_by_parameters(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(FIELD, parameters, (x,))[0]


# ----- Recurrent -----

SEQUENCE = normal(50, 4)
U, V = torch.linspace(-1, 1, 32 * 32).sin().reshape(32, 32), torch.linspace(0, 1, 32)


@workload("RNN cell of 16, 50 steps", "jacfwd", normal(16), data={"cell": CELL, "xs": SEQUENCE})
def rnn(h: Tensor) -> Tensor:
    for x in SEQUENCE:
        h = CELL(x, h)
    return h


@workload("RNN of 32 by hand, 50 steps", "jacfwd", normal(32), data={"u": U, "v": V})
def recurrent(h: Tensor) -> Tensor:
    for _ in range(50):
        h = torch.tanh(U @ h / 4 + V)
    return h


@workload("GRU, 10 steps", "jacrev", normal(16), data={"cell": GRU, "xs": SEQUENCE})
def gru(h: Tensor) -> Tensor:
    for x in SEQUENCE[:10]:
        h = GRU(x, h)
    return h


# ----- Convolutional -----


@workload("convolutional net", "jacrev", normal(1, 1, 16, 16), data={"net": CONV})
def conv_net(x: Tensor) -> Tensor:
    return CONV(x)[0]


IMAGES, DIGITS = normal(8, 1, 28, 28), torch.arange(8)


@workload(
    "LeNet, loss by parameters",
    "grad",
    parameters_of(LENET),
    data={"images": IMAGES, "digits": DIGITS},
)
def lenet_loss(parameters: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(functional_call(LENET, parameters, (IMAGES,)), DIGITS)


@workload("1-D convolutions 5-3-3, 200 points", "jacrev", normal(200), data={"net": CHAIN})
def conv_chain(x: Tensor) -> Tensor:
    return CHAIN(x[None, None])[0]


@workload("one 5×5 convolution, 3×28×28", "jacrev", normal(3, 28, 28), data={"net": KERNEL})
def conv_kernel(x: Tensor) -> Tensor:
    return KERNEL(x)


@workload("ResNet block, 8×8×8", "jacrev", normal(8, 8, 8), data={"net": RESIDUAL})
def resnet_block(x: Tensor) -> Tensor:
    h = F.relu(RESIDUAL["norm1"](RESIDUAL["conv1"](x[None])))
    h = RESIDUAL["norm2"](RESIDUAL["conv2"](h))
    return F.relu(h + x).mean((0, 2, 3))


# ----- Attention -----


@workload("attention block", "jacrev", normal(16, 32), data={"norm": NORM, "qkv": QKV})
def attention(x: Tensor) -> Tensor:
    q, k, v = QKV(NORM(x)).chunk(3, -1)
    return (x + torch.softmax(q @ k.mT / 32**0.5, -1) @ v).mean(0)


TOKENS = normal(16, 32)


@workload(
    "attention temperature",
    "jacfwd",
    torch.tensor(0.2),
    data={"norm": NORM, "qkv": QKV, "tokens": TOKENS},
)
def by_temperature(t: Tensor) -> Tensor:
    q, k, v = QKV(NORM(TOKENS)).chunk(3, -1)
    return torch.softmax(q @ k.mT * t, -1) @ v


@workload("attention 16×8, all tokens", "jacrev", normal(16, 8))
def plain_attention(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.mT / 8**0.5, -1) @ x


@workload("transformer block, 4 heads", "jacrev", normal(8, 32), data={"block": BLOCK})
def transformer_block(x: Tensor) -> Tensor:
    q, k, v = (
        a.reshape(8, 4, 8).transpose(0, 1) for a in BLOCK["qkv"](BLOCK["norm1"](x)).chunk(3, -1)
    )
    a = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(8, 32)
    x = x + BLOCK["out"](a)
    return (x + BLOCK["down"](F.gelu(BLOCK["up"](BLOCK["norm2"](x))))).mean(0)


# ----- By parameters, for each of a few samples -----

SAMPLES = normal(16, 8, 32)


@workload(
    "transformer block by parameters, 16 samples",
    "jacrev",
    parameters_of(BLOCK),
    data={"samples": SAMPLES},
)
def block_by_parameters(parameters: dict[str, Tensor]) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (32,), parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    x = SAMPLES
    q, k, v = (
        a.reshape(16, 8, 4, 8).transpose(1, 2) for a in linear("qkv", norm("norm1", x)).chunk(3, -1)
    )
    a = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    x = x + linear("out", a.transpose(1, 2).reshape(16, 8, 32))
    return (x + linear("down", F.gelu(linear("up", norm("norm2", x))))).mean(1)[:, :3]


@workload(
    "convolutional net by parameters, per sample",
    "jacrev",
    parameters_of(CONV),
    normal(16, 1, 16, 16),
    batch=(None, 0),
)
def conv_by_parameters(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(CONV, parameters, (x[None],))[0]
