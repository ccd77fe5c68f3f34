"""Sparse results of jacobian, value_and_jacobian and hessian, against dense ones, over several calls."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pushforward as pf

F64, C128 = torch.float64, torch.complex128
OUTPUTS = ("csr", "csc", "coo", "bsr", "auto")
TRIANGLES = torch.tensor([[0, 1, 2], [2, 1, 3], [3, 4, 5], [0, 5, 7], [6, 7, 1], [2, 2, 4]])
MANY = torch.stack([torch.arange(60) % 40, (torch.arange(60) * 7 + 3) % 40])
MATRIX = torch.linspace(-1, 1, 20, dtype=F64).reshape(5, 4)
KERNEL = torch.linspace(-1, 1, 54, dtype=F64).reshape(3, 2, 3, 3)


def brusselator(w: Tensor) -> Tensor:
    u, v = w
    uuv = u * u * v

    def laplace(a: Tensor) -> Tensor:
        return a.roll(1, 0) + a.roll(-1, 0) + a.roll(1, 1) + a.roll(-1, 1) - 4 * a

    return torch.stack([1 + uuv - 4.4 * u + laplace(u), 3.4 * u - uuv + laplace(v)])


def brusselator_of_a_vector(w: Tensor) -> Tensor:
    half = len(w) // 2
    u, v = w[:half].reshape(6, 6), w[half:].view(6, 6)
    return brusselator(torch.stack([u, v])).flatten()


def padded(w: Tensor) -> Tensor:
    p = F.pad(w, (1, 1, 1, 1))
    return w * (p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2])


def heat(u: Tensor) -> Tensor:
    p = F.pad(u, (1, 1, 1, 1, 1, 1))
    c = slice(1, -1)
    return p[2:, c, c] * u + p[:-2, c, c] + p[c, 2:, c] + p[c, :-2, c] + p[c, c, 2:] - p[c, c, :-2]


def broyden(x: Tensor) -> Tensor:
    before = torch.cat([x.new_zeros(1), x[:-1]])
    return (3 - 2 * x) * x - before - 2 * torch.cat([x[1:], x.new_zeros(1)]) + 1


def arrow(x: Tensor) -> Tensor:
    return torch.cat([(x**2).sum()[None], x[0] * x[1:] + x[1:] ** 3])


def written(w: Tensor) -> Tensor:
    out = torch.zeros_like(w)
    out[1:-1, 1:-1] = w[2:, 1:-1] * w[1:-1, :-2]
    out[0] = w[0] ** 2
    return out


def elements(x: Tensor) -> Tensor:
    e = x[TRIANGLES]
    g = (e.sum(1, keepdim=True) * e) ** 2
    return torch.zeros_like(x).index_add(0, TRIANGLES.flatten(), g.flatten(0, 1))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "periodic stencil": (brusselator, (2, 6, 6)),
    "periodic stencil of a vector": (brusselator_of_a_vector, (72,)),
    "large stencil": (brusselator, (2, 96, 96)),
    "padded stencil": (padded, (5, 7)),
    "large padded stencil": (padded, (200, 170)),
    "large stencil in space": (heat, (24, 20, 22)),
    "tridiagonal": (broyden, (9,)),
    "arrow": (arrow, (9,)),
    "index writes": (written, (5, 6)),
    "finite elements": (elements, (8,)),
    "finite elements of vectors": (elements, (8, 2)),
    "two rounds on a graph": (lambda x: elements(elements(x).tanh()), (8,)),
    "batched network": (lambda x: torch.tanh(x @ MATRIX.T) @ MATRIX, (6, 4)),
    "convolutions": (
        lambda x: F.conv2d(F.conv2d(x, KERNEL, padding=1).tanh()[:, :2], KERNEL, stride=2),
        (2, 2, 7, 8),
    ),
    "transposed convolution": (
        lambda x: F.conv_transpose2d(x, KERNEL, stride=2, padding=1, output_padding=1) ** 2,
        (1, 3, 4, 5),
    ),
    "running sum": (lambda x: x.cumsum(0) * x, (5, 3)),
    "softmax": (lambda x: x.softmax(-1), (5, 3)),
    "sorted": (lambda x: x.sort(0)[0] ** 2 * x, (6, 3)),
    "inverses": (torch.linalg.inv, (4, 3, 3)),
    "windows": (lambda x: x.unfold(0, 3, 2).prod(-1), (9,)),
    "flipped and strided": (lambda x: x.flip(0)[::2] * x[1::2].repeat_interleave(2)[:5], (9,)),
    "diagonal of a matrix": (lambda x: torch.diag(x) @ x, (4,)),
    "branches by elements": (lambda x: torch.where(x > 0.5, x.sin(), x * x.roll(1)), (9,)),
    "circular padding": (
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), KERNEL[:1, :1]),
        (1, 1, 5, 5),
    ),
    "rotations of many points": (
        lambda x: (
            torch.linalg.cross(x[:, :3], x[:, 3:]) * (x[:, :3] * x[:, 3:]).sum(1, keepdim=True)
        ),
        (40, 6),
    ),
    "products of many small matrices": (
        lambda x: (x @ x.mT) @ (x / x.square().sum((1, 2), keepdim=True)),
        (35, 3, 2),
    ),
    "many small vectors on a graph": (
        lambda x: (
            torch.zeros_like(x).index_add(0, MANY[1], (x[MANY[0]] @ MATRIX[:3, :3]).tanh()) * x
        ),
        (40, 3),
    ),
    "branches of many": (
        lambda x: torch.where(x[:, :1] > x[:, 1:], x.prod(1, keepdim=True), x[:, :1] ** 2),
        (40, 3),
    ),
    "odd pieces of a vector": (lambda w: w[3:17].reshape(7, 2)[:, 0] * w[5:12], (24,)),
    "numbers": (lambda x: x * 2, ()),
    "nothing": (lambda x: x.sin(), (0,)),
    "no dependence": (lambda x: x.detach() * 2 + x[:1] * 0, (3,)),
}


def rows_of(matrix: Tensor, dense: Tensor) -> Tensor:
    return matrix.to_dense().reshape(dense.shape)


def check_form(matrix: Tensor) -> None:
    """PyTorch's own check of what a sparse tensor has to be."""
    parts = matrix.values() if matrix.layout is not torch.strided else matrix
    if matrix.layout is torch.sparse_csr:
        args = matrix.crow_indices(), matrix.col_indices(), parts, matrix.shape
        torch._validate_sparse_csr_tensor_args(*args)
    elif matrix.layout is torch.sparse_csc:
        args = matrix.ccol_indices(), matrix.row_indices(), parts, matrix.shape
        torch._validate_sparse_csc_tensor_args(*args)
    elif matrix.layout is torch.sparse_bsr:
        args = matrix.crow_indices(), matrix.col_indices(), parts, matrix.shape
        torch._validate_sparse_bsr_tensor_args(*args)
    elif matrix.layout is torch.sparse_coo:
        torch._validate_sparse_coo_tensor_args(matrix.indices(), parts, matrix.shape)
        assert matrix.is_coalesced()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sparse_results_are_the_dense_ones(name: str, output: str):
    func, shape = FUNCTIONS[name]
    if "large" in name:
        output = "csr"
    jacobian = pf.jacobian(func, output=output)
    for _ in range(4):  # plans and kernels of the calls before are used
        x = torch.rand(shape, dtype=F64) + 0.1
        found = jacobian(x)
        if output != "auto":
            check_form(found)
        if "large" in name:  # products with vectors: the dense matrix has 10⁸ entries
            v = torch.rand(shape, dtype=F64)
            _, expected = torch.func.jvp(func, (x,), (v,))
            torch.testing.assert_close(found @ v.flatten(), expected.flatten())
            continue
        jacrev = torch.autograd.functional.jacobian
        expected = jacrev(func, x) if x.numel() else torch.zeros(0, 0, dtype=F64)
        torch.testing.assert_close(rows_of(found, expected), expected)


