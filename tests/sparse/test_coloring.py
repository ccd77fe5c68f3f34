"""Colourings: every entry can be read back, the definitions hold, and counts are what they are known to be."""

import itertools

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pushforward.errors import ArgumentValueError
from pushforward.sparse.coloring import acyclic, columns, compiled, forest, orders, star
from pushforward.sparse.coloring.acyclic import acyclic_coloring
from pushforward.sparse.coloring.choice import coloring
from pushforward.sparse.coloring.columns import color_columns
from pushforward.sparse.coloring.graph import Graph, adjacency_graph, bipartite_graph
from pushforward.sparse.coloring.lattice import is_valid, lattice_coloring
from pushforward.sparse.coloring.orders import ORDERS, column_order
from pushforward.sparse.coloring.result import Coloring
from pushforward.sparse.coloring.star import star_coloring
from pushforward.sparse.pattern import Pattern

LOOPS = [
    acyclic._acyclic_first_fit,
    columns._first_fit,
    forest._find_nodes,
    forest._peel,
    orders._count_neighbors,
    orders._take,
    star._star_first_fit,
]

CASES = [
    ("column", "direct"),
    ("row", "direct"),
    ("bidirectional", "direct"),
    ("bidirectional", "substitution"),
    ("symmetric", "direct"),
    ("symmetric", "substitution"),
]


