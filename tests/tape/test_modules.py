"""nn.Module: the layers of everyday networks, functional_call, parameters as variables."""

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import nn

from pushforward import jacfwd, jvp, linearize, vmap

F64 = torch.float64


class FirstOutput(nn.Module):
    """The sequence that a recurrent or attention layer returns first."""

    def __init__(self, net, self_attention=False, **kwargs):
        super().__init__()
        self.net, self.self_attention, self.kwargs = net, self_attention, kwargs

    def forward(self, x):
        arguments = (x, x, x) if self.self_attention else (x,)
        return self.net(*arguments, **self.kwargs)[0]


def attention(**kwargs):
    return FirstOutput(nn.MultiheadAttention(4, 2, batch_first=True), True, **kwargs)


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 3)),
    "relu and bias-free": (
        lambda: nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)),
        (3,),
    ),
    "activations": (
        lambda: nn.Sequential(nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU(), nn.LeakyReLU()),
        (2, 3),
    ),
    "bilinear": (lambda: _Twice(nn.Bilinear(3, 3, 2)), (2, 3)),
    "layer norm": (lambda: nn.LayerNorm(3), (2, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "instance norm": (lambda: nn.InstanceNorm1d(2), (2, 2, 5)),
    "batch norm in evaluation": (lambda: nn.BatchNorm1d(3).eval(), (2, 3)),
    "batch norm in training": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "convolution 1d": (lambda: nn.Conv1d(2, 3, 3, padding=1, stride=2), (1, 2, 5)),
    "convolution 2d": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        (1, 1, 6, 4),
    ),
    "convolution 3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 2, 3, 2)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 1, 2, stride=2), (1, 2, 2, 3)),
    "max pooling": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), (1, 1, 4, 6)),
    "lstm": (lambda: FirstOutput(nn.LSTM(3, 4, batch_first=True)), (1, 3, 3)),
    "bidirectional two-layer lstm": (
        lambda: FirstOutput(nn.LSTM(2, 3, num_layers=2, bidirectional=True)),
        (3, 1, 2),
    ),
    "gru": (lambda: FirstOutput(nn.GRU(3, 4)), (3, 1, 3)),
    "rnn": (lambda: FirstOutput(nn.RNN(3, 4)), (3, 1, 3)),
    "lstm cell": (lambda: FirstOutput(nn.LSTMCell(3, 4)), (2, 3)),
    "attention with weights": (lambda: attention(need_weights=True), (1, 3, 4)),
    "attention without weights": (lambda: attention(need_weights=False), (1, 3, 4)),
    "transformer encoder layer in evaluation": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval(),
        (1, 3, 4),
    ),
    "transformer encoder in evaluation": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu"),
            2,
            enable_nested_tensor=False,
        ).eval(),
        (1, 2, 4),
    ),
    "upsampling and padding": (
        lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Upsample(scale_factor=2, mode="bilinear")),
        (1, 1, 2, 3),
    ),
    "softmax and dropout in evaluation": (
        lambda: nn.Sequential(nn.Softmax(dim=-1), nn.Dropout(0.5).eval()),
        (2, 3),
    ),
}


class _Twice(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x, x)


def build(name):
    make, shape = MODULES[name]
    return make().double(), torch.randn(shape, dtype=F64)


@pytest.mark.parametrize("name", MODULES)
def test_jacobian_of_a_module_equals_central_differences(name):
    net, x = build(name)
    assert_close(jacfwd(net)(x), central_jacobian(net, x))


@pytest.mark.parametrize("name", MODULES)
def test_jacobian_of_a_module_with_frozen_parameters_is_the_same(name):
    net, x = build(name)
    expected = jacfwd(net)(x).detach()
    with torch.no_grad():
        assert_close(jacfwd(net)(x), expected)
    net.requires_grad_(False)
    jac = jacfwd(net)(x)
    assert not jac.requires_grad
    assert_close(jac, expected)


