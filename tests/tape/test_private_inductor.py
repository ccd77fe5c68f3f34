"""What we expect of the private names of Inductor: a new PyTorch breaks here."""

import functools
import importlib
import itertools

import pytest
import torch
from torch import fx

from pushforward.tape import private_inductor as private
from pushforward.tape.private_compiler import make_fx

aten = torch.ops.aten
W = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_inductor_draws_what_plain_calls_draw():
    graph = make_fx(lambda x: [x + torch.rand(3), x.cos()], [torch.ones(3)], "fake")
    compiled = private.inductor(graph, [torch.ones(3)], False)
    torch.manual_seed(1)
    found = compiled([torch.zeros(3)])
    torch.manual_seed(1)
    torch.testing.assert_close(found, [torch.rand(3), torch.ones(3)])


def test_inductor_repeats_less_in_its_loops_than_by_itself(monkeypatch):
    config = importlib.import_module("torch._inductor.config")
    graphs = importlib.import_module("torch._inductor.graph")
    seen, run = [], graphs.GraphLowering.run

    def watched(lowering, *args):
        seen.append(config.realize_opcount_threshold)
        return run(lowering, *args)

    monkeypatch.setattr(graphs.GraphLowering, "run", watched)
    before = config.realize_opcount_threshold
    x = torch.rand(41)
    graph = make_fx(lambda x: [x.sin() * x.flip(0)], [x], "fake")
    with config.patch(force_disable_caches=True):
        compiled = private.inductor(graph, [x], False)
    torch.testing.assert_close(compiled([x]), [x.sin() * x.flip(0)])
    assert set(seen) == {private.MAX_INLINED}
    assert before is None or before > private.MAX_INLINED
    assert config.realize_opcount_threshold == before


@pytest.mark.parametrize(
    ("func", "is_shortened"),
    [
        (lambda x: [x.sin() * 2, x.exp()], True),
        (lambda x: [(x @ W).tanh() @ W.t()], True),
        (lambda x: [(x.sin() * 2).t()], True),  # a view of memory that nobody else has
        (lambda x: [x.sin(), x.view(3, 2)], False),  # memory of the input
        (lambda x: [y := x.sin(), y.view(3, 2)], False),  # memory of each other
        (lambda x: [x.cos(), x.new_ones(0)], True),
    ],
)
@pytest.mark.parametrize("is_cpp", [False, True])
def test_a_graph_is_called_by_itself_where_outputs_share_no_memory(func, is_shortened, is_cpp):
    x = torch.rand(2, 3)
    compiled = private.inductor(make_fx(func, [x], "fake"), [x], is_cpp)
    for number in range(4):
        x = torch.rand(2, 3) + number
        given = [x]
        found = compiled(given)
        assert given == [x]
        torch.testing.assert_close([*found], func(x))
    assert (compiled._direct is not None) == is_shortened
    if not is_shortened:
        found[1].zero_()
        torch.testing.assert_close([*compiled([x])], func(x))


def graph_of(func, *inputs):
    return make_fx(lambda *xs: [func(*xs)], inputs, "fake")


def test_graphs_with_products_are_cpp_if_it_reaches_all_they_call():
    x, weight = torch.rand(2, 3), torch.rand(4, 3, 3)
    yes = [
        graph_of(torch.mm, x, W),
        graph_of(lambda x: torch.softmax(x @ W, 0).sort().values, x),
        graph_of(lambda x: torch.addmm(x, x, x.t() @ x).erfinv(), x),
        graph_of(lambda x: (x @ W).tanh_().add_(1), x),
        graph_of(torch.conv1d, torch.rand(1, 3, 8), weight),
    ]
    no = [
        graph_of(torch.sin, x),  # loops alone
        graph_of(lambda x: torch.linalg.solve(x @ x.t(), x), x),  # which C++ has to look up
        graph_of(lambda x: x.to(torch.complex64) @ W.to(torch.complex64), x),
        graph_of(lambda x: torch.poisson(x @ W), x),
    ]
    assert [private.pays_in_cpp(g) for g in yes] == [True] * len(yes)
    assert [private.pays_in_cpp(g) for g in no] == [False] * len(no)


def test_one_large_product_is_called_from_python():
    x, k = torch.rand(512, 512), torch.rand(2, 3, 5, 5)
    images = torch.rand(40, 3, 100, 100)
    assert 64**3 < private.MANY_TERMS < 512**3
    one = [
        graph_of(lambda x: x.sin() @ x, x),
        graph_of(lambda x: torch.conv2d(x.sin(), k), images),
    ]
    others = [
        graph_of(lambda x: (x.sin() @ x).cos() @ x, x),
        graph_of(lambda x: x.sin() @ x, x[:64, :64]),
        graph_of(lambda x: torch.conv2d(x.sin(), k), images[:1, :, :50]),
    ]
    assert [private.pays_in_cpp(g) for g in [*one, *others]] == [False] * 2 + [True] * 3


FEW, MANY = private.MIN_CHANNELS, private.MANY_CHANNELS


@pytest.mark.parametrize(
    ("channels", "num_axes", "is_last"),
    [
        ((3, 2), 2, False),
        ((1, FEW, FEW), 2, False),
        ((FEW, FEW, FEW), 2, True),
        ((1, 6, MANY), 2, True),
        ((3,), 2, True),
        ((3, 2), 1, True),
    ],
)
def test_few_channels_of_images_stay_where_they_are(monkeypatch, channels, num_axes, is_last):
    compiler, found = importlib.import_module("torch._inductor.compile_fx"), []

    def watched(graph, inputs, *args, config_patches, **kwargs):
        found.append(config_patches.get("layout_optimization", True))
        return graph

    monkeypatch.setattr(compiler, "compile_fx", watched)
    kernels = [torch.rand(b, a, *[3] * num_axes) for a, b in itertools.pairwise(channels)]
    x = torch.rand(1, channels[0], *[20] * num_axes)
    convolve = torch.conv2d if num_axes == 2 else torch.conv1d
    graph = graph_of(lambda x: functools.reduce(convolve, kernels, x), x)
    private.inductor(graph, [x], False)
    assert found == [is_last]


@pytest.mark.filterwarnings("ignore::UserWarning")  # 2.12: that CUDA is not there
@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_that_cpp_cannot_run_is_called_from_python(monkeypatch, fails):
    compiler = importlib.import_module("torch._inductor.compile_fx")
    whole, seen = compiler.compile_fx, []

    def watched(graph, inputs, *args, config_patches=None, **kwargs):
        if config_patches is not None:
            seen.append(config_patches.get("cpp_wrapper", False))
            if fails and seen[-1]:
                graph.graph = fx.Graph()  # as a compiler leaves a graph that it was given
                raise NotImplementedError
        return whole(graph, inputs, *args, config_patches=config_patches, **kwargs)

    monkeypatch.setattr(compiler, "compile_fx", watched)
    x = torch.rand(2, 3)
    compiled = private.inductor(graph_of(lambda x: (x @ W).sin(), x), [x], True)
    for _ in range(3):
        torch.testing.assert_close([*compiled([x])], [(x @ W).sin()])
    assert seen[0]
    assert (False in seen) == fails


def test_force_strides_lays_a_tensor_out():
    order = private.force_strides()
    x = torch.rand(3, 2)
    laid = order(x, (1, 3))
    assert laid.stride() == (1, 3)
    assert torch.equal(laid, x)
    graph = graph_of(lambda x: order(x.sin(), (1, 3)) @ x.t(), x)
    torch.testing.assert_close([*private.inductor(graph, [x], False)([x])], [x.sin() @ x.t()])
