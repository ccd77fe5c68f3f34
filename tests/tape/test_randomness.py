"""Random numbers inside the function: drawn once, as the plain call draws them, or refused."""

import pytest
import torch
from oracles import assert_close
from torch import nn
from torch.nn import functional

import pushforward as pf

pytestmark = pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")

F64 = torch.float64
X = torch.linspace(0.1, 0.9, 4, dtype=F64)
_ATTENTION = nn.MultiheadAttention(4, 2, dropout=0.5, dtype=F64)
_RECURRENT = nn.GRU(4, 4, num_layers=2, dropout=0.5, dtype=F64)


def _in_place(name, *args):
    return lambda x: getattr(torch.empty_like(x).fill_(0.5), name)(*args) * x.sin()


def _attention(x):
    q = torch.stack([x, 2 * x, x.sin()])[None]
    return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5).sum((0, 1))


DRAWING = {
    "rand": lambda x: x * torch.rand(4, dtype=F64),
    "randn_like": lambda x: x.sin() * torch.randn_like(x),
    "randint": lambda x: x * torch.randint(5, (4,)),
    "randperm": lambda x: x[torch.randperm(4)] * x,
    "normal": lambda x: x * torch.normal(0.0, 1.0, (4,), dtype=F64),
    "bernoulli": lambda x: x.sin() * torch.bernoulli(x.detach()),
    "multinomial": lambda x: x[torch.multinomial(x.detach(), 4)] * x,
    "poisson": lambda x: x * torch.poisson(torch.ones(4, dtype=F64)),
    "dropout": lambda x: functional.dropout(x.sin(), 0.5),
    "dropout in place": lambda x: functional.dropout(x.sin(), 0.5, inplace=True) * x,
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True).cumsum(0),
    "alpha_dropout": lambda x: functional.alpha_dropout(x * x, 0.5, training=True),
    "feature_dropout": lambda x: functional.dropout1d(x.view(1, 4, 1) ** 2).flatten(),
    "rrelu": lambda x: functional.rrelu(x - 0.5, training=True),
    "gumbel_softmax": lambda x: functional.gumbel_softmax(x * x),
    "attention": _attention,
    "an attention layer": lambda x: _ATTENTION(x[None] * x[:, None], x[None], x[None])[0].sum(0),
    "a recurrent layer": lambda x: _RECURRENT(x.expand(3, 4) * x[0])[0].sum(0),
    "normal_": _in_place("normal_"),
    "uniform_": _in_place("uniform_"),
    "exponential_": _in_place("exponential_"),
    "bernoulli_": _in_place("bernoulli_", 0.5),
    "random_": _in_place("random_", 5),
    "an initializer": lambda x: nn.init.trunc_normal_(torch.empty(4, dtype=F64)) * x,
    "a distribution": lambda x: torch.distributions.Normal(x, 1.0).rsample() * x,
    "svd_lowrank": lambda x: torch.svd_lowrank(torch.outer(x, x) + torch.eye(4), 2, 1)[1] * x[:2],
    "under no_grad": lambda x: x * _noise(),
}


@torch.no_grad()
def _noise():
    return torch.rand(4, dtype=F64)


def _rows(f, x):
    return torch.autograd.functional.jacobian(f, x)


TRANSFORMS = {
    "jacfwd": (lambda f, x: pf.jacfwd(f, randomness="same")(x), _rows),
    "different": (lambda f, x: pf.jacfwd(f, randomness="different")(x), _rows),
    "in chunks": (lambda f, x: pf.jacfwd(f, randomness="same", chunk_size=2)(x), _rows),
    "jacrev": (lambda f, x: pf.jacrev(f)(x), _rows),
    "jacobian": (lambda f, x: pf.jacobian(f, randomness="same")(x), _rows),
    "jvp": (lambda f, x: pf.jvp(f, (x,), (x,))[1], lambda f, x: _rows(f, x) @ x),
    "linearize": (lambda f, x: pf.linearize(f, x)[1](x), lambda f, x: _rows(f, x) @ x),
    "grad": (lambda f, x: pf.grad(lambda x: f(x).sum())(x), lambda f, x: _rows(f, x).sum(0)),
    "value": (lambda f, x: pf.vjp(f, x)[0], lambda f, x: f(x)),
    "hessian": (
        lambda f, x: pf.hessian(lambda x: (f(x) ** 2).sum())(x),
        lambda f, x: torch.autograd.functional.hessian(lambda x: (f(x) ** 2).sum(), x),
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", DRAWING)
def test_numbers_are_drawn_once_as_the_plain_call_draws_them(name, transform):
    f, (ours, theirs) = DRAWING[name], TRANSFORMS[transform]
    for seed in range(3):
        torch.manual_seed(seed)
        found, state = ours(f, X), torch.get_rng_state()
        torch.manual_seed(seed)
        f(X)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(seed)
        assert_close(found, theirs(f, X))


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacobian])
@pytest.mark.parametrize("name", DRAWING)
def test_error_refuses_them_and_puts_the_generator_back(name, transform):
    f = DRAWING[name]
    for _ in range(3):
        state = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="randomness"):
            transform(f, randomness="error")(X)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacobian])
def test_generators_of_the_callers_own_are_not_random(transform):
    def f(x):
        return x * torch.rand(4, dtype=F64, generator=torch.Generator().manual_seed(1))

    for _ in range(3):
        jac = transform(f, randomness="error")(X)
        assert_close(jac, torch.diag(f(torch.ones(4, dtype=F64))))


def test_layers_that_do_not_drop_are_not_random():
    layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.RReLU()).double().eval()
    for _ in range(3):
        assert_close(pf.jacfwd(layer, randomness="error")(X), _rows(layer, X))


def test_an_exception_in_the_function_puts_the_generator_back_under_error():
    def f(x):
        torch.rand(3)
        raise KeyError

    for _ in range(3):
        state = torch.get_rng_state()
        with pytest.raises(KeyError):
            pf.jacfwd(f)(X)
        assert torch.equal(torch.get_rng_state(), state)


DRAWS = {
    "gamma": lambda w: torch._standard_gamma(w),
    "bernoulli": lambda w: torch.bernoulli(w / (1 + w)) * w,
    "poisson": lambda w: torch.poisson(w) + w,
    "normal": lambda w: torch.normal(w.detach(), 1.0) * w,
    "multinomial": lambda w: w[torch.multinomial(w, 2)].sum(),
}


@pytest.mark.parametrize("argnums", [0, (0, 1)])
@pytest.mark.parametrize("name", DRAWS)
def test_vmap_draws_the_same_from_an_input_without_a_batch(name, argnums):
    def f(w, x):
        return (DRAWS[name](w.exp()) * x).sin().sum()

    ours = pf.vmap(pf.grad(f, argnums=argnums), in_dims=(None, 0), randomness="same")
    for seed in range(4):
        w, x = torch.randn(3, dtype=F64), torch.randn(4, 3, dtype=F64)
        torch.manual_seed(seed)
        found = ours(w, x)
        expected = []
        for row in x:
            torch.manual_seed(seed)
            leaves = [w.clone().requires_grad_(), row.clone().requires_grad_()]
            expected.append(torch.autograd.grad(f(*leaves), leaves))
        for number, part in enumerate(found if argnums else [found]):
            torch.testing.assert_close(part, torch.stack([e[number] for e in expected]))
