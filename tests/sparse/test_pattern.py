import pytest
import scipy.sparse
import torch

from pushforward.errors import ArgumentTypeError, ArgumentValueError
from pushforward.sparse.pattern import Pattern

BETA = "ignore:Sparse .* tensor support is in beta state"
pytestmark = pytest.mark.filterwarnings(BETA)

SHAPES = [(3, 5), (5, 3), (1, 4), (4, 1), (0, 3), (3, 0), (0, 0), (6, 4)]
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]


def random_mask(shape: tuple[int, int], density: float = 0.4) -> torch.Tensor:
    return torch.rand(shape) < density


def dense(pattern: Pattern) -> torch.Tensor:
    mask = torch.zeros(pattern.shape, dtype=torch.bool)
    mask[pattern.rows, pattern.cols] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dense_tensor_gives_its_nonzeros(shape):
    mask = random_mask(shape)
    pattern = Pattern.from_matrix(mask)
    assert torch.equal(dense(pattern), mask)
    assert pattern.nnz == int(mask.sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_layouts_there_and_back(shape, layout):
    mask = random_mask(shape)
    pattern = Pattern.from_matrix(mask)
    sparse = pattern.to_torch(layout=layout)
    assert sparse.layout == layout
    assert torch.equal(sparse.to_dense(), mask)
    assert Pattern.from_matrix(sparse) == pattern
    values = torch.rand(pattern.nnz, dtype=torch.float64)
    matrix = torch.zeros(shape, dtype=torch.float64)
    matrix[pattern.rows, pattern.cols] = values
    assert torch.equal(pattern.to_torch(values, layout=layout).to_dense(), matrix)


@pytest.mark.parametrize("layout", [torch.sparse_bsr, torch.sparse_bsc])
def test_blocks_count_whole(layout):
    matrix = torch.zeros(4, 9)
    matrix[0, 1] = matrix[3, 8] = 1.0
    blocked = matrix.to_sparse(layout=layout, blocksize=(2, 3))
    expected = torch.zeros(4, 9, dtype=torch.bool)
    expected[:2, :3] = expected[2:, 6:] = True
    assert torch.equal(dense(Pattern.from_matrix(blocked)), expected)


@pytest.mark.parametrize("form", ["coo", "csr", "csc", "bsr", "dia", "lil"])
@pytest.mark.parametrize("make", [scipy.sparse.coo_array, scipy.sparse.coo_matrix])
def test_scipy_formats_there_and_back(form, make):
    mask = random_mask((5, 7))
    pattern = Pattern.from_matrix(make(mask.numpy()).asformat(form))
    if form not in ("bsr", "dia"):  # these store zeros around the entries
        assert torch.equal(dense(pattern), mask)
    assert not (mask & ~dense(pattern)).any()
    assert (pattern.to_scipy().toarray() == dense(pattern).numpy()).all()


def test_stored_zeros_count_and_duplicates_count_once():
    rows, cols = torch.tensor([2, 0, 2, 0]), torch.tensor([1, 1, 1, 0])
    matrix = torch.sparse_coo_tensor(
        torch.stack((rows, cols)), torch.zeros(4), (3, 2), check_invariants=True
    )
    pattern = Pattern.from_matrix(matrix)
    assert pattern.rows.tolist() == [0, 0, 2]
    assert pattern.cols.tolist() == [0, 1, 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_transpose(shape):
    mask = random_mask(shape)
    pattern = Pattern.from_matrix(mask)
    assert torch.equal(dense(pattern.transpose()), mask.T)
    assert pattern.transpose().transpose() == pattern
    values = torch.rand(pattern.nnz)
    flipped = pattern.transpose().to_torch(values[pattern.by_columns]).to_dense()
    assert torch.equal(flipped, pattern.to_torch(values).to_dense().T)


@pytest.mark.parametrize("shape", SHAPES)
def test_union(shape):
    one, two = random_mask(shape), random_mask(shape)
    assert torch.equal(dense(Pattern.from_matrix(one) | Pattern.from_matrix(two)), one | two)


def test_rows_are_kept_by_a_mask():
    mask = random_mask((6, 4))
    kept = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(dense(Pattern.from_matrix(mask).of_rows(kept)), mask & kept[:, None])


def test_equal_patterns_are_equal_and_hash_alike():
    mask = random_mask((4, 6))
    one, two = Pattern.from_matrix(mask), Pattern.from_matrix(mask.double())
    assert one == two
    assert hash(one) == hash(two)
    assert one != one.transpose()
    assert one != Pattern.from_matrix(torch.ones(4, 6))
    assert one != "a pattern"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_differentiable(layout):
    pattern = Pattern.from_matrix(torch.eye(3))
    values = torch.ones(3, dtype=torch.float64, requires_grad=True)
    pattern.to_torch(values, layout).to_dense().diagonal().pow(2).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [2, 2, 2]


def test_symmetry_is_seen():
    assert Pattern.from_matrix(torch.tensor([[0, 1], [1, 1]])).is_symmetric
    assert not Pattern.from_matrix(torch.tensor([[0, 1], [0, 1]])).is_symmetric
    assert not Pattern.from_matrix(torch.ones(2, 3)).is_symmetric


@pytest.mark.parametrize("shape", [(4, 4), (1000, 1000), (3, 4000), (4000, 3), (7, 300), (0, 5)])
def test_the_picture_is_small_and_shows_every_corner(shape):
    mask = torch.zeros(shape)
    if mask.numel():
        mask[0, 0] = mask[-1, -1] = 1
    text = str(Pattern.from_matrix(mask))
    head, *rest = text.splitlines()
    assert head == f"Pattern({shape[0]}×{shape[1]}, {int(mask.sum())} non-zeros)"
    drawn = rest[1:]
    assert all(len(line) <= 40 for line in drawn)
    assert len(drawn) <= 20
    if drawn:
        assert ord(drawn[0][0]) & 1
        assert ord(drawn[-1][-1]) > 0x2800


@pytest.mark.parametrize(
    ("shape", "indptr", "indices", "told"),
    [
        ((2, 2), [0, 1], [0], "shapes (3,) and (nnz,)"),
        ((2, 2), [0, 2, 1], [0], "increase from 0 to 1"),
        ((2, 2), [0, 1, 3], [0, 0], "increase from 0 to 2"),
        ((2, 2), [0, 1, 2], [0, 2], "columns in [0, 2)"),
        ((2, 2), [0, 2, 2], [1, 0], "increase within each row"),
        ((2, 2), [0, 2, 2], [1, 1], "increase within each row"),
        ((-1, 2), [0], [], "two sizes"),
    ],
)
def test_tensors_that_are_no_pattern_are_refused(shape, indptr, indices, told):
    with pytest.raises(ArgumentValueError) as caught:
        Pattern(shape, torch.tensor(indptr), torch.tensor(indices, dtype=torch.int64))
    assert told in str(caught.value)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ArgumentTypeError, match="got list"):
        Pattern.from_matrix([[1]])
    with pytest.raises(ArgumentTypeError, match=r"got \(3,\)"):
        Pattern.from_matrix(torch.ones(3))
    with pytest.raises(ArgumentValueError, match="columns in"):
        Pattern.from_coo((2, 2), torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(ArgumentValueError, match="one for each entry"):
        Pattern.from_matrix(torch.eye(2)).to_torch(torch.ones(3))
    with pytest.raises(ArgumentValueError, match="equal shapes"):
        Pattern.from_matrix(torch.ones(2, 3)) | Pattern.from_matrix(torch.ones(3, 2))
