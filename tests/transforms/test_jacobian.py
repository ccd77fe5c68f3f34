"""jacobian, value_and_jacobian and explain: what their docstrings promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pushforward import (
    UnsupportedError,
    explain,
    hvp,
    jacfwd,
    jacobian,
    jacrev,
    value_and_jacobian,
    vjp,
    vmap,
)
from pushforward.errors import ArgumentValueError

MODES = ["auto", "forward", "reverse", "cross"]
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
W = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def mixing(x: Tensor) -> Tensor:
    return (W @ x.sin()).tanh() * x.sum()


@pytest.mark.parametrize("mode", MODES)
def test_argnums_pytrees_keywords_and_aux(mode: str) -> None:
    def func(a: dict[str, Tensor], b: Tensor, *, scale: float) -> tuple[dict[str, Tensor], str]:
        return {"y": a["u"] * b * scale, "z": (a["u"] @ b)}, "aux"

    args = ({"u": X}, X.cos())
    result, aux = jacobian(func, argnums=(1, 0), mode=mode, has_aux=True)(*args, scale=2.0)
    assert aux == "aux"
    assert set(result) == {"y", "z"}
    by_b, by_a = result["y"]
    torch.testing.assert_close(by_b, torch.diag(2 * X))
    torch.testing.assert_close(by_a["u"], torch.diag(2 * X.cos()))
    torch.testing.assert_close(result["z"][0], X)


@pytest.mark.parametrize("mode", MODES)
def test_the_function_is_called_once_and_its_value_costs_nothing(mode: str) -> None:
    calls = []

    def func(x: Tensor) -> Tensor:
        calls.append(1)
        return mixing(x)

    value, jac = value_and_jacobian(func, mode=mode)(X)
    assert calls == [1]
    torch.testing.assert_close(value, mixing(X))
    torch.testing.assert_close(jac, torch.func.jacfwd(mixing)(X))


def test_value_and_jacobian_with_aux() -> None:
    value, jac, aux = value_and_jacobian(lambda x: (x * 2, "b"), has_aux=True)(X)
    assert aux == "b"
    torch.testing.assert_close((value, jac), (2 * X, 2 * torch.eye(3, dtype=X.dtype)))


@pytest.mark.parametrize("mode", MODES)
def test_results_own_their_storage_and_are_contiguous(mode: str) -> None:
    for func in (mixing, torch.sin, lambda x: x, lambda x: x[None].expand(2, 3)):
        jac = jacobian(func, mode=mode)(X)
        assert jac.is_contiguous()
        assert jac.untyped_storage().nbytes() == jac.numel() * 8
        jac.add_(1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_chunks_give_the_same_numbers(mode: str, chunk_size: int) -> None:
    if mode == "cross":
        with pytest.raises(ArgumentValueError, match="jacobian: chunk_size: got"):
            jacobian(mixing, mode=mode, chunk_size=chunk_size)(X)
        return
    torch.testing.assert_close(
        jacobian(mixing, mode=mode, chunk_size=chunk_size)(X), jacobian(mixing)(X)
    )


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_complex_numbers_have_one_convention_in_every_mode(mode: str) -> None:
    z = torch.tensor([0.3 + 0.4j, -1.0 + 0.2j], dtype=torch.complex128)
    for func in (
        lambda z: z * z,
        lambda z: z.abs(),
        lambda z: z.conj() * z[0],
        lambda z: (z.real * 2).cumsum(0),
        lambda z: torch.fft.fft(z),
    ):
        torch.testing.assert_close(jacobian(func, mode=mode)(z), jacfwd(func)(z))
    torch.testing.assert_close(
        jacobian(lambda x: x * (1 + 2j), mode=mode)(X), torch.diag((1 + 2j) * torch.ones(3)).to(z)
    )


def test_cross_country_refuses_complex_numbers_and_mixed_dtypes() -> None:
    z = torch.ones(2, dtype=torch.complex128)
    with pytest.raises(UnsupportedError, match=r"mode='cross': got .*, expected one real dtype"):
        jacobian(lambda z: z * z, mode="cross")(z)
    with pytest.raises(UnsupportedError, match="mode='auto'"):
        jacobian(lambda x: x.float().sin(), mode="cross")(X)
    with pytest.raises(UnsupportedError, match="expected one real dtype"):
        jacobian(lambda x, z: (x.sin() * 2, z), argnums=(0, 1), mode="cross")(X, z)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float32])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("mode", ["cross", "auto", "forward", "reverse"])
def test_what_takes_no_part_may_have_any_dtype(
    dtype: torch.dtype, order: tuple[int, int], mode: str
) -> None:
    other = torch.ones(2, dtype=dtype)

    def func(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (args[order[0]].sin() * 2).cumsum(0), other * 3

    args = (X, other) if order == (0, 1) else (other, X)
    ours = jacobian(func, argnums=(0, 1), mode=mode)(*args)
    plain = jacfwd(func, argnums=(0, 1))(*args)
    for row, expected_row in zip(ours, plain, strict=True):
        for block, expected_block in zip(row, expected_row, strict=True):
            torch.testing.assert_close(block, expected_block)
    expected = torch.func.jacrev(lambda x: (x.sin() * 2).cumsum(0))(X)
    torch.testing.assert_close(ours[0][order[0]], expected)


def test_errors() -> None:
    with pytest.raises(
        ArgumentValueError, match=r"jacobian: mode: got 'sideways', expected one of"
    ):
        jacobian(torch.sin, mode="sideways")(X)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="randomness"):
        jacobian(torch.sin, randomness="no")(X)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="random operation"):
        jacobian(lambda x: x * torch.rand_like(x))(X)


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_autograd_through_every_mode(mode: str) -> None:
    batch = torch.stack([X, X.cos(), X.exp()])
    expected = torch.func.vmap(torch.func.jacfwd(mixing))(batch)
    torch.testing.assert_close(vmap(jacobian(mixing, mode=mode))(batch), expected)
    x = X.clone().requires_grad_()
    (ours,) = torch.autograd.grad(jacobian(mixing, mode=mode)(x).pow(2).sum(), x)
    (theirs,) = torch.autograd.grad(torch.func.jacrev(mixing)(x).pow(2).sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("transform", [jacrev, jacobian, jacfwd])
def test_a_function_that_writes_to_its_input_is_differentiated_where_it_was(
    transform: object,
) -> None:
    def func(x: Tensor) -> Tensor:
        y = x * x
        x.mul_(3)
        return y * x

    x = X.clone()
    torch.testing.assert_close(transform(func)(x), torch.diag(9 * X**2))  # type: ignore[operator]
    torch.testing.assert_close(x, 3 * X)


def test_an_exception_leaves_the_writes_of_the_function_done() -> None:
    def func(x: Tensor) -> Tensor:
        x.mul_(3)
        raise KeyError("own")

    x = X.clone()
    with pytest.raises(KeyError, match="own"):
        jacrev(func)(x)
    torch.testing.assert_close(x, 3 * X)


def test_a_residual_that_the_function_overwrites_is_the_old_one() -> None:
    constant = torch.full((3,), 2.0, dtype=X.dtype)

    def func(x: Tensor) -> Tensor:
        y = x * constant
        constant.add_(1)
        return y

    torch.testing.assert_close(jacrev(func)(X), 2 * torch.eye(3, dtype=X.dtype))
    torch.testing.assert_close(constant, torch.full((3,), 3.0, dtype=X.dtype))


def test_pullbacks_of_functions_with_keywords() -> None:
    _, pullback = vjp(lambda x, *, scale: x * scale, X, scale=3.0)
    torch.testing.assert_close(pullback(torch.ones_like(X)), (3 * torch.ones_like(X),))


def test_pullbacks_of_batches() -> None:
    output, pullback = vjp(mixing, X)
    rows = torch.eye(len(output), dtype=X.dtype)
    (pulled,) = pullback.batched(rows)
    torch.testing.assert_close(pulled, torch.func.jacfwd(mixing)(X))


def test_products_with_the_hessian() -> None:
    def func(x: Tensor, y: Tensor) -> Tensor:
        return (x * y.sin()).pow(3).sum()

    x, y = X, X.cos()
    u, v = X.exp(), torch.ones_like(X)
    value, product = hvp(func, (x, y), (u, v))
    expected = torch.autograd.functional.hvp(func, (x, y), (u, v))
    torch.testing.assert_close((value, product), expected)
    value, product, aux = hvp(lambda x: (x.pow(3).sum(), "a"), (x,), (u,), has_aux=True)
    assert aux == "a"
    torch.testing.assert_close(product, (6 * x * u,))


def test_explain_prints_operators_rules_blocks_orders_and_memory() -> None:
    explanation = explain(lambda x: torch.outer(x.sin(), x).sum(1), X)
    text = str(explanation)
    assert "aten.sin.default" in text
    assert "rule" in text
    assert "(3 ← 3" in text
    assert "→ " in text
    assert "memory:" in text
    assert next(row.source for row in explanation.rows) == ""
    assert explanation.residual_bytes > 0
    assert explanation.peak_bytes > 0


def test_explain_names_what_pytorch_differentiates() -> None:
    @torch.library.custom_op("pushforward_tests::cubed", mutates_args=())
    def cubed(x: Tensor) -> Tensor:
        return x**3

    cubed.register_autograd(
        lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    explanation = explain(lambda x: cubed(x).sin(), X)
    assert [row.source for row in explanation.rows] == ["", "PyTorch", "rule"]


@pytest.mark.parametrize("mode", MODES)
def test_functions_in_which_nothing_reaches_the_output_are_planned(mode: str) -> None:
    for func in (lambda x: (x * 1).zero_(), lambda x: torch.ones(2), lambda x: (x.detach(), x)):
        for _ in range(3):
            actual = jacobian(func, mode=mode)(torch.rand(3))
            expected = torch.func.jacrev(func)(torch.rand(3))
            torch.testing.assert_close(actual, expected)
