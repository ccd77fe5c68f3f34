"""Recurrent layers: of every kind, precision and setting, also under vmap and to second order."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import pushforward as pf

LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}
CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "rnn": nn.RNNCell,
    "relu": lambda *args, **kwargs: nn.RNNCell(*args, nonlinearity="relu", **kwargs),
}
SETTINGS = {
    "plain": {},
    "deep": {"num_layers": 2},
    "both ways": {"bidirectional": True, "num_layers": 2},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "projected": {"proj_size": 2},
}
CASES = [(n, s) for n in LAYERS for s in SETTINGS if s != "projected" or n == "lstm"]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_jacobians_of_layers(name, setting, dtype):
    torch.manual_seed(0)
    layer = LAYERS[name](3, 4, **SETTINGS[setting]).to(dtype).requires_grad_(False)
    x = torch.randn(5, 2, 3, dtype=dtype)

    def f(x):
        return layer(x)[0]

    expected = torch.autograd.functional.jacobian(f, x)
    for transform in (pf.jacfwd, pf.jacrev):
        close(transform(f)(x), expected)
    close(pf.vmap(pf.jacrev(f))(torch.stack([x, x + 1]))[0], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_sequences(name):
    layer = LAYERS[name](3, 4).requires_grad_(False)
    x = torch.randn(5, 2, 3)

    def f(x):
        return layer(pack_padded_sequence(x, [5, 3]))[0].data

    close(pf.jacrev(f)(x), torch.autograd.functional.jacobian(f, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CELLS)
def test_jacobians_of_cells(name, dtype):
    cell = CELLS[name](3, 4).to(dtype).requires_grad_(False)
    x = torch.randn(2, 3, dtype=dtype)

    def f(x):
        found = cell(x)
        return found[0] * found[1] if isinstance(found, tuple) else found

    expected = torch.autograd.functional.jacobian(f, x)
    for transform in (pf.jacfwd, pf.jacrev):
        close(transform(f)(x), expected)
        close(pf.vmap(transform(f))(torch.stack([x, x]))[1], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_in_single_precision(name):
    layer = LAYERS[name](3, 4).requires_grad_(False)
    x = torch.randn(5, 3)

    def f(x):
        return layer(x)[0].sin().sum()

    got = pf.hessian(f)(x)
    layer.double()
    close(got.double(), torch.autograd.functional.hessian(f, x.double()))


@pytest.mark.parametrize("name", LAYERS)
def test_the_value_is_that_of_a_plain_call(name):
    layer, x = LAYERS[name](3, 4).requires_grad_(False), torch.randn(5, 3)
    close(pf.value_and_jacobian(lambda x: layer(x)[0])(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", ["layer", "cell"])
@pytest.mark.parametrize("name", LAYERS)
def test_later_calls_and_second_derivatives_in_both_precisions(name, kind):
    modules = LAYERS if kind == "layer" else CELLS
    for dtype in (torch.float32, torch.float64):
        module = modules[name](3, 4).to(dtype).requires_grad_(False)

        def f(x, module=module):
            found = module(x)
            return found[0].sin() if isinstance(found, tuple) else found.sin()

        for number in range(5):
            x = torch.randn(2, 3, dtype=dtype) + number
            expected = torch.autograd.functional.jacobian(f, x)
            close(pf.jacrev(f)(x), expected)
            close(pf.jacfwd(f)(x), expected)
        close(pf.vmap(pf.jacrev(f))(torch.stack([x, x]))[1], expected)
        module.double()
        expected = torch.autograd.functional.hessian(lambda x, f=f: f(x).sum(), x.double())
        module.to(dtype)
        close(pf.hessian(lambda x, f=f: f(x).sum())(x).double(), expected)
