"""What we expect of the private names of PyTorch's tracer and compiler: a new PyTorch breaks here."""

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


def test_inductor_draws_what_plain_calls_draw():
    graph = private.make_fx(lambda x: [x + torch.rand(3), x.cos()], [torch.ones(3)], "fake")
    compiled = private.inductor(graph, [torch.ones(3)])
    torch.manual_seed(1)
    found = compiled(torch.zeros(3))
    torch.manual_seed(1)
    torch.testing.assert_close(found, [torch.rand(3), torch.ones(3)])
