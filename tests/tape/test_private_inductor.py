"""What we expect of the private names of Inductor: a new PyTorch breaks here."""

import functools
import importlib
import itertools
import time

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
    ("channels", "num_axes", "groups", "is_last"),
    [
        ((3, 2), 2, 1, False),
        ((1, FEW, FEW), 2, 1, False),
        ((FEW, FEW, FEW), 2, 1, True),
        ((1, 6, MANY), 2, 1, True),
        ((3,), 2, 1, True),
        ((3, 2), 1, 1, True),
        ((MANY, MANY), 2, 2, False),
        ((MANY, MANY), 2, MANY, True),
    ],
)
def test_few_channels_of_images_stay_where_they_are(
    monkeypatch, channels, num_axes, groups, is_last
):
    compiler, found = importlib.import_module("torch._inductor.compile_fx"), []

    def watched(graph, inputs, *args, config_patches, **kwargs):
        found.append(config_patches.get("layout_optimization", True))
        return graph

    monkeypatch.setattr(compiler, "compile_fx", watched)
    sizes = [3] * num_axes
    kernels = [torch.rand(b, a // groups, *sizes) for a, b in itertools.pairwise(channels)]
    x = torch.rand(1, channels[0], *[20] * num_axes)
    convolve = functools.partial(torch.conv2d if num_axes == 2 else torch.conv1d, groups=groups)
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


def test_graphs_that_were_compiled_before_are_looked_up(monkeypatch):
    counters = importlib.import_module("torch._dynamo.utils").counters["inductor"]
    number = time.time()  # of which no graph is left from earlier runs
    x, w = torch.rand(37, 3), torch.rand(3, 5)

    def is_found(is_cpp, number, constant):
        captured = torch.tensor(constant)

        def program(x, w):
            return [(x @ w).sin() * number, x + captured]

        before = counters["fxgraph_cache_hit"]
        graph = make_fx(program, [x, w], "fake")
        compiled = private.inductor(graph, [x, w], is_cpp)
        for _ in range(2):
            torch.testing.assert_close(compiled([x, w]), program(x, w))
        assert compiled._direct is not None
        return counters["fxgraph_cache_hit"] > before

    constant = [1.0, 2.0, 3.0]
    for is_cpp in (False, True):
        assert not is_found(is_cpp, number, constant)
        assert is_found(is_cpp, number, constant)
    is_found(False, number, [4.0, 2.0, 3.0])  # whose numbers are looked at within
    assert not is_found(False, number + 1, constant)
    monkeypatch.setattr(private, "shortcuts_tag", lambda: "another version")
    assert not is_found(False, number, constant)
    monkeypatch.setattr(private, "MAX_INLINED", 3)
    assert not is_found(False, number, constant)


def test_the_caller_sees_nothing_of_what_graphs_are_looked_up_by():
    guards = importlib.import_module("torch._guards")
    settings = [
        importlib.import_module(name)
        for name in ("torch.compiler.config", "torch._functorch.config")
    ]

    def looks():
        return (
            settings[0].cache_key_tag,
            settings[1].enable_autograd_cache,
            guards.TracingContext.try_get(),
        )

    def seen(known):
        inside.append(looks())
        assert [tuple(k.shape) for k in known] == [(3,)]
        raise ZeroDivisionError

    before, inside = looks(), []
    x = torch.rand(3)
    graph = make_fx(lambda x: [x.sin()], [x], "fake")
    with pytest.raises(ZeroDivisionError), private._looked_up(graph, [x]) as known:
        seen(known)
    assert looks() == before
    assert inside[0][0] != before[0]
    assert inside[0][1] is False
    assert inside[0][2] is not None