def values_of(pattern: Pattern, *, symmetric: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix with small whole numbers at the entries, and these in CSR order: all sums are exact."""
    matrix = torch.zeros(pattern.shape, dtype=torch.float64)
    matrix[pattern.rows, pattern.cols] = torch.randint(1, 100, (pattern.nnz,)).double()
    if symmetric:
        matrix = matrix.triu() + matrix.triu(1).T
    return matrix, matrix[pattern.rows, pattern.cols]


def check_recovery(found: Coloring) -> None:
    """Check that the entries come back from the products with the seeds, and that the bound is one."""
    matrix, values = values_of(found.pattern, symmetric=found.structure == "symmetric")
    of_columns, of_rows = found.seeds(torch.float64)
    assert torch.equal(found.decompress(of_columns @ matrix.T, of_rows @ matrix), values)
    assert len(of_columns) + len(of_rows) == found.num_colors >= found.lower_bound
    assert all((seed != 0).any() for seed in (*of_columns, *of_rows))
    if found.recovery == "direct":
        assert not found.reading.rounds


@st.composite
def patterns(draw, *, symmetric: bool = False):
    """Draw a small pattern: of any density, and with dense or empty rows and columns."""
    rows = draw(st.integers(0, 9))
    cols = rows if symmetric else draw(st.integers(0, 9))
    mask = torch.tensor(
        draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols)), dtype=torch.bool
    ).reshape(rows, cols)
    if symmetric:
        mask = mask.triu() | mask.triu().T
    for fill in (True, False):
        if rows and cols and draw(st.booleans()):
            row, col = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
            mask[row] = mask[:, row if symmetric else col] = fill
    return Pattern.from_matrix(mask)


@pytest.mark.parametrize(("structure", "recovery"), CASES)
@pytest.mark.parametrize("order", [*ORDERS, "best"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_entries_of_any_pattern_come_back(structure, recovery, order, data):
    pattern = data.draw(patterns(symmetric=structure == "symmetric"))
    check_recovery(coloring(pattern, structure=structure, recovery=recovery, order=order))


FAMILIES = {
    "brusselator": lambda: families.brusselator(7),
    "grid": lambda: families.grid(6, 5),
    "grid3": lambda: families.grid(4, 3, 5),
    "arrow": lambda: families.arrow(30),
    "band": lambda: families.band(40, 5),
    "wide": lambda: families.random(20, 60, 0.1),
    "tall": lambda: families.random(60, 20, 0.1),
    "symmetric": lambda: families.random_symmetric(50, 0.1),
    "hollow": lambda: families.random_symmetric(50, 0.1, diagonal=False),
    "diagonal": lambda: families.band(9, 0),
    "full": lambda: families.random(7, 7, 1.1),
    "empty": lambda: families.random(5, 8, 0.0),
    "no rows": lambda: families.random(0, 4, 1.0),
    "nothing": lambda: families.random(0, 0, 1.0),
}


@pytest.mark.parametrize(("structure", "recovery"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_entries_of_a_family_come_back(structure, recovery, family):
    pattern = FAMILIES[family]()
    if structure == "symmetric" and not pattern.is_symmetric:
        pattern = Pattern.from_coo((max(pattern.shape),) * 2, pattern.rows, pattern.cols)
        pattern = pattern | pattern.transpose()
    for order in (*ORDERS, "best"):
        check_recovery(coloring(pattern, structure=structure, recovery=recovery, order=order))


def adjacency(graph: Graph) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(graph.num_vertices)]
    for tail, head in zip(graph.tails.tolist(), graph.heads.tolist(), strict=True):
        near[tail].add(head)
        near[head].add(tail)
    return near


def has_two_colored_path(graph: Graph, colors: list[object]) -> bool:
    """Whether four vertices in a path have two colours, or two neighbours one (Coleman, Moré 1984)."""
    near = adjacency(graph)
    if any(colors[v] == colors[w] for v in range(graph.num_vertices) for w in near[v]):
        return True
    return any(
        colors[a] == colors[c] and colors[b] == colors[d]
        for b in range(graph.num_vertices)
        for c in near[b]
        for a in near[b] - {c}
        for d in near[c] - {a, b}
    )


def has_two_colored_cycle(graph: Graph, colors: list[object]) -> bool:
    """Whether vertices of two colours form a cycle, or two neighbours have one colour."""
    near = adjacency(graph)
    if any(colors[v] == colors[w] for v in range(graph.num_vertices) for w in near[v]):
        return True
    for pair in itertools.combinations(set(colors), 2):
        inside = {v for v in range(graph.num_vertices) if colors[v] in pair}
        num_edges = sum(len(near[v] & inside) for v in inside) // 2
        num_trees = 0
        left = set(inside)
        while left:
            num_trees += 1
            reached = [left.pop()]
            while reached:
                found = near[reached.pop()] & left
                left -= found
                reached += found
        if num_edges > len(inside) - num_trees:
            return True
    return False


@pytest.mark.parametrize("order", ORDERS)
def test_columns_of_one_color_meet_in_no_row(order):
    for shape in ((20, 30), (30, 20), (40, 40)):
        pattern = families.random(*shape, 0.08)
        colors = color_columns(pattern, column_order(pattern, order))
        for row in range(shape[0]):
            met = colors[pattern.cols[pattern.rows == row]].tolist()
            assert len(set(met)) == len(met)
            assert -1 not in met


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("density", [0.05, 0.15, 0.4])
def test_star_and_acyclic_colorings_are_what_they_are_called(order, density):
    for _ in range(5):
        symmetric = families.random_symmetric(18, density)
        graphs = adjacency_graph(symmetric), bipartite_graph(families.random(9, 12, density))
        for graph in graphs:
            for hubs_first in (False, True):
                star_colors = star_coloring(graph, graph.order(order), hubs_first=hubs_first)
                assert not has_two_colored_path(graph, named(graph, star_colors))
                acyclic_colors = acyclic_coloring(graph, graph.order(order), hubs_first=hubs_first)
                assert not has_two_colored_cycle(graph, named(graph, acyclic_colors))


def named(graph: Graph, colors: torch.Tensor | None) -> list[object]:
    """Return colours that no two sides of a bipartite graph share."""
    assert colors is not None
    num_cols = int(graph.heads.min()) if graph.is_bipartite and len(graph.heads) else 0
    assert int(colors.min()) >= 0
    return [(color, vertex < num_cols) for vertex, color in enumerate(colors.tolist())]


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_holds_every_column_once(order):
    for pattern in (families.random(15, 25, 0.2), families.arrow(200), families.random(3, 0, 1.0)):
        assert column_order(pattern, order).sort().values.tolist() == list(range(pattern.shape[1]))


def test_smallest_last_leaves_the_core_first():
    mask = torch.zeros(8, 8)
    mask[:4, :4] = 1  # four columns that meet, and a chain that hangs on
    for k in range(3, 7):
        mask[k, k] = mask[k, k + 1] = 1
    order = column_order(Pattern.from_matrix(mask), "smallest_last")
    assert set(order[:4].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_counts_of_an_arrow_matrix(size):
    pattern = families.arrow(size)
    assert coloring(pattern).num_colors == size
    assert coloring(pattern, structure="bidirectional").num_colors == min(size, 3)
    assert coloring(pattern, structure="symmetric").num_colors == min(size, 2)


@pytest.mark.parametrize("width", [1, 2, 4, 5, 10])
def test_counts_of_a_band_matrix(width):
    """As in Coleman and Moré (1984) and Coleman and Cai (1986)."""
    pattern = families.band(100, width)
    assert coloring(pattern).num_colors == 2 * width + 1
    assert coloring(pattern, structure="row").num_colors == 2 * width + 1
    assert coloring(pattern, structure="symmetric").num_colors == 2 * width + 1
    acyclic = coloring(pattern, structure="symmetric", recovery="substitution")
    assert acyclic.num_colors == width + 1 == acyclic.lower_bound


def test_a_hub_without_a_diagonal_needs_one_color():
    mask = torch.zeros(6, 6)
    mask[2] = mask[:, 2] = 1
    mask[2, 2] = 0
    found = coloring(mask, structure="symmetric")
    assert found.num_colors == 1
    assert found.column_colors.tolist() == [-1, -1, 0, -1, -1, -1]


def test_a_coloring_with_too_many_colors_is_given_up():
    graph = adjacency_graph(families.band(30, 4))
    for color in (star_coloring, acyclic_coloring):
        found = color(graph, graph.order("natural"))
        assert found is not None
        num_colors = int(found.max()) + 1
        assert color(graph, graph.order("natural"), most=num_colors) is not None
        assert color(graph, graph.order("natural"), most=num_colors - 1) is None


@pytest.mark.parametrize("recovery", ["direct", "substitution"])
def test_an_order_that_takes_a_color_for_each_column_gives_way(recovery):
    """The first row and column of an arrow matrix, coloured last, make all others differ."""
    pattern = families.arrow(2000)
    backwards = Pattern.from_coo(pattern.shape, 1999 - pattern.rows, 1999 - pattern.cols)
    for order in ORDERS:
        found = coloring(backwards, structure="bidirectional", recovery=recovery, order=order)
        assert found.num_colors <= 4
        check_recovery(found)


def test_decompression_goes_under_vmap():
    pattern = families.band(9, 2)
    for structure, recovery in CASES:
        found = coloring(pattern, structure=structure, recovery=recovery)
        parts = torch.rand(4, found.num_pushed, 9), torch.rand(4, found.num_pulled, 9)
        each = [found.decompress(*pair) for pair in zip(*parts, strict=True)]
        assert torch.equal(torch.func.vmap(found.decompress)(*parts), torch.stack(each))


def test_a_full_matrix_needs_every_column():
    for structure, recovery in CASES[:5]:
        found = coloring(torch.ones(6, 6), structure=structure, recovery=recovery)
        assert found.num_colors == found.lower_bound == 6


def test_loops_give_the_same_compiled_and_not(monkeypatch):
    pytest.importorskip("numba")
    pattern = families.random_symmetric(60, 0.1)

    def all_colors() -> list[list[int]]:
        return [
            coloring(
                pattern, structure=structure, recovery=recovery, order=order
            ).column_colors.tolist()
            for structure, recovery in CASES
            for order in ORDERS
        ]

    for loop in LOOPS:
        monkeypatch.setattr(loop, "compiled", None)
    monkeypatch.setattr(compiled, "has_numba", lambda: False)
    plain = all_colors()
    monkeypatch.setattr(compiled, "has_numba", lambda: True)
    monkeypatch.setattr(compiled, "FEW", 0)
    assert all_colors() == plain


def test_decompression_is_differentiable_and_takes_blocks():
    pattern = families.band(7, 2)
    for structure, recovery in CASES:
        found = coloring(pattern, structure=structure, recovery=recovery)
        shapes = ((found.num_pushed, 7, 2), (found.num_pulled, 7, 2))
        parts = [torch.rand(s, dtype=torch.float64, requires_grad=True) for s in shapes]
        assert found.decompress(*parts).shape == (pattern.nnz, 2)
        assert torch.autograd.gradcheck(found.decompress, parts)


def test_the_text_tells_colors_bound_and_order():
    found = coloring(families.arrow(9), structure="bidirectional")
    assert str(found) == (
        "3 colors (2 of columns, 1 of rows) (lower bound 3) for 25 entries of 9×9: "
        "bidirectional, order largest_first, hubs first"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"structure": "star"}, "structure: got 'star', expected one of column, row"),
        ({"recovery": "x"}, "recovery: got 'x', expected one of direct, substitution"),
        ({"order": "random"}, "order: got 'random', expected one of natural"),
        ({"recovery": "substitution"}, "structure: got 'column', expected 'symmetric' or"),
        (
            {"structure": "symmetric"},
            "pattern: got Pattern(2×3, 6 non-zeros), expected a symmetric",
        ),
    ],
)
def test_options_that_do_not_exist_are_refused(options, told):
    with pytest.raises(ArgumentValueError) as caught:
        coloring(torch.ones(2, 3), **options)
    assert told in str(caught.value)


def test_products_of_the_wrong_shape_are_refused():
    found = coloring(families.band(5, 1))
    with pytest.raises(ArgumentValueError, match=r"pushed: got \(3, 4\), expected \(3, 5\)"):
        found.decompress(torch.ones(3, 4))
    with pytest.raises(ArgumentValueError, match=r"pushed: got None, expected \(3, 5\)"):
        found.decompress()


@pytest.mark.parametrize("size", [6, 12, 30])
def test_six_colors_for_the_brusselator_where_six_divides_the_size(size):
    for structure in ("column", "row", "bidirectional"):
        assert coloring(families.brusselator(size), structure=structure).num_colors == 6


@pytest.mark.parametrize("size", [7, 8, 13, 16, 20, 22, 26, 32, 37])
def test_at_most_eight_colors_for_the_brusselator(size):
    assert coloring(families.brusselator(size)).num_colors <= 8


@pytest.mark.parametrize("sizes", [(9,), (7, 9), (10, 10), (5, 7, 8)])
def test_a_grid_needs_as_many_colors_as_its_stencil_has_points(sizes):
    assert coloring(families.grid(*sizes)).num_colors == 2 * len(sizes) + 1


def test_a_lattice_leaves_empty_columns_without_a_color():
    pattern = families.grid(12, 12)
    kept = pattern.cols % 12 != 5
    pattern = Pattern.from_coo(pattern.shape, pattern.rows[kept], pattern.cols[kept])
    colors = lattice_coloring(pattern, 5, 8)
    assert colors is not None
    assert is_valid(pattern, colors)
    assert (colors < 0).nonzero().squeeze(1).tolist() == list(range(5, 144, 12))
    assert colors.unique().tolist() == list(range(-1, int(colors.max()) + 1))
