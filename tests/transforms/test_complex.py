"""Complex numbers: complex outputs of real inputs, and complex inputs as pairs of real directions.

Convention: for a complex input of shape ``(*in)`` the Jacobian has shape ``(*out, *in, 2)``:
``[..., 0]`` is the derivative along the real part, ``[..., 1]`` along the imaginary part.
"""

import pytest
import torch
from oracles import assert_close
from torch import Tensor

from pushforward import jacfwd

C128, C64, F64 = torch.complex128, torch.complex64, torch.float64


def randc(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=C128)


def central_complex(func, z: Tensor, h: float = 6e-6) -> Tensor:
    """Central differences along the real and the imaginary part of each entry."""
    columns = []
    for index in range(z.numel()):
        for direction in (h, 1j * h):
            step = torch.zeros(z.numel(), dtype=z.dtype)
            step[index] = direction
            step = step.reshape(z.shape)
            columns.append((func(z + step) - func(z - step)) / (2 * h))
    return torch.stack(columns, dim=-1).reshape((*columns[0].shape, *z.shape, 2))


def test_complex_output_of_a_real_input_gives_a_complex_jacobian():
    x = torch.randn(3, dtype=F64)
    jac = jacfwd(lambda x: torch.exp(1j * x))(x)
    assert jac.dtype == C128
    assert jac.shape == (3, 3)
    torch.testing.assert_close(jac, torch.diag(1j * torch.exp(1j * x)))


def test_fft_of_a_real_input_is_the_fourier_matrix():
    jac = jacfwd(torch.fft.fft)(torch.randn(4, dtype=F64))
    torch.testing.assert_close(jac, torch.fft.fft(torch.eye(4, dtype=C128), dim=0))


def test_complex_intermediates_give_a_real_jacobian():
    x = torch.randn(5, dtype=F64)
    jac = jacfwd(lambda x: torch.fft.fft(x).abs() ** 2)(x)
    assert jac.dtype == F64
    f, m = torch.fft.fft(x), torch.fft.fft(torch.eye(5, dtype=C128), dim=0)
    assert_close(jac, 2 * (f.conj()[:, None] * m).real)


HOLOMORPHIC = {
    "square": (lambda z: z**2, lambda z: 2 * z),
    "exp": (torch.exp, torch.exp),
    "sin": (torch.sin, torch.cos),
    "reciprocal": (lambda z: 1 / z, lambda z: -1 / z**2),
}


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_holomorphic_function_turns_by_i_between_its_two_directions(name):
    func, derivative = HOLOMORPHIC[name]
    z = randc(3)
    jac = jacfwd(func)(z)
    assert jac.shape == (3, 3, 2)
    assert jac.dtype == C128
    torch.testing.assert_close(jac[..., 0], torch.diag(derivative(z)))
    torch.testing.assert_close(jac[..., 1], 1j * torch.diag(derivative(z)))


GENERAL = {
    "conjugate": lambda z: z.conj() * 1,
    "modulus": lambda z: z.abs(),
    "modulus squared": lambda z: (z * z.conj()).real,
    "real part times z": lambda z: z.real * z,
    "imaginary part": lambda z: z.imag * 2,
    "angle": lambda z: z.angle(),
    "view as real": lambda z: torch.view_as_real(z) ** 2,
    "sum": lambda z: (z * z.conj()).sum(),
    "matrix product": lambda z: torch.outer(z, z.conj()) @ z,
    "fft": lambda z: torch.fft.fft(z) * z,
    "linear": lambda z: z.cumsum(0),
}


@pytest.mark.parametrize("name", GENERAL)
def test_derivatives_along_both_parts_equal_central_differences(name):
    func, z = GENERAL[name], randc(3)
    jac, expected = jacfwd(func)(z), central_complex(func, z)
    assert jac.shape == expected.shape
    torch.testing.assert_close(
        jac.resolve_conj(), expected.to(jac.dtype), rtol=1e-6, atol=1e-7, check_dtype=False
    )


@pytest.mark.parametrize("name", GENERAL)
def test_dtype_is_the_promoted_type_and_the_result_is_contiguous(name):
    func, z = GENERAL[name], randc(3)
    jac = jacfwd(func)(z)
    assert jac.dtype == torch.promote_types(func(z).dtype, z.dtype)
    assert jac.is_contiguous()
    assert not jac.is_conj()


def test_matrix_input_puts_the_pair_last():
    z = randc(2, 3)
    jac = jacfwd(lambda z: z.sum(0))(z)
    assert jac.shape == (3, 2, 3, 2)
    expected = torch.zeros(3, 2, 3, dtype=C128)
    for j in range(3):
        expected[j, :, j] = 1
    torch.testing.assert_close(jac[..., 0], expected)
    torch.testing.assert_close(jac[..., 1], 1j * expected)


def test_scalar_complex_input():
    z = randc()
    jac = jacfwd(lambda z: z**3)(z)
    torch.testing.assert_close(jac, torch.stack([3 * z**2, 3j * z**2]))


def test_real_and_complex_arguments_each_follow_their_own_rule():
    x, z = torch.randn(3, dtype=F64), randc(3)
    jx, jz = jacfwd(lambda x, z: x * z, argnums=(0, 1))(x, z)
    torch.testing.assert_close(jx, torch.diag(z))
    assert jz.shape == (3, 3, 2)
    torch.testing.assert_close(jz[..., 0], torch.diag(x).to(C128))


def test_a_complex_argument_that_is_not_differentiated_is_accepted():
    x, z = torch.randn(3, dtype=F64), randc(3)
    torch.testing.assert_close(jacfwd(lambda x, z: x * z)(x, z), torch.diag(z))


def test_single_precision_complex_stays_single():
    z = torch.randn(3, dtype=C64)
    assert jacfwd(lambda z: z * z)(z).dtype == C64


def test_chunks_give_the_same_numbers_for_complex_inputs():
    z = randc(3)
    torch.testing.assert_close(
        jacfwd(GENERAL["fft"], chunk_size=2)(z), jacfwd(GENERAL["fft"])(z), rtol=1e-12, atol=1e-12
    )
