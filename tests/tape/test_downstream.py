"""What projects do when they swap the import: theseus, torchjd, pypose, tad-dftd3, curvlinops, PyTorch's tutorials."""

import subprocess
import sys
import textwrap

import pytest
import torch
from doubles import F64, randn
from oracles import assert_close
from torch import func, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import pushforward

# PyTorch's vmap says so of operators that torch.func's own transforms call.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# ---- Batched parameters and subclasses ----


class Subclass(torch.Tensor):
    """A user's own."""


BATCHED = {
    "grad": lambda m: m.vmap(m.grad(lambda x, w: (w @ x).tanh().sum())),
    "jacrev": lambda m: m.vmap(m.jacrev(lambda x, w: (w @ x).tanh())),
    "jacfwd": lambda m: m.vmap(m.jacfwd(lambda x, w: (w @ x).tanh())),
    "hessian": lambda m: m.vmap(m.hessian(lambda x, w: (w @ x).tanh().sum())),
    "jvp": lambda m: m.vmap(lambda x, w: m.jvp(lambda y: (w @ y).tanh(), (x,), (x,))[1]),
    "vjp": lambda m: m.vmap(lambda x, w: m.vjp(lambda y: (w @ y).tanh(), x)[1](x)[0]),
    "linearize": lambda m: m.vmap(
        lambda x, w: (m.linearize if m is pushforward else _linearize)(lambda y: (w @ y).tanh(), x)[1](x)
    ),
}  # fmt: skip


def _linearize(f, x):
    return f(x), lambda t: func.jvp(f, (x,), (t,))[1]


@pytest.mark.parametrize("make", [nn.Parameter, lambda t: t.as_subclass(Subclass)])
@pytest.mark.parametrize("name", BATCHED)
def test_vmap_over_what_is_not_differentiated(name, make):
    x, weight = randn(4, 3), randn(4, 3, 3)
    expected = BATCHED[name](func)(x, weight)
    for _ in range(3):
        assert_close(
            BATCHED[name](pushforward)(x, make(weight)).as_subclass(torch.Tensor), expected
        )


@pytest.mark.parametrize("name", BATCHED)
def test_backpropagation_reaches_a_batched_parameter_and_the_input(name):
    weights = []
    for module in (pushforward, func):
        torch.manual_seed(0)
        x, weight = randn(4, 3).requires_grad_(), nn.Parameter(randn(4, 3, 3))
        out = BATCHED[name](module)(x, weight)
        weights.append(torch.autograd.grad(out.square().sum(), (x, weight)))
    assert_close(weights[0][0], weights[1][0])
    assert_close(weights[0][1], weights[1][1])


