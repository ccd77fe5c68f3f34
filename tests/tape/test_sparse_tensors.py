"""Sparse tensors: constants in products with what is differentiated, and built from it inside the function."""

from collections.abc import Callable

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor

from pushforward import compile, grad, grad_and_value, hessian, jacfwd, jacrev
from pushforward.errors import UnsupportedError

# PyTorch warns once a process: in whichever test is the first.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

MATRIX = torch.tensor([[0, 1.5, 0], [2, 0, -3]], dtype=torch.float64)
PLACES = torch.tensor([[0, 1, 1], [2, 0, 2]])
TWICE = torch.tensor([[0, 1, 1], [2, 0, 0]])
VALUES = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)
DENSE = torch.tensor([[0.3, -0.8], [1.1, 0.5], [-0.6, 0.9]], dtype=torch.float64)


def coo(values: Tensor, places: Tensor = PLACES) -> Tensor:
    """Return a sparse 2 × 3 matrix with these values."""
    return torch.sparse_coo_tensor(places, values, (2, 3))


def csr(values: Tensor) -> Tensor:
    """Return the same in CSR."""
    return torch.sparse_csr_tensor(torch.tensor([0, 1, 3]), torch.tensor([2, 0, 2]), values, (2, 3))


CONSTANT_OPERAND: dict[str, Callable[[Tensor], Tensor]] = {
    "coo @ x": lambda x: (MATRIX.to_sparse() @ x) ** 2,
    "csr @ x": lambda x: (MATRIX.to_sparse_csr() @ x) ** 2,
    "x @ coo": lambda x: (x.t() @ MATRIX.t().to_sparse()) ** 2,
    "x @ csr": lambda x: (x.t() @ MATRIX.t().to_sparse_csr()) ** 2,
    "coo @ vector": lambda x: (MATRIX.to_sparse() @ x[:, 0]) ** 2,
    "csr @ vector": lambda x: torch.mv(MATRIX.to_sparse_csr(), x[:, 1]) ** 2,
    "sparse.mm": lambda x: torch.sparse.mm(MATRIX.to_sparse(), x) ** 2,
    "sparse.mm of csr": lambda x: torch.sparse.mm(MATRIX.to_sparse_csr(), x) ** 2,
    "sparse.mm mean": lambda x: torch.sparse.mm(MATRIX.to_sparse_csr(), x, "mean") ** 2,
    "sparse.mm amax": lambda x: torch.sparse.mm(MATRIX.to_sparse_csr(), x, "amax") ** 2,
    "sparse.mm amin": lambda x: torch.sparse.mm(MATRIX.to_sparse_csr(), x, "amin") ** 2,
    "sparse.addmm": lambda x: torch.sparse.addmm(x[:2], MATRIX.to_sparse(), x**2, beta=0.5),
    "addmm of csr": lambda x: torch.addmm(x[:2], MATRIX.to_sparse_csr(), x**2, alpha=2.0),
    "bmm": lambda x: torch.bmm(MATRIX.to_sparse().unsqueeze(0), x.unsqueeze(0)) ** 2,
    "sum with a dense one": lambda x: (x.t() + MATRIX.to_sparse()) ** 2,
}