@pytest.mark.parametrize("name", MODULES)
def test_linearized_module_equals_its_jacobian(name):
    net, x = build(name)
    t = torch.randn_like(x)
    expected = (central_jacobian(net, x).flatten(-x.dim()) @ t.flatten()).detach()
    assert_close(linearize(net, x)[1](t), expected)
    assert_close(jvp(net, (x,), (t,))[1], expected)


@pytest.mark.parametrize("name", ["mlp", "layer norm", "batch norm in training", "gru", "lstm"])
def test_second_derivative_of_a_module_equals_central_differences(name):
    net, x = build(name)
    f = lambda x: (net(x) ** 2).sum()  # noqa: E731
    assert_close(jacfwd(jacfwd(f))(x), central_jacobian(jacfwd(f), x))


def test_parameters_as_a_dictionary_by_functional_call():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    params = {k: v.detach() for k, v in net.named_parameters()}
    x = torch.randn(5, 3, dtype=F64)
    jac = jacfwd(lambda p: torch.func.functional_call(net, p, (x,)))(params)
    assert set(jac) == set(params)
    for key, value in params.items():

        def f(v, key=key):
            return torch.func.functional_call(net, {**params, key: v}, (x,))

        assert_close(jac[key], central_jacobian(f, value))


def test_functional_call_itself_with_argnums_one():
    net = nn.Linear(3, 2).double()
    params = dict(net.named_parameters())
    x = torch.randn(3, dtype=F64)
    jac = jacfwd(torch.func.functional_call, argnums=1)(net, params, (x,))
    assert_close(jac["bias"], torch.eye(2, dtype=F64))
    assert_close(jac["weight"], torch.einsum("ij,k->ijk", torch.eye(2, dtype=F64), x))
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


def test_functional_call_leaves_the_module_as_it_was():
    net = nn.BatchNorm1d(3).double()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    jacfwd(lambda x: torch.func.functional_call(net, state, (x,)))(torch.randn(4, 3, dtype=F64))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert not torch.equal(state["running_mean"], before["running_mean"])


def test_an_ensemble_by_stack_module_state_and_vmap():
    nets = [nn.Linear(3, 2).double() for _ in range(4)]
    params, buffers = torch.func.stack_module_state(nets)
    x = torch.randn(3, dtype=F64)

    def f(p, b, x):
        return torch.func.functional_call(nets[0], (p, b), (x,))

    jac = vmap(jacfwd(f, argnums=2), in_dims=(0, 0, None))(params, buffers, x)
    assert_close(jac, torch.stack([net.weight for net in nets]))


def test_per_example_jacobians_equal_the_blocks_of_the_whole_one():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=F64)
    each = vmap(jacfwd(net))(x)
    whole = jacfwd(net)(x)
    for i in range(5):
        assert_close(each[i], central_jacobian(net, x[i]))
        for j in range(5):
            expected = each[i] if i == j else torch.zeros_like(each[i])
            assert_close(whole[i, :, j], expected)


def test_embedding_weights_are_differentiated():
    indices = torch.tensor([2, 0, 2])
    weight = torch.randn(4, 2, dtype=F64)
    f = lambda w: nn.functional.embedding(indices, w) ** 2  # noqa: E731
    assert_close(jacfwd(f)(weight), central_jacobian(f, weight))


def test_cross_entropy_of_a_network_has_the_gradient_of_autograd():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    x, target = torch.randn(2, 3, dtype=F64), torch.tensor([1, 4])
    f = lambda x: nn.functional.cross_entropy(net(x), target)  # noqa: E731
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf), leaf)
    assert_close(jacfwd(f)(x), expected)


def test_forward_hooks_see_values_and_may_change_the_output():
    net = nn.Linear(3, 2).double()
    seen = []

    def hook(module, args, output):
        seen.append(output.tolist())
        return output * 2

    net.register_forward_hook(hook)
    x = torch.randn(3, dtype=F64)
    assert_close(jacfwd(net)(x), 2 * net.weight)
    assert len(seen) == 1