def test_complex_arguments_have_two_columns_an_element():
    for output in OUTPUTS:
        jacobian = pf.jacobian(lambda z: z * z.conj() + z.roll(1) * 2j + z.abs(), output=output)
        for _ in range(4):
            z = torch.rand(5, dtype=C128)
            dense = pf.jacfwd(lambda z: z * z.conj() + z.roll(1) * 2j + z.abs())(z)
            torch.testing.assert_close(rows_of(jacobian(z), dense), dense)


def test_stored_entries_are_those_of_the_structure():
    """What is zero by chance stays in, and nothing else is stored."""
    found = pf.jacobian(brusselator, output="csr")(torch.zeros(2, 6, 6, dtype=F64))
    assert found.values().numel() == 6 * 72
    batched = pf.jacobian(FUNCTIONS["batched network"][0], output="csr")(
        torch.zeros(6, 4, dtype=F64)
    )
    assert batched.values().numel() == 6 * 4 * 4
    assert pf.jacobian(arrow, output="csr")(torch.zeros(9, dtype=F64)).values().numel() == 9 + 16


def test_other_elements_of_an_index_give_another_pattern():
    """With the same signature: the plan must not be used."""
    where = [torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 0, 1]), torch.tensor([2, 0, 1, 1])]

    functions = (
        lambda y, index: y[index] * y,
        lambda y, index: torch.zeros_like(y).index_add(0, index, y**2),
        lambda y, index: y.gather(0, index) ** 2,
        lambda y, index: torch.zeros_like(y).scatter_add(0, index, y**3),
    )
    for function in functions:
        for number in (0, 0, 0, 1, 1, 1, 2, 0, 1, 2):  # also where kernels answer already
            x = torch.rand(4, dtype=F64)
            func = functools.partial(function, index=where[number])
            found = pf.jacobian(func, output="csr")(x)
            torch.testing.assert_close(found.to_dense(), torch.func.jacrev(func)(x))