BUILT_INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda v: coo(v**2).to_dense(),
    "coo with a place twice": lambda v: coo(v**2, TWICE).to_dense(),
    "coalesced values": lambda v: coo(v**2, TWICE).coalesce().values() ** 2,
    "csr": lambda v: csr(v**2).to_dense(),
    "csr values": lambda v: csr(v**2).values() ** 2,
    "to csr": lambda v: coo(v**2).to_sparse_csr().to_dense(),
    "to_sparse": lambda v: (torch.outer(v, v).to_sparse().to_dense() * 2) ** 2,
    "to_sparse_csc": lambda v: torch.outer(v, v).to_sparse_csc().to_dense() ** 2,
    "product": lambda v: torch.sparse.mm(coo(v**2), DENSE) ** 2,
    "csr product": lambda v: (csr(v**2) @ DENSE) ** 2,
    "product from the left": lambda v: (DENSE[:, :2] @ coo(v**2)) ** 2,
    "product of both": lambda v: torch.sparse.mm(coo(v**2), v.unsqueeze(1)),
    "product of sparse ones": lambda v: torch.sparse.mm(coo(v), coo(v**2).t()).to_dense(),
    "sum": lambda v: torch.sparse.sum(coo(v**2)),
    "sum of an axis": lambda v: torch.sparse.sum(coo(v**2), 0).to_dense(),
    "softmax": lambda v: torch.sparse.softmax(coo(v**2), 1).to_dense(),
    "log_softmax": lambda v: torch.sparse.log_softmax(coo(v**2), 1).to_dense(),
    "scaled": lambda v: (coo(v**2) * 3 / 2).to_dense(),
    "times a dense one": lambda v: (coo(v**2) * MATRIX).to_dense(),
    "sum of two": lambda v: (coo(v**2) + MATRIX.to_sparse()).to_dense() ** 2,
    "difference": lambda v: (coo(v**2) - coo(v, TWICE)).to_dense() ** 2,
    "elementwise": lambda v: torch.sin(coo(v, TWICE)).to_dense(),
    "transposed": lambda v: coo(v**2).t().to_dense(),
    "mask": lambda v: torch.outer(v[:2], v).sparse_mask(MATRIX.to_sparse()).to_dense() ** 2,
    "sampled_addmm": lambda v: torch.sparse.sampled_addmm(
        MATRIX.to_sparse_csr(), torch.outer(v[:2], v), DENSE @ DENSE.t(), beta=0.5, alpha=2.0
    ).to_dense(),
    "spdiags": lambda v: torch.sparse.spdiags(
        v.unsqueeze(0) ** 2, torch.tensor([0]), (3, 3)
    ).to_dense(),
}

CASES = [
    *(pytest.param(f, DENSE, id=name) for name, f in CONSTANT_OPERAND.items()),
    *(pytest.param(f, VALUES, id=name) for name, f in BUILT_INSIDE.items()),
]


