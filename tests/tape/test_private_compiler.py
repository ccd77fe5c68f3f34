"""What we expect of the private names of PyTorch's tracer and compiler: a new PyTorch breaks here."""

import importlib
import time

import pytest
import torch

from pushforward.tape import private_compiler as private

CAPTURED = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("mode", ["fake", "real"])
def test_make_fx_keeps_captured_tensors_as_they_are(mode):
    graph = private.make_fx(lambda x: [x.sin() * CAPTURED], [torch.ones(2)], mode)
    names = [n.target for n in graph.graph.nodes if n.op == "get_attr"]
    assert [getattr(graph, name) for name in names] == [CAPTURED]
    assert names
    (found,) = graph(torch.zeros(2) + 1)
    torch.testing.assert_close(found, torch.ones(2).sin() * CAPTURED)


@pytest.mark.parametrize("mode", ["fake", "real"])
@pytest.mark.parametrize("step", [torch.Tensor.item, float, bool])
def test_reads_elements(mode, step):
    with pytest.raises(RuntimeError) as caught:
        private.make_fx(lambda x: [x * step(x[0] * 2)], [torch.ones(2)], mode)
    assert private.reads_elements(caught.value)
    assert not private.reads_elements(RuntimeError("something else"))


def test_shapes_of_elements_are_refused_by_fake_tensors():
    with pytest.raises(RuntimeError) as caught:
        private.make_fx(lambda x: [x[x > 0]], [torch.ones(2)], "fake")
    assert private.reads_elements(caught.value)


def test_cpp_kernel_takes_pointers_to_elements():
    source = """
    extern "C" void kernel(const double* x, double* out) { out[0] = x[0] * x[1]; }
    """
    kernel = private.cpp_kernel(["const double*", "double*"], source)
    out = torch.zeros(1, dtype=torch.float64)
    kernel(torch.tensor([2.0, 3.0], dtype=torch.float64), out)
    assert out.item() == 6


def test_headers_of_a_cpp_kernel_are_compiled_before(monkeypatch):
    cache = importlib.import_module("torch._inductor.codecache")
    compiled = []

    def noted(header, *args, **kwargs):
        compiled.append(header)
        return precompile(header, *args, **kwargs)

    precompile = cache._precompile_header
    monkeypatch.setattr(cache, "_precompile_header", noted)
    source = f"""
    extern "C" void kernel(double* out) {{ out[0] = std::cbrt({time.time_ns()}.0); }}
    """
    out = torch.zeros(1, dtype=torch.float64)
    private.cpp_kernel(["double*"], source, ["cmath"])(out)
    assert out.item() > 1e5
    assert all(h.startswith("Python.h>") and h.endswith("<cmath") for h in compiled)
    assert len(compiled) == 1


def test_empty_strided_cpu_makes_tensors_of_shape_strides_and_dtype():
    made = private.empty_strided_cpu()((2, 3), (1, 2), torch.float32)
    assert made.shape == (2, 3)
    assert made.stride() == (1, 2)
    assert made.dtype is torch.float32


OTHERS = {
    "a shape": lambda x: x[:1],
    "strides": lambda x: x.t().contiguous().t(),
    "a dtype": lambda x: x.double(),
    "a device": lambda x: x.to("meta"),
    "a class": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "whether gradients are wanted": lambda x: x.clone().requires_grad_(),
    "a sign": lambda x: torch.complex(x, x).conj().imag,
}


@pytest.mark.parametrize("name", OTHERS)
def test_alike_tells_tensors_apart(name):
    x, y = torch.ones(2, 3), torch.ones(4, dtype=torch.int64)
    are_alike = private.alike([x, y])
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            assert are_alike(torch.zeros(2, 3), y)
    assert not are_alike(OTHERS[name](x), y)
    assert not are_alike(y, x)


def test_symbolic_graphs_tell_which_sizes_fit():
    x = torch.rand(5, 3)
    graph = private.make_fx(lambda x: [x.sin() if x.shape[0] > 4 else x.cos()], [x], "symbolic")
    fits = graph.meta["fits"]
    for other, is_right in (
        (torch.rand(9, 7), True),
        (torch.rand(4, 3), False),  # the other branch
        (torch.rand(5, 1), False),  # would be broadcast elsewhere
        (torch.rand(3, 5).t(), False),  # laid out otherwise
    ):
        assert fits([other]) is is_right
        if is_right:
            torch.testing.assert_close(graph(other), [other.sin()])


def test_static_like_is_of_the_mode_of_the_others():
    graph = private.make_fx(lambda x: [x.sin()], [torch.rand(5)], "symbolic")
    (symbolic,) = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
    static = private.static_like(torch.rand(4, 2), [symbolic])
    assert [type(n) for n in static.shape] == [int, int]
    assert static.fake_mode is symbolic.fake_mode
    assert type(symbolic.shape[0]) is torch.SymInt


def test_tensors_have_no_elements_in_a_fake_mode():
    with private.fake_mode():
        made = torch.empty_strided((2, 3), (1, 2), dtype=torch.float64) @ torch.empty(
            3, 4, dtype=torch.float64
        )
    assert (made.shape, made.dtype, made.device.type) == ((2, 4), torch.float64, "cpu")
    with pytest.raises(RuntimeError) as caught:
        made.sum().item()
    assert private.reads_elements(caught.value)


def test_the_lock_is_that_of_torch_compile_and_may_be_taken_again():
    with private.compile_lock() as is_taken, private.compile_lock():
        assert is_taken
    assert (
        private.compile_lock()
        is importlib.import_module("torch._dynamo").convert_frame.compile_lock
    )
