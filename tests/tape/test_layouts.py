"""Functions that read memory by numbers, of inputs that are parts of other tensors: against torch's own transforms."""

import pytest
import torch
from torch import Tensor

import pushforward
from pushforward import UnsupportedError, hessian, jacfwd, jacobian, jacrev, jvp, linearize, vjp

F64 = torch.float64
WHOLE = torch.linspace(-1.3, 1.9, 15, dtype=F64)
PARTS = {
    "an offset": WHOLE[3:7],
    "a beginning": WHOLE[:4],
    "steps": WHOLE[1::2],
    "steps from the beginning": WHOLE[:8:2],
    "first columns": WHOLE.reshape(3, 5)[:2, :2],
    "columns": WHOLE.reshape(3, 5)[:, 1:3],
    "rows, transposed": WHOLE.reshape(5, 3).t()[1:],
    "the whole": WHOLE.clone(),
}
FUNCTIONS = {
    "offset": lambda x: x.as_strided((2, 2), (1, 3), 1) ** 2 * x.sum(),
    "no offset": lambda x: torch.as_strided(x, (2,), (2,)).sin() * x.sum(),
    "its own strides": lambda x: x.as_strided(x.shape, x.stride(), x.storage_offset()).exp() + x,
    "of a view": lambda x: x[1:].as_strided((3,), (1,), 2) * x.prod(),
    "copied": lambda x: torch.as_strided_copy(x, (2, 2), (0, 1), 4) ** 3,
}


def written(x: Tensor) -> Tensor:
    y = x * x
    x.as_strided((2,), (1,), 3).mul_(y.sum())
    return x * y


def reference(f, x):
    x = x.detach()
    if f is written:  # on a copy that lies as x does
        return torch.autograd.functional.jacobian(
            lambda x: torch.cat([x[:2] * (x * x).sum(), x[2:]]) * x * x, x
        )
    return torch.autograd.functional.jacobian(f, x)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_memory_is_read_where_the_input_lies(name, part):
    f, x = FUNCTIONS[name], PARTS[part]
    expected = reference(f, x)
    tangent = torch.cos(torch.arange(x.numel(), dtype=F64)).reshape(x.shape)
    pushed = (expected * tangent).flatten(-x.dim()).sum(-1)
    for _ in range(3):
        for transform in (jacfwd, jacrev, jacobian):
            torch.testing.assert_close(transform(f)(x), expected)
        torch.testing.assert_close(jvp(f, (x,), (tangent,))[1], pushed)
        torch.testing.assert_close(linearize(f, x)[1](tangent), pushed)
        (pulled,) = vjp(f, x)[1](torch.ones_like(f(x)))
        torch.testing.assert_close(pulled, expected.flatten(0, -x.dim() - 1).sum(0))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["offset", "no offset", "its own strides", "of a view"])
def test_nested_transforms_find_it_there_too(name, part):
    x = PARTS[part]

    def f(x):
        return FUNCTIONS[name](x).sum()

    expected = torch.autograd.functional.hessian(f, x.detach())
    for _ in range(3):
        torch.testing.assert_close(hessian(f)(x), expected)
        torch.testing.assert_close(jacfwd(jacrev(f))(x), expected)
        torch.testing.assert_close(jacrev(torch.func.grad(f))(x), expected)


def test_one_function_of_inputs_that_lie_elsewhere_in_turn():
    def f(x):
        return x.as_strided((3,), (1,), 1) ** 2

    for part in [*PARTS, *reversed(PARTS)]:
        x = PARTS[part]
        torch.testing.assert_close(jacrev(f)(x), reference(f, x))
        torch.testing.assert_close(jacfwd(f)(x), reference(f, x))


def test_writes_reach_the_caller():
    whole = WHOLE.clone()
    x = whole[3:7]
    for _ in range(3):
        whole.copy_(WHOLE)
        expected = reference(written, x.clone())
        torch.testing.assert_close(jacrev(written)(x), expected)
        result = WHOLE.clone()
        written(result[3:7])
        torch.testing.assert_close(whole, result)


def test_scattered_by_place():
    def f(x):
        return torch.as_strided_scatter(x, x.sum().expand(1), (1,), (1,), 4) ** 2

    def by_index(x):
        return torch.cat([x[:1], x.sum().expand(1), x[2:]]) ** 2

    x = WHOLE[3:7]
    torch.testing.assert_close(f(x), by_index(x))
    for _ in range(3):
        for transform in (jacfwd, jacrev, jacobian):
            torch.testing.assert_close(transform(f)(x), reference(by_index, x))


def test_below_vmap_it_is_what_torch_finds():
    def f(x):
        return x.as_strided((2,), (1,)) ** 2 * x.sum()

    for x in (WHOLE.reshape(5, 3)[1:], WHOLE.reshape(3, 5)[:, :3], WHOLE[3:].reshape(4, 3)):
        for _ in range(3):
            expected = torch.vmap(torch.func.jacrev(f))(x)
            torch.testing.assert_close(pushforward.vmap(jacfwd(f))(x), expected)


def test_what_cannot_lie_alike_raises():
    def f(x):
        return x.as_strided((2,), (1,), 1)

    with pytest.raises(UnsupportedError, match=r"jacrev: as_strided of an input.*Pass x.clone\(\)"):
        jacrev(f)(WHOLE[2].expand(4))
    with pytest.raises(UnsupportedError, match="as_strided of an input"):
        torch.func.jacrev(jacrev(f))(WHOLE[2:6])
    with pytest.raises(UnsupportedError, match="memory around an input"):
        jacrev(lambda x: x.as_strided((2,), (1,), 0).mul_(x.sum()))(WHOLE.clone()[2:6])


def test_memory_between_the_elements_of_a_part_is_that_of_the_whole():
    for number in range(1, 4):
        whole = torch.arange(1, 17, dtype=F64) * number
        junk = [torch.full((n,), float("nan"), dtype=F64) for n in range(1, 20)]
        del junk  # what is allocated next, and not filled, has these
        for x in (whole[:8:2], whole.view(4, 4)[:2, :2], whole.view(8, 2)[:, 0]):
            found, _ = pushforward.value_and_jacobian(lambda x: x.as_strided((3,), (1,), 0) + 0)(x)
            torch.testing.assert_close(found, whole[:3])
