"""hessian_operator and gauss_newton_operator, next to PyTorch's second derivatives."""

import pytest
import torch
from oracles import assert_close
from torch import Tensor, nn

from pushforward import gauss_newton_operator, hessian_operator, jacobian_operator, vmap

F64, C128 = torch.float64, torch.complex128


def rand(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def quotient(x):
    return x.prod() / (1 + x.square().sum())


@pytest.mark.parametrize(
    "func", [rosenbrock, quotient, lambda x: (x @ torch.ones(6, dtype=F64)) ** 3]
)
def test_hessians_are_those_of_pytorch(func):
    x = rand(6)
    H = hessian_operator(func, x)
    expected = torch.func.hessian(func)(x)
    v, columns = rand(6), rand(6, 4)
    assert_close(H @ v, expected @ v)
    assert_close(H @ columns, expected @ columns)
    assert_close(v @ H, expected @ v)
    assert H.T is H
    assert_close(H.to_dense(), expected)
    assert_close(H.to_csr().to_dense(), expected)
    assert_close(H.value, func(x))
    assert_close(H.gradient, torch.func.grad(func)(x))


def test_sparse_hessian_has_the_entries_of_the_structure():
    assert hessian_operator(rosenbrock, rand(100)).to_csr().values().numel() == 298


def test_the_function_is_called_once():
    calls = []

    def f(x):
        calls.append(1)
        return (x**3).sum()

    H = hessian_operator(f, rand(3))
    H @ rand(3), H.to_dense(), H.gradient, H @ rand(3, 2)
    assert len(calls) == 1


def test_hessians_of_pytrees_have_blocks():
    parameters, x = {"w": rand(2, 3), "b": rand(2)}, rand(3)

    def f(p, x):
        return (p["w"] @ x + p["b"]).tanh().square().sum()

    H = hessian_operator(f, parameters, x, argnums=(0, 1))
    direction = ({"w": rand(2, 3), "b": rand(2)}, rand(3))
    _, expected = torch.func.jvp(torch.func.grad(f, (0, 1)), (parameters, x), direction)
    product = H @ direction
    assert_close(product[0]["w"], expected[0]["w"])
    assert_close(product[1], expected[1])
    assert_close(H.to_dense(), H.to_dense().mT)
    assert_close(H.to_csr().to_dense(), H.to_dense())
    assert_close(H @ H.inputs.flatten(direction), H.inputs.flatten(expected))


def test_hessian_of_complex_numbers_is_real_and_symmetric():
    z = rand(3, dtype=C128)

    def f(z):
        return ((z * z.roll(1)).abs() ** 2).sum() + (z**3).real.sum()

    def of_parts(p):
        return f(torch.view_as_complex(p.reshape(3, 2)))

    expected = torch.func.hessian(of_parts)(torch.view_as_real(z).reshape(-1))
    H = hessian_operator(f, z)
    assert (H.shape, H.dtype) == ((6, 6), F64)
    v = rand(6)
    assert_close(H @ v, expected @ v)
    assert_close(H @ (v * 1j), expected @ v * 1j)
    assert_close(H.to_dense(), expected)
    assert_close(H.to_csr().to_dense(), expected)
    assert_close(H.gradient, torch.func.grad(of_parts)(torch.view_as_real(z).reshape(-1)))


def residuals(x):
    return torch.cat([1 - x[:-1], 10 * (x[1:] - x[:-1] ** 2)])


def test_gauss_newton_without_loss_is_jacobian_transposed_times_jacobian():
    x = rand(5)
    G, jac = gauss_newton_operator(residuals, x), torch.func.jacrev(residuals)(x)
    v = rand(5, 2)
    assert_close(G @ v, jac.mT @ jac @ v)
    assert_close(G.to_dense(), jac.mT @ jac)
    assert_close(G.to_csr().to_dense(), jac.mT @ jac)
    assert_close(G.gradient, jac.mT @ residuals(x))
    assert_close(G.value, residuals(x).square().sum() / 2)
    assert_close(G.output, residuals(x))
    assert G.to_csr().values().numel() == 5 + 2 * 4  # tridiagonal


def test_gauss_newton_of_cross_entropy():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x, labels = rand(7, 3), torch.randint(5, (7,))

    def model(p):
        return torch.func.functional_call(net, p, (x,))

    def loss(logits):
        return nn.functional.cross_entropy(logits, labels)

    G = gauss_newton_operator(model, parameters, loss=loss)
    J = jacobian_operator(model, parameters).to_dense()
    curved = torch.func.hessian(loss)(model(parameters)).reshape(35, 35)
    expected = J.mT @ curved @ J
    v = rand(G.shape[1])
    assert_close(G @ v, expected @ v)
    assert_close(G.to_dense(), expected)
    assert_close(G.to_csr().to_dense(), expected)
    assert torch.linalg.eigvalsh(G.to_dense()).min() > -1e-12
    slope = torch.func.grad(lambda p: loss(model(p)))(parameters)
    assert_close(G.gradient, G.inputs.flatten(slope))
    assert_close(G.value, loss(model(parameters)))
    assert (G @ slope).keys() == parameters.keys()


def test_gauss_newton_of_trees_and_complex_numbers():
    z, x = rand(3, dtype=C128), rand(2)

    def f(z, x):
        return {"a": z * z.roll(1) * x[0], "b": z.abs() * x.sum()}

    def loss(y):
        return (y["a"].abs() ** 4).sum() + y["b"].exp().sum() + (y["a"].real * y["b"]).sum()

    parts = torch.cat([torch.view_as_real(z).reshape(-1), x])

    def output_parts(p):
        y = f(torch.complex(p[0:6:2], p[1:6:2]), p[6:])
        return torch.cat([torch.view_as_real(y["a"]).reshape(-1), y["b"]])

    def loss_of_parts(q):
        return loss({"a": torch.complex(q[0:6:2], q[1:6:2]), "b": q[6:]})

    jac = torch.autograd.functional.jacobian(output_parts, parts)
    for given, curved in (
        (None, torch.eye(9, dtype=F64)),
        (loss, torch.func.hessian(loss_of_parts)(output_parts(parts))),
    ):
        G = gauss_newton_operator(f, z, x, loss=given, argnums=(0, 1))
        expected = jac.mT @ curved @ jac
        v = rand(8, 2)
        assert_close(G @ v, expected @ v)
        assert_close(G.to_dense(), expected)
        assert_close(G.to_csr().to_dense(), expected)
        assert G.dtype == F64
    assert_close(G.gradient, torch.func.grad(lambda p: loss_of_parts(output_parts(p)))(parts))


def test_curvature_inside_vmap_and_autograd():
    batch, v = rand(4, 3), rand(4, 3)
    found = vmap(lambda x, v: hessian_operator(quotient, x) @ v)(batch, v)
    expected = torch.stack(
        [torch.func.hessian(quotient)(x) @ u for x, u in zip(batch, v, strict=True)]
    )
    assert_close(found, expected)
    found = vmap(lambda x, v: gauss_newton_operator(torch.sin, x) @ v)(batch, v)
    assert_close(found, batch.cos() ** 2 * v)
    x = rand(3).requires_grad_()
    (slope,) = torch.autograd.grad((hessian_operator(quotient, x) @ v[0]).sum(), x)
    by_torch = torch.func.grad(lambda x: (torch.func.hessian(quotient)(x) @ v[0]).sum())
    assert_close(slope, by_torch(x.detach()))
    (slope,) = torch.autograd.grad(hessian_operator(quotient, x).gradient.sum(), x)
    assert_close(slope, torch.func.hessian(quotient)(x.detach()).sum(0))


def test_values_follow_autograd_to_parameters():
    x, w = rand(3), rand(3).requires_grad_()
    G = gauss_newton_operator(lambda x: (w * x).sin(), x, loss=lambda y: (y**4).sum())
    (slope,) = torch.autograd.grad((G @ x).sum() + G.gradient.sum() + G.value, w)

    def by_hand(w):
        jac, y = w * (w * x).cos(), (w * x).sin()
        return (jac**2 * 12 * y**2 * x).sum() + (jac * 4 * y**3).sum() + (y**4).sum()

    assert_close(slope, torch.func.grad(by_hand)(w.detach()))


def test_what_has_no_hessian_is_refused():
    with pytest.raises(ValueError, match=r"scalar"):
        hessian_operator(torch.sin, rand(3))
    with pytest.raises(TypeError, match=r"hessian_operator: func"):
        hessian_operator(None, rand(3))
    with pytest.raises(ValueError, match=r"scalar"):
        gauss_newton_operator(torch.sin, rand(3), loss=torch.sin)
    with pytest.raises(TypeError, match=r"gauss_newton_operator: loss"):
        gauss_newton_operator(torch.sin, rand(3), loss=2)