NESTED = {
    "grad of jacfwd": lambda outer, m, w, x: outer.grad(
        lambda w: m.jacfwd(lambda x: (w @ x).tanh())(x).square().sum()
    )(w),
    "grad of vmap of jacrev": lambda outer, m, w, x: outer.grad(
        lambda w: m.vmap(m.jacrev(lambda x: (w @ x).tanh()))(torch.stack([x, 2 * x])).square().sum()
    )(w),
    "grad of hessian": lambda outer, m, w, x: outer.grad(
        lambda w: m.hessian(lambda x: (w @ x).tanh().sum())(x).square().sum()
    )(w),
    "jacrev of vjp": lambda outer, m, w, x: outer.jacrev(
        lambda w: m.vjp(lambda x: (w @ x).tanh(), x)[1](x)[0]
    )(w),
    "vjp of jacrev": lambda outer, m, w, x: outer.vjp(
        lambda w: m.jacrev(lambda x: (w @ x).tanh())(x), w
    )[1](torch.ones(3, 3, dtype=F64))[0],
    "jvp of jvp": lambda outer, m, w, x: outer.jvp(
        lambda w: m.jvp(lambda x: (w @ x).tanh(), (x,), (x,))[1], (w,), (torch.ones_like(w).as_subclass(torch.Tensor),)
    )[1],
    "per-sample grad of jacrev": lambda outer, m, w, x: outer.vmap(
        outer.grad(lambda w, x: m.jacrev(lambda x: (w @ x).tanh())(x).square().sum()), (None, 0)
    )(w, torch.stack([x, 2 * x])),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_ours_inside_of_torch_func_by_a_parameter_and_the_other_way_round(name):
    w, x = nn.Parameter(randn(3, 3)), randn(3)
    expected = NESTED[name](func, func, w, x)
    for outer, inner in ((func, pushforward), (pushforward, func), (pushforward, pushforward)):
        assert_close(NESTED[name](outer, inner, w, x), expected)


@pytest.mark.parametrize("outer", [func, pushforward])
def test_the_loss_of_a_pinn_by_named_parameters(outer):
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    points = torch.linspace(0, 1, 5, dtype=F64).unsqueeze(1)

    def loss(params, m):
        def u(t):
            return func.functional_call(net, params, (t,)).squeeze(-1)

        return (m.vmap(m.grad(u))(points) + m.vmap(u)(points).unsqueeze(-1)).square().mean()

    got = outer.grad(loss)(dict(net.named_parameters()), pushforward)
    expected = func.grad(loss)(dict(net.named_parameters()), func)
    for name in got:
        assert_close(got[name], expected[name])


class Angle(torch.Tensor):
    def wrapped(self):
        return torch.atan2(self.sin(), self.cos())


METHODS = {
    "jacfwd": lambda f, x: pushforward.jacfwd(f)(x),
    "jacrev": lambda f, x: pushforward.jacrev(f)(x),
    "jacobian": lambda f, x: pushforward.jacobian(f)(x),
    "jvp": lambda f, x: pushforward.jvp(f, (x,), (torch.eye(2)[0],))[1],
    "vjp": lambda f, x: pushforward.vjp(f, x)[1](torch.eye(2)[0])[0],
    "linearize": lambda f, x: pushforward.linearize(f, x)[1](torch.eye(2)[0]),
    "grad": lambda f, x: pushforward.grad(lambda x: f(x)[0])(x),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_subclass_are_there_inside_the_function(name):
    x = torch.tensor([0.5, 1.0]).as_subclass(Angle)
    expected = torch.eye(2) if name.startswith("jac") else torch.eye(2)[0]
    for _ in range(3):
        found = METHODS[name](lambda a: a.wrapped(), x)
        torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


# ---- Tensors without numbers ----

SHAPES = {
    "grad": (lambda m: m.grad(lambda x, t: (x * t).sin().sum()), (3,)),
    "jacrev": (lambda m: m.jacrev(lambda x, t: (x * t).sin()), (3, 3)),
    "jacfwd": (lambda m: m.jacfwd(lambda x, t: (x * t).sin()), (3, 3)),
    "hessian": (lambda m: m.hessian(lambda x, t: (x * t).sin().sum()), (3, 3)),
    "jvp": (lambda m: lambda x, t: m.jvp(torch.sin, (x,), (t,))[1], (3,)),
    "vjp": (lambda m: lambda x, t: m.vjp(torch.sin, x)[1](t)[0], (3,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_on_the_meta_device(name):
    make, shape = SHAPES[name]
    for _ in range(3):
        found = make(pushforward)(*[torch.randn(3, device="meta")] * 2)
        assert found.device.type == "meta"
        assert found.shape == shape


@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_fake_tensors_before_and_after_real_ones(name, is_batched):
    make, shape = SHAPES[name]
    call = pushforward.vmap(make(pushforward)) if is_batched else make(pushforward)
    batch = (4,) if is_batched else ()
    expected = func.vmap(make(func)) if is_batched else make(func)
    for _ in range(3):
        with FakeTensorMode():
            assert call(torch.randn(*batch, 3), torch.randn(*batch, 3)).shape == (*batch, *shape)
        x, t = torch.randn(*batch, 3), torch.randn(*batch, 3)
        torch.testing.assert_close(call(x, t), expected(x, t))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", SHAPES)
def test_traced_graphs_of_batched_derivatives(name, mode):
    make, _ = SHAPES[name]
    call, expected = pushforward.vmap(make(pushforward)), func.vmap(make(func))
    x, t = torch.randn(4, 3), torch.randn(4, 3)
    for _ in range(2):
        call(x, t)
        graph = make_fx(call, tracing_mode=mode)(x, t)
        y = torch.randn(4, 3)
        torch.testing.assert_close(graph(y, t), expected(y, t))


# ---- Options and arguments ----


def test_jacrev_accepts_preallocate_and_copy():
    x = randn(3)
    for chunk_size in (None, 1, 2):
        jac = pushforward.jacrev(torch.sin, chunk_size=chunk_size, _preallocate_and_copy=True)(x)
        assert_close(jac, x.cos().diag())


@pytest.mark.parametrize("empty", [{}, (), []])
def test_a_module_without_parameters(empty):
    """A loop over modules meets it; torch.func returns it."""
    for _ in range(3):
        assert pushforward.grad(lambda p: torch.ones(3).sum())(empty) == empty
        assert pushforward.grad_and_value(lambda p: torch.ones(3).sum())(empty)[0] == empty
        assert pushforward.jacrev(lambda p: torch.ones(3))(empty) == empty
        assert pushforward.jacfwd(lambda p: torch.ones(3))(empty) == empty
        assert pushforward.vjp(lambda p: torch.ones(3).sum(), empty)[1](torch.ones(())) == (empty,)
        both = pushforward.grad(lambda p, x: (x**2).sum(), (0, 1))(empty, torch.ones(2))
        assert both[0] == empty
        assert torch.equal(both[1], torch.full((2,), 2.0))


# ---- What functions ask of their arguments ----


def test_values_inside_require_grad():
    """torchjd keeps only the outputs that do."""
    x, seen = randn(3), []

    def f(x):
        y = x.sin()
        seen.append(y.requires_grad)
        return y

    for module in (func, pushforward):
        seen.clear()
        module.vjp(f, x)
        module.jacrev(f)(x)
        module.grad(lambda x: f(x).sum())(x)
        with torch.no_grad():
            module.vjp(f, randn(3).requires_grad_())
        assert seen == [True] * 4, (module.__name__, seen)


@pytest.mark.parametrize("module", [func, pushforward])
def test_functorch_knows_batches_inside(module):
    """tad-mctc skips checks of values when functorch wraps the tensor: under vmap they raise."""

    def energy(x):
        w = torch.exp(-x)
        functorch = torch._C._functorch
        if not (functorch.is_gradtrackingtensor(w) or functorch.is_batchedtensor(w)):
            assert torch.isnan(w).sum() == 0
        return (w * w).sum()

    x = randn(4, 3)
    for _ in range(3):
        assert_close(module.vmap(module.grad(energy))(x), -2 * torch.exp(-2 * x))
        jac = module.vmap(module.jacrev(energy))(x)
        assert_close(jac, -2 * torch.exp(-2 * x))


# ---- Functions of one's own, taken before the import ----

EARLY = """
import torch
class Square(torch.autograd.Function):
    generate_vmap_rule = True
    @staticmethod
    def forward(x): return x * x
    @staticmethod
    def setup_context(ctx, inputs, output): ctx.save_for_backward(*inputs)
    @staticmethod
    def backward(ctx, g): return 2 * g * ctx.saved_tensors[0]
square = Square.apply          # PyTorch's documented idiom, at module level ...
import pushforward as pf       # ... in a module imported before pushforward
x = torch.tensor([1.0, 2.0])
y = torch.stack([x, 3 * x])
for _ in range(3):
    assert torch.equal(pf.grad(lambda x: square(x).sum())(x), 2 * x)
    assert torch.equal(pf.jacrev(square)(x), torch.diag(2 * x))
    assert torch.equal(pf.jacfwd(square)(x), torch.diag(2 * x))
    assert torch.equal(pf.jacobian(square)(x), torch.diag(2 * x))
    assert torch.equal(pf.jvp(square, (x,), (x,))[1], 2 * x * x)
    assert torch.equal(pf.vjp(square, x)[1](x)[0], 2 * x * x)
    assert torch.equal(pf.hessian(lambda x: square(x).sum())(x), 2 * torch.eye(2))
    assert torch.equal(pf.vmap(pf.grad(lambda x: square(x).sum()))(y), 2 * y)
    assert torch.equal(pf.vmap(pf.jacrev(square))(y), torch.diag_embed(2 * y))
"""


def test_apply_taken_before_the_import():
    command = [sys.executable, "-c", textwrap.dedent(EARLY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


class Accumulated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        out = torch.zeros_like(g)
        out += 2 * g * x
        return out


def test_vmap_of_a_function_whose_backward_writes_in_place():
    x, apply = randn(4, 3), Accumulated.apply
    for _ in range(3):
        jac = torch.diag_embed(2 * x)
        assert_close(pushforward.vmap(pushforward.jacrev(apply))(x), jac)
        assert_close(pushforward.vmap(pushforward.jacfwd(apply))(x), jac)
        assert_close(pushforward.vmap(pushforward.grad(lambda x: apply(x).sum()))(x), 2 * x)


# ---- Embeddings ----


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bags_with_named_parameters(mode):
    bag = nn.EmbeddingBag(8, 4, mode=mode, dtype=F64)
    indices = torch.arange(8).view(2, 4)
    got, expected = (
        m.grad(lambda p: func.functional_call(bag, p, (indices,)).square().sum())(
            dict(bag.named_parameters())
        )
        for m in (pushforward, func)
    )
    assert_close(got["weight"], expected["weight"])


def test_an_embedding_with_a_maximal_norm_of_a_parameter():
    w = torch.arange(20, dtype=F64).view(5, 4) / 10
    i = torch.tensor([0, 1, 3, 1])
    got, expected = (
        m.grad(lambda w: nn.functional.embedding(i, w, max_norm=1.0).square().sum())(
            nn.Parameter(w.clone())
        )
        for m in (pushforward, func)
    )
    assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "jacobian"])
@pytest.mark.parametrize("name", ["embedding", "embedding_bag"])
def test_embeddings_scale_derivatives_by_frequency(name, transform):
    """As PyTorch documents its backward: by how often each row is used; here in every mode.

    The CPU's backward of bags takes the counts of other rows (2.13), so that it gives 0.5 for row 3.
    """
    i = torch.tensor([[0, 1], [3, 1]])
    options = {"mode": "sum"} if name == "embedding_bag" else {}

    def f(w):
        looked_up = getattr(nn.functional, name)
        return looked_up(i, w, scale_grad_by_freq=True, **options).sum()

    expected = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0], dtype=F64)[:, None].expand(5, 4)
    assert_close(getattr(pushforward, transform)(f)(randn(5, 4)), expected)
