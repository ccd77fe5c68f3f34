"""What spy draws, read back from the axes (matplotlib's Agg, no window)."""

import io

import numpy as np
import pytest
import scipy.sparse
import torch
from matplotlib.figure import Figure

from pushforward import jacobian, spy
from pushforward.errors import ArgumentTypeError
from pushforward.sparse.coloring.choice import coloring
from pushforward.sparse.pattern import Pattern

# PyTorch's warning about its compressed layouts, in the words that are common to both of them.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")


def axes():
    return Figure().subplots()


def drawn(ax) -> np.ndarray:
    """Return the colors of the cells, -1 where there is none."""
    return ax.images[0].get_array().astype(float).filled(np.nan)


def is_filled(ax) -> np.ndarray:
    return ~np.isnan(drawn(ax))


MATRIX = torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 0], [4, 0, 0, 5]])


@pytest.mark.parametrize(
    "form",
    [
        lambda m: m,
        Pattern.from_matrix,
        lambda m: m.to_sparse(),
        lambda m: m.to_sparse_csr(),
        lambda m: m.to_sparse_csc(),
        lambda m: scipy.sparse.csr_array(m.numpy()),
    ],
    ids=["dense", "pattern", "coo", "csr", "csc", "scipy"],
)
def test_the_nonzeros_are_filled_whatever_holds_them(form):
    ax = axes()
    assert spy(form(MATRIX), ax) is ax
    assert np.array_equal(is_filled(ax), MATRIX.numpy() != 0)
    assert ax.get_title() == "3×4, 5 non-zeros"


def test_rows_go_down_and_columns_to_the_right():
    ax = spy(MATRIX, axes())
    assert ax.get_ylim() == (2.5, -0.5)
    assert ax.get_xlim() == (-0.5, 3.5)


@pytest.mark.parametrize(
    ("structure", "recovery"),
    [
        *[(name, "direct") for name in ("column", "row", "bidirectional", "symmetric")],
        *[(name, "substitution") for name in ("bidirectional", "symmetric")],
    ],
)
def test_entries_have_the_color_of_the_seed_that_they_are_read_from(structure, recovery):
    arrow = torch.eye(7)
    arrow[0], arrow[:, 0] = 1, 1
    found = coloring(arrow, structure=structure, recovery=recovery)
    seen = drawn(spy(found, axes()))
    assert np.array_equal(~np.isnan(seen), arrow.numpy() != 0)
    pushed, pulled = found.seeds()
    for row, col in arrow.nonzero().tolist():
        color = int(seen[row, col])
        if color < found.num_pushed:
            # Of a symmetric matrix, the entry may be read as its mirror image.
            mirrored = structure == "symmetric" and bool(pushed[color, row])
            assert mirrored or bool(pushed[color, col])
        else:
            assert bool(pulled[color - found.num_pushed, row])
    assert set(seen[~np.isnan(seen)].astype(int)) == set(range(found.num_colors))


def test_every_entry_alone_in_its_color_is_read_there():
    """Products with one seed set to zero change the entries of its color, and no others."""
    matrix = torch.rand(6, 9) * (torch.rand(6, 9) < 0.4)
    found = coloring(matrix, structure="bidirectional")
    pushed, pulled = found.seeds()
    columns, rows = pushed @ matrix.T, pulled @ matrix
    for color in range(found.num_colors):
        fewer_columns, fewer_rows = columns.clone(), rows.clone()
        if color < found.num_pushed:
            fewer_columns[color] = 0
        else:
            fewer_rows[color - found.num_pushed] = 0
        values = found.decompress(fewer_columns, fewer_rows)
        assert torch.equal(values == 0, found.entry_colors == color)


def test_a_large_matrix_is_drawn_in_fewer_cells_and_nothing_vanishes():
    size = 100_000
    lone = Pattern.from_coo((size, 2 * size), torch.tensor([0, 70_001]), torch.tensor([5, 199_999]))
    filled = is_filled(spy(lone, axes()))
    assert filled.shape == (400, 400)
    assert list(zip(*filled.nonzero(), strict=True)) == [(0, 0), (280, 399)]


def test_blocks_are_outlined():
    batch = torch.rand(5, 3)
    ax = spy(jacobian(lambda x: x.cumsum(1)[:, 1:], output="bsr")(batch), axes())
    (outlines,) = ax.collections
    corners = [path.get_extents() for path in outlines.get_paths()]
    boxes = [(c.x0, c.y0, c.width, c.height) for c in corners]
    assert boxes == [(3 * i - 0.5, 2 * i - 0.5, 3, 2) for i in range(5)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_nothing_is_drawn_of_nothing(shape):
    ax = spy(torch.zeros(shape), axes())
    ax.figure.savefig(io.BytesIO())
    assert ax.get_title() == f"{shape[0]}×{shape[1]}, 0 non-zeros"
    assert not any(is_filled(ax).any() for _ in ax.images)


def test_new_axes_are_made_where_none_are_given():
    import matplotlib as mpl

    before = mpl.get_backend(auto_select=False)
    mpl.use("Agg")
    try:
        ax = spy(MATRIX)
        assert ax.figure is not None
    finally:
        from matplotlib import pyplot

        pyplot.close("all")
        if before is not None:
            mpl.use(before)


def test_anything_else_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"expected a torch tensor with two axes"):
        spy([1, 2], axes())