def test_writing_to_a_result_does_not_reach_the_next():
    jacobian = pf.jacobian(brusselator, output="csr")
    for _ in range(4):
        x = torch.rand(2, 6, 6, dtype=F64)
        found = jacobian(x)
        expected = torch.func.jacrev(brusselator)(x).reshape(72, 72)
        torch.testing.assert_close(found.to_dense(), expected)
        for part in (found.crow_indices(), found.col_indices(), found.values()):
            part.zero_()


@pytest.mark.parametrize("output", ["csr", "csc", "coo", "bsr"])
def test_values_are_differentiable(output: str):
    scale = torch.tensor(1.5, dtype=F64, requires_grad=True)

    def squared(x: Tensor, sparse: bool) -> Tensor:
        def func(x: Tensor) -> Tensor:
            return scale * brusselator(x)

        if not sparse:
            return (torch.func.jacrev(func)(x) ** 2).sum()
        return (pf.jacobian(func, output=output)(x).values() ** 2).sum()

    for _ in range(4):
        x = torch.rand(2, 6, 6, dtype=F64, requires_grad=True)
        got = torch.autograd.grad(squared(x, True), (x, scale))
        expected = torch.autograd.grad(squared(x, False), (x, scale))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("transform", [pf.jacfwd, pf.jacrev, pf.jacobian])
def test_values_are_differentiable_by_ours(transform: Callable):
    x = torch.rand(2, 4, 4, dtype=F64)
    second = transform(lambda x: pf.jacobian(brusselator, output="coo")(x).values())(x)
    dense = torch.func.jacfwd(torch.func.jacrev(brusselator))(x)
    pattern = pf.pattern(brusselator, x)
    expected = dense.reshape(32, 32, 32)[pattern.rows, pattern.cols]
    torch.testing.assert_close(second.reshape(expected.shape), expected)


def test_trees_and_argnums_and_aux():
    def func(x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], str]:
        return {"product": x * y, "sum": (x**2).sum() + 0 * y.sum()}, "aux"

    x, y = torch.rand(3, dtype=F64), torch.rand(3, dtype=F64)
    got, aux = pf.jacobian(func, argnums=(0, 1), has_aux=True, output="csr")(x, y)
    expected = torch.func.jacrev(lambda x, y: func(x, y)[0], argnums=(0, 1))(x, y)
    assert aux == "aux"
    for name, row in expected.items():
        for found, dense in zip(got[name], row, strict=True):
            torch.testing.assert_close(rows_of(found, dense), dense)
    value, found = pf.value_and_jacobian(torch.sin, output="csr")(x)
    torch.testing.assert_close(value, x.sin())
    torch.testing.assert_close(found.to_dense(), torch.diag(x.cos()))


def rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def surface(x: Tensor) -> Tensor:
    down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
    return torch.sqrt(1 + down**2 + right**2).sum()


@pytest.mark.parametrize(
    ("func", "shape", "nnz"),
    [(rosenbrock, (9,), 25), (surface, (5, 5), None), (torch.sum, (4,), 0)],
)
def test_hessians(func: Callable, shape: tuple[int, ...], nnz: int | None):
    for output in OUTPUTS:
        for _ in range(4):
            x = torch.rand(shape, dtype=F64)
            found = pf.hessian(func, output=output)(x)
            expected = torch.func.hessian(func)(x)
            torch.testing.assert_close(rows_of(found, expected), expected)
            if nnz is not None and output == "csr":
                assert found.values().numel() == nnz


