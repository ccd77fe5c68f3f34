"""explain: lines of code, the table in a notebook, and the picture."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import pushforward
from pushforward import explain
from pushforward.planning.explain import size_text
from pushforward.tape.lines import Line, depth_here, line_of, noting_lines

X = torch.tensor([0.3, -0.7, 1.1])
WEIGHT = torch.randn(4, 3)


def helper(y):
    return y.exp()


def program(x):
    y = torch.tanh(WEIGHT @ x)
    return helper(y) * 2 if bool(y.sum() < 1e9) else y


def code_of(explanation):
    return [row.line and (Path(row.line.path).name, row.line.code) for row in explanation.rows]


# ---- Lines ----


def test_each_operator_has_the_innermost_line_of_the_caller():
    here = Path(__file__).name
    assert code_of(explain(program, X)) == [
        None,
        (here, "y = torch.tanh(WEIGHT @ x)"),
        (here, "y = torch.tanh(WEIGHT @ x)"),
        (here, "return y.exp()"),
        (here, "return helper(y) * 2 if bool(y.sum() < 1e9) else y"),
    ]
    text = str(explain(program, X))
    assert f"{here}:{helper.__code__.co_firstlineno + 1}  return y.exp()" in text


def test_lines_are_the_same_once_a_function_is_trusted():
    expected = code_of(explain(program, X))
    for _ in range(4):
        pushforward.jacobian(program)(X)
    assert code_of(explain(program, X)) == expected


def test_of_a_module_the_line_is_that_of_pytorch():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())
    assert code_of(explain(net, X))[-1] == ("activation.py", "return torch.tanh(input)")


def test_what_is_called_directly_has_no_line():
    explanation = explain(torch.sin, X)
    assert code_of(explanation) == [None, None]
    assert "line" not in str(explanation)


def test_lines_are_found_inside_transforms_and_custom_functions():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

    def nested(x):
        gradient = pushforward.grad(lambda x: x.sin().sum())(x)
        return Cube.apply(gradient)

    codes = [code for _, code in filter(None, code_of(explain(nested, X)))]
    assert codes[-1] == "return Cube.apply(gradient)"
    assert all("nested" not in code and "explain" not in code for code in codes)
    assert any("x.sin()" in code or "grad(" in code for code in codes)


def test_writes_into_views_have_lines():
    def filled(x):
        y = torch.zeros(4)
        y[1:] = x.sin()
        return y * 2

    codes = [code for _, code in filter(None, code_of(explain(filled, X)))]
    assert "y[1:] = x.sin()" in codes
    assert codes[-1] == "return y * 2"


@pytest.mark.parametrize(("is_on", "checks_nan"), [(False, True), (True, True), (True, False)])
def test_anomaly_mode_is_as_before(is_on, checks_nan):
    with torch.autograd.set_detect_anomaly(is_on, checks_nan):
        explain(program, X)
        with pytest.raises(ZeroDivisionError):
            explain(lambda x: 1 / 0, X)
        assert torch.is_anomaly_enabled() == is_on
        assert torch.is_anomaly_check_nan_enabled() == checks_nan
        seen = []
        explain(lambda x: seen.append(torch.is_anomaly_check_nan_enabled()) or x, X)
        assert seen == [False]


def test_a_node_made_without_anomaly_mode_has_no_line():
    x = X.clone().requires_grad_()
    assert line_of(x.sin().grad_fn, 0) is None
    depth = depth_here()
    with noting_lines():
        node = x.cos().grad_fn
    found = line_of(node, depth - 1)
    assert found is not None
    assert found.code == "node = x.cos().grad_fn"
    assert line_of(node, depth) is None
    assert str(Line("/a/b.py", 3, "")) == "b.py:3"


# ---- Notebook ----


def test_notebooks_get_a_table_with_everything_escaped():
    html = explain(program, X)._repr_html_()
    assert html.count("<tr>") == 1 + 5 + len(explain(program, X).plan.predictions)
    assert "y.sum() &lt; 1e9" in html
    assert "aten.tanh.default" in html
    assert "memory: blocks at most" in html


def test_blocks_are_shown_as_they_are_pushed_where_the_order_is_mixed():
    explanation = explain(program, X, mode="cross")
    assert explanation.plan.mode == "cross"
    assert "eliminate" in str(explanation)


# ---- Picture ----


def pictures(explanation):
    ax = explanation.plot(Figure().subplots())
    return [image.get_array() for image in ax.images], [text.get_text() for text in ax.texts], ax


def two(x, y):
    return x.sin(), (x[:, None] * y).sum(0)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse", "cross"])
def test_every_variable_is_drawn(mode):
    explanation = explain(two, X, torch.rand(2), argnums=(0, 1), mode=mode)
    cells, names, ax = pictures(explanation)
    assert len(cells) == len(explanation.rows)
    assert names[0] == "v0 input 3"
    assert any(name.endswith(" sin") for name in names)
    assert explanation.plan.mode in ax.get_title()


def test_pictures_show_what_is_diagonal_and_what_is_dense():
    cells, _, _ = pictures(explain(lambda x: x.sin().cumsum(0), X, mode="forward"))
    assert torch.equal(torch.tensor(cells[0]), torch.eye(3))  # input
    assert torch.equal(torch.tensor(cells[1]), torch.eye(3))  # sin
    assert bool((torch.tensor(cells[2]) == 1).all())


def test_the_batch_stays_block_diagonal_in_pictures():
    net = torch.nn.Linear(2, 3)
    cells, _, _ = pictures(explain(net, torch.rand(4, 2), mode="forward"))
    expected = torch.block_diag(*[torch.ones(3, 2)] * 4)
    assert torch.equal(torch.tensor(cells[-1]), expected)


@pytest.mark.parametrize("shape", [(0,), (), (1, 1), (2, 0, 3), (40, 50)])
def test_inputs_of_any_shape_are_drawn(shape):
    explanation = explain(lambda x: x.exp() * 2, torch.rand(shape))
    assert len(pictures(explanation)[0]) == 3


def test_long_programs_are_drawn_without_names():
    def steps(x):
        for _ in range(130):
            x = x.sin()
        return x

    cells, names, _ = pictures(explain(steps, X))
    assert (len(cells), names) == (131, [])


def test_new_axes_are_made_in_a_size_that_fits():
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    ax = explain(program, X).plot()
    assert all(math.isfinite(size) and size > 1 for size in ax.figure.get_size_inches())
    pyplot.close(ax.figure)


SIZES = {0: "0 B", 80: "80 B", 1000: "1000 B", 1023: "1023 B", 1024: "1 KiB", 1500: "1.46 KiB"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("factor", "unit"), [(1, "B"), (1024, "KiB"), (1024**2, "MiB")])
def test_sizes_are_no_powers_of_ten(size, factor, unit):
    larger = {"B": "KiB", "KiB": "MiB", "MiB": "GiB", "GiB": "TiB"}
    number, own = SIZES[size].split()
    expected = unit if own == "B" else larger[unit]
    assert size_text(size * factor) == (f"{number} {expected}" if size else "0 B")
