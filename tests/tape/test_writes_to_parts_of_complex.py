"""Writes to views of other dtypes than their base's, conjugated or negated, after a node saved what they overwrite."""

import pytest
import torch
from oracles import assert_close, central_jvp

from pushforward import jacrev, jvp

F64 = torch.float64
VIEWS = {
    "imag": lambda x: x.imag,
    "real": lambda x: x.real,
    "numbers": torch.view_as_real,
    "numbers' imag": lambda x: torch.view_as_real(x)[..., 1],
    "conj": lambda x: x.conj(),
    "neg": lambda x: x.conj().imag,
    "part": lambda x: x[1:].imag,
}
WRITES = {
    "mul_": lambda v: v.mul_(2),
    "index_copy_": lambda v: v.index_copy_(0, torch.tensor([0]), v[-1:] * 2),
    "fill_": lambda v: v[:1].fill_(1),
    "copy_": lambda v: v.copy_(v * v),
    "square_": lambda v: v.square_(),
    "assignment": lambda v: v.__setitem__(0, v[-1].sin()),
}


def check(f, x, direction):
    value = f(x.clone())
    for _ in range(3):
        output, tangent = jvp(f, (x.clone(),), (direction,))
        torch.testing.assert_close(output, value)
        assert_close(tangent, central_jvp(f, (x,), (direction,)))
        jac = jacrev(f)(x.clone())
        numbers = torch.view_as_real(direction) if x.is_complex() else direction
        assert_close((jac * numbers).flatten(1).sum(1).real, tangent)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("is_input", [False, True])
def test_writes_to_views_of_complex_numbers(is_input, view, write):
    def f(x):
        x = x if is_input else x * 1
        before = view(x).sin()
        v = view(x)
        write(v)
        return x.abs() + (v * v).sum().abs() + before.sum().abs()

    x = torch.tensor([0.7 - 0.4j, -1.1 + 0.9j], dtype=torch.complex128)
    check(f, x, torch.tensor([0.3 + 0.8j, 1.2 - 0.5j], dtype=torch.complex128))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("view", [lambda z: z, lambda z: z.conj(), lambda z: z[1:]])
def test_writes_to_complex_views_of_real_numbers(view, write):
    def f(x):
        x = x * 1
        z = torch.view_as_complex(x[2:].view(2, 2))
        before = view(z).exp()
        write(view(z))
        return x.sin() + (z * z).sum().abs() + before.sum().abs()

    x = torch.tensor([0.2, 0.7, -0.4, -1.1, 0.9, 0.6], dtype=F64)
    check(f, x, torch.tensor([1.0, 0.3, 0.8, 1.2, -0.5, 0.4], dtype=F64))