def test_a_custom_rule_counts_and_not_the_function():
    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, g):
            return g

    x = torch.rand(4, dtype=F64)
    found = pf.jacobian(StraightThrough.apply, output="csr")(x)
    torch.testing.assert_close(found.to_dense(), torch.eye(4, dtype=F64))
    assert pf.pattern(lambda x: x.detach() * x, x).nnz == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": "ccs"}, "output"),
        ({"output": "csr", "mode": "reverse"}, "mode"),
        ({"output": "csr", "chunk_size": 2}, "chunk_size"),
    ],
)
def test_options_that_do_not_fit_raise(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        pf.jacobian(torch.sin, **options)(torch.rand(3))


def test_torch_func_outside_raises():
    with pytest.raises(pf.UnsupportedError, match="Put the batch into the function"):
        pf.vmap(pf.jacobian(torch.sin, output="csr"))(torch.rand(2, 3))


def test_an_operator_that_is_too_large_raises():
    with pytest.raises(pf.UnsupportedError, match="mixes all of an axis"):
        pf.jacobian(lambda x: torch.fft.rfft(x).abs(), output="csr")(torch.rand(50_000))


class Cubes(torch.autograd.Function):
    """A function whose structure cannot be seen: without a pattern it counts as dense."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 + x.roll(1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g + g.roll(-1)


@pytest.mark.parametrize("output", ["csr", "csc", "coo", "bsr", "dense"])
def test_a_pattern_that_is_given_takes_few_products(output: str):
    pattern = pf.pattern(lambda x: x + x.roll(1), torch.zeros(12))
    for given in (pattern, pattern.to_torch(), pattern.to_scipy()):
        for _ in range(4):
            x = torch.rand(12, dtype=F64)
            found = pf.jacobian(Cubes.apply, output=output, pattern=given)(x)
            expected = torch.diag(3 * x**2) + torch.eye(12, dtype=F64).roll(1, 0)
            torch.testing.assert_close(found.to_dense(), expected)
    assert pf.pattern(Cubes.apply, x).nnz == 144


def test_both_sides_are_compressed_where_that_takes_less():
    x = torch.rand(40, dtype=F64)
    found = pf.jacobian(arrow, output="csr", pattern=pf.pattern(arrow, x))(x)
    torch.testing.assert_close(found.to_dense(), torch.func.jacrev(arrow)(x))


def test_a_pattern_of_a_hessian_is_symmetric():
    x = torch.rand(9, dtype=F64)
    pattern = pf.pattern(pf.grad(rosenbrock), x)
    expected = torch.func.hessian(rosenbrock)(x)
    found = pf.hessian(rosenbrock, output="coo", pattern=pattern)(x)
    torch.testing.assert_close(found.to_dense(), expected)
    with pytest.raises(ValueError, match="symmetric"):
        pf.hessian(rosenbrock, pattern=torch.ones(9, 9).tril())(x)


@pytest.mark.parametrize("output", ["csr", "dense"])
def test_a_pattern_that_lacks_entries_or_does_not_fit_raises(output: str):
    x = torch.rand(12, dtype=F64)
    with pytest.raises(ValueError, match="lacks entries"):
        pf.jacobian(Cubes.apply, output=output, pattern=torch.eye(12))(x)
    with pytest.raises(ValueError, match=r"\(12, 12\)"):
        pf.jacobian(Cubes.apply, output=output, pattern=torch.eye(11))(x)
    with pytest.raises(pf.UnsupportedError, match="one of each"):
        pf.jacobian(lambda x: (x, x), output=output, pattern=torch.eye(12))(x)


PLACES = torch.tensor([0, 1, 3, 4, 6])
IS_WRITTEN = torch.zeros(8, dtype=torch.bool).index_fill(0, PLACES, True)


def set_by_index(x: Tensor) -> Tensor:
    p = torch.ones(8, 2, dtype=F64)
    p[PLACES] = x
    return p


def add_by_index(x: Tensor) -> Tensor:
    p = torch.ones(8, 2, dtype=F64)
    p[PLACES] += x
    return p


def set_by_mask(x: Tensor) -> Tensor:
    p = torch.ones(8, 2, dtype=F64)
    p[IS_WRITTEN] = x
    return p


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "set by index": set_by_index,
    "add by index": add_by_index,
    "set by mask": set_by_mask,
    "index_add": lambda x: torch.ones(8, 2, dtype=F64).index_add(0, PLACES, x),
    "index_copy": lambda x: torch.ones(8, 2, dtype=F64).index_copy(0, PLACES, x),
    "scatter": lambda x: torch.ones(8, 2, dtype=F64).scatter(0, PLACES[:, None].expand(5, 2), x),
    "scatter_add": lambda x: torch.ones(8, 2, dtype=F64).scatter_add(
        0, PLACES[:, None].expand(5, 2), x
    ),
    "masked_scatter": lambda x: torch.ones(8, 2, dtype=F64).masked_scatter(IS_WRITTEN[:, None], x),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_nowhere_gives_no_entries_in_second_derivatives(name: str) -> None:
    """Joints that are held fixed: gradients are read where they were written, and nowhere else."""

    def energy(x: Tensor) -> Tensor:
        p = WRITES[name](x)
        return ((p[1:] - p[:-1]) ** 4).sum()

    x = torch.rand(5, 2, dtype=F64)
    expected = torch.autograd.functional.hessian(energy, x).reshape(10, 10)
    for _ in range(4):
        found = pf.hessian(energy, output="csr")(x)
        torch.testing.assert_close(found.to_dense(), expected)
        assert found.values().numel() == expected.count_nonzero()