@pytest.mark.parametrize(("func", "x"), CASES)
def test_first_and_second_derivative_are_right(func: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Forward, in reverse, and nested, against central differences."""
    expected = central_jacobian(func, x)
    assert_close(jacfwd(func)(x), expected)
    assert_close(jacrev(func)(x), expected)
    assert_close(jacfwd(jacfwd(func))(x), central_jacobian(jacfwd(func), x))
    assert_close(jacrev(jacfwd(func))(x), central_jacobian(jacfwd(func), x))


def test_output_that_is_sparse_has_the_derivative_of_its_dense_form() -> None:
    """The Jacobian is dense."""
    assert_close(jacfwd(coo)(VALUES), central_jacobian(lambda v: coo(v).to_dense(), VALUES))


def test_layout_and_places_can_be_asked() -> None:
    """As of a tensor that is not traced."""

    def func(v: Tensor) -> Tensor:
        sparse = coo(v, TWICE)
        assert sparse.is_sparse
        assert sparse.layout is torch.sparse_coo
        assert sparse.shape == (2, 3)
        assert not sparse.is_coalesced()
        assert sparse.coalesce().indices().tolist() == [[0, 1], [2, 0]]
        assert sparse.to_sparse_csr().crow_indices().tolist() == [0, 1, 2]
        return sparse.to_dense()

    jacfwd(func)(VALUES)


@pytest.mark.parametrize(
    "func",
    [
        lambda v: coo(v).index_select(0, torch.tensor([0])).to_dense(),
        lambda v: torch.cat([coo(v), coo(v)]).to_dense(),
        lambda v: torch.outer(v, v).to_sparse_bsr((1, 1)).to_dense(),
        lambda v: coo(v) ** 0,
    ],
    ids=["index_select", "cat", "bsr", "power 0"],
)
def test_what_is_not_covered_is_refused(func: Callable[[Tensor], Tensor]) -> None:
    """Never a silent zero."""
    with pytest.raises(UnsupportedError, match="to_dense"):
        jacfwd(func)(VALUES)


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_elementwise_products_with_a_sparse_constant_are_refused_by_name(transform):
    constant = torch.eye(3, dtype=torch.float64).to_sparse()
    with pytest.raises(UnsupportedError, match=r"aten.mul.*expected a dense one.*to_dense"):
        transform(lambda x: (constant * x[:, None]).to_dense())(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_reduced_products_with_respect_to_the_sparse_factor(transform, reduce):
    def product(values: Tensor) -> Tensor:
        return torch.sparse.mm(csr(values), DENSE, reduce)

    assert_close(transform(product)(VALUES), central_jacobian(product, VALUES))


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda s: (torch.sparse.mm(s, DENSE) ** 2).sum(),
    "dense": lambda s: (s.to_dense() ** 3).sum(),
    "sum": lambda s: torch.sparse.sum(s.sin()),
    "with itself": lambda s: (s.to_dense() * (s * s).to_dense()).sum(),
}


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_with_respect_to_a_sparse_tensor(name: str, layout: torch.layout) -> None:
    """It is sparse, at the places of the tensor."""
    func = GRADIENTS[name]
    sparse = coo(VALUES).to_sparse(layout=layout) if layout is not torch.sparse_coo else coo(VALUES)
    expected = central_jacobian(lambda v: func(coo(v)), VALUES)
    for _ in range(3):
        gradient = grad(func)(sparse)
        assert gradient.layout is layout
        assert_close(gradient.to_dense(), coo(expected).to_dense())
    both, value = grad_and_value(lambda s, x: func(s) * x, argnums=(0, 1))(
        sparse, torch.ones((), dtype=torch.float64)
    )
    assert_close(both[0].to_dense(), coo(expected).to_dense())
    assert_close(both[1], value)


def test_a_place_that_occurs_twice_has_its_gradient_once() -> None:
    """As ``torch.autograd`` gives it: that of the coalesced tensor."""
    gradient = grad(lambda s: (s.to_dense() ** 2).sum())(coo(VALUES, TWICE))
    assert_close(gradient.to_dense(), 2 * coo(VALUES, TWICE).to_dense())


SQUARE = torch.tensor([[0, 1.5, 0], [2, 0, -3], [0.5, 0, 0]], dtype=torch.float64)
LAYOUTS = {
    "coo": Tensor.to_sparse,
    "csr": Tensor.to_sparse_csr,
    "csc": Tensor.to_sparse_csc,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transposed_square_matrices_are_no_views_of_the_same_elements(layout: str) -> None:
    matrix, x = LAYOUTS[layout](SQUARE), torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return (matrix @ (x * x)[:, None])[:, 0]

    slopes = 2 * SQUARE * x
    values = SQUARE @ (x * x)
    expected = 2 * slopes.t() @ slopes + torch.diag(4 * values @ SQUARE)
    for _ in range(4):
        torch.testing.assert_close(jacrev(f)(x), slopes)
        torch.testing.assert_close(jacfwd(f)(x), slopes)
        torch.testing.assert_close(hessian(lambda x: f(x).square().sum())(x), expected)
    if layout == "coo":
        torch.testing.assert_close(compile(jacrev(f), backend="eager")(x), slopes)
        squares = compile(hessian(lambda x: f(x).square().sum()), backend="eager")
        torch.testing.assert_close(squares(x), expected)
    else:
        with pytest.raises(UnsupportedError, match="compressed sparse layout"):
            compile(jacrev(f), backend="eager")(x)
    as_argument = compile(jacrev(lambda x, m: (m @ (x * x)[:, None])[:, 0]), backend="eager")
    torch.testing.assert_close(as_argument(x, matrix), slopes)
