"""The private names of Inductor, which takes seconds to import: only when it is called."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pushforward.tape.private_shortcuts import shortcuts, shortcuts_tag

# Inductor repeats what several loops take in each of them, up to so many operators; 30 by itself. Tangents, which every
# later operator takes, are read again in less time: on CPUs, of 8 to 30, this was best over the benchmarks.
MAX_INLINED = 20

# Inductor lays out all images with channels last, and copies them for that. Where these are few, oneDNN is slower then.
MIN_CHANNELS = 8  # on both sides of every convolution,
MANY_CHANNELS = 16  # or on one side of one of them

MANY_TERMS = 2**24  # multiplied and added in half a millisecond

_Direct = Callable[[list[Tensor]], Sequence[Tensor]]


aten = torch.ops.aten
_SECOND: dict[Any, int] = {  # which argument is the second factor, or the weight
    aten.mm.default: 1,
    aten.bmm.default: 1,
    aten.addmm.default: 2,
    aten.baddbmm.default: 2,
    aten.convolution.default: 1,
    aten.convolution_backward.default: 2,
}
_CONVOLUTIONS: dict[Any, int] = {  # which argument is the number of groups
    aten.convolution.default: 8,
    aten.convolution_backward.default: 9,
}


def inductor(
    graph: fx.GraphModule, inputs: Sequence[Tensor], is_cpp: bool
) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Return a graph compiled by Inductor, whose random numbers are those of plain calls.

    Args:
        graph: What to compile.
        inputs: Tensors like those that it will be called with.
        is_cpp: Whether to make one function of C++ of it, if that is possible, not loops and calls from Python.
    """
    options: dict[str, Any] = {"fallback_random": True}
    if all(x.device.type == "cpu" for x in inputs):
        options["realize_opcount_threshold"] = MAX_INLINED
        if not _has_channels(graph):
            options["layout_optimization"] = False
    if not is_cpp:
        return _compiled(graph, inputs, options)
    spare = fx.Graph()  # Inductor changes the graph that it is given
    spare.output(spare.graph_copy(graph.graph, {}))
    try:
        return _compiled(graph, inputs, options | {"cpp_wrapper": True})
    except Exception:  # of what it supports so, no list is complete
        return _compiled(fx.GraphModule(graph, spare), inputs, options)


def force_strides() -> Any:
    """Return the operator that has a tensor laid out with the strides given, which Inductor else chooses itself."""
    importlib.import_module("torch._inductor.inductor_prims")
    return torch.ops.prims.inductor_force_stride_order.default


def pays_in_cpp(graph: fx.GraphModule) -> bool:
    """Tell whether a graph has products or convolutions, and Inductor's C++ reaches all that it calls.

    They cut a graph into many calls and loops, each of which C++ calls in a microsecond less than Python does, and
    compiles in one file. A single loop compiles faster by itself. What C++ would have to look up by name compiles in
    three times the time. So does one loop beside one large product, where nobody would notice the microsecond.
    """
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    products = [n for n in nodes if n.target in _SECOND]
    if not products or (len(products) == 1 and _num_terms(products[0]) > MANY_TERMS):
        return False
    lowering: Any = importlib.import_module("torch._inductor.lowering")
    known: Any = importlib.import_module("torchgen.aoti.fallback_ops").inductor_fallback_ops
    decomposed: Any = importlib.import_module("torch._inductor.decomposition").decompositions

    def is_reached(node: fx.Node) -> bool:
        op, value = node.target, node.meta.get("val")
        if isinstance(value, Tensor) and value.is_complex():
            return False
        if not isinstance(op, torch._ops.OpOverload):
            return True
        if op._schema.is_mutable:  # written as its equivalent that makes a tensor
            return True
        is_loop = op in decomposed or (op in lowering.lowerings and op not in lowering.fallbacks)
        is_loop &= torch.Tag.nondeterministic_seeded not in op.tags
        return is_loop or str(op) in known

    return all(map(is_reached, nodes))


def _second(product: fx.Node) -> Tensor | None:
    node: Any = product.args[_SECOND[product.target]]
    matrix: Tensor | None = node.meta.get("val")
    return matrix


def _num_terms(product: fx.Node) -> int:
    """Return how many numbers a product multiplies and adds; 0 where it has several results, or nobody knows."""
    result, second = product.meta.get("val"), _second(product)
    if not isinstance(result, Tensor) or second is None:
        return 0
    if product.target in _CONVOLUTIONS:
        return result.numel() * second[0].numel()
    return result.numel() * second.shape[-2]


def _has_channels(graph: fx.GraphModule) -> bool:
    """Tell whether the convolutions of images have channels enough to be computed with these last."""
    channels = []
    for node in graph.graph.nodes:
        weight = _second(node) if node.target in _CONVOLUTIONS else None
        if weight is None or weight.dim() <= 3:
            continue
        groups: Any = node.args[_CONVOLUTIONS[node.target]]
        if groups > 1 and weight.shape[1] > 1:
            return False  # several times as slow, which Inductor itself knows of convolutions, not of their gradients
        channels.append(weight.shape[:2])
    return all(min(c) >= MIN_CHANNELS for c in channels) or any(
        max(c) >= MANY_CHANNELS for c in channels
    )


def _compiled(
    graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]
) -> Shortened:
    compiler: Any = importlib.import_module("torch._inductor.compile_fx")
    within: list[Any] = []

    def inner(*args: Any, **kwargs: Any) -> Any:
        within.append(compiler.compile_fx_inner(*args, **kwargs))
        return within[-1]

    own = [*graph.parameters(recurse=False), *graph.buffers(recurse=False)]
    with shortcuts(), _looked_up(graph, inputs) as known:
        whole = compiler.compile_fx(graph, known, inner, config_patches=options)
    return Shortened(whole, within[0] if len(within) == 1 else None, own)


@contextlib.contextmanager
def _looked_up(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Have Inductor look whether it compiled a graph before, in another process maybe; give it inputs to go by.

    It does so for graphs of fake tensors that know of symbols, as Dynamo's do. Of what finds a graph everything is a
    part that Inductor makes code by: operators, inputs, options; shortcuts are added here. AOTAutograd's own cache is
    left out: it would hide the graph, which is called directly.
    """
    fake: Any = importlib.import_module("torch._subclasses.fake_tensor")
    if any(isinstance(x, fake.FakeTensor) for x in inputs):  # whose sizes are symbols
        yield list(inputs)
        return
    shapes: Any = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    guards: Any = importlib.import_module("torch._guards")
    autograd: Any = importlib.import_module("torch._functorch.config")
    settings: Any = importlib.import_module("torch.compiler.config")
    mode = fake.FakeTensorMode(shape_env=shapes.ShapeEnv(), allow_non_fake_inputs=True)
    known = [mode.from_tensor(x, static_shapes=True) for x in inputs]
    for node, x in zip(graph.graph.find_nodes(op="placeholder"), known, strict=True):
        node.meta["val"] = x  # what functions of C++ are made by, in place of inputs
    # The last two are parts of their own in later versions only.
    parts = (
        *(settings.cache_key_tag, shortcuts_tag()),
        *(torch.get_num_threads(), torch.get_default_dtype()),
    )
    with (
        autograd.patch(enable_autograd_cache=False),
        settings.patch(cache_key_tag=" ".join(map(str, parts))),
        guards.tracing(guards.TracingContext(mode)),
    ):
        yield known


class Shortened:
    """A compiled graph without the functions around it, 2 to 3 µs of a call, where they only hand tensors on.

    They do more where outputs share memory with each other or with inputs, for example. The first call tells.
    """

    def __init__(
        self, whole: Callable[..., Sequence[Tensor]], inner: Any, own: Sequence[Tensor]
    ) -> None:
        """Take the graph with what is around it, by itself (None if that is not known), and its own tensors."""
        self._whole, self._inner = whole, inner
        self._lock = threading.Lock()
        self._direct: _Direct | None = None
        self._own = list(own)  # which the graph by itself wants before the inputs
        self._num_more = 0  # outputs of the graph by itself, behind those that are asked for

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs."""
        if self._direct is not None:
            outputs = self._direct([*self._own, *tensors])
            return outputs[: -self._num_more] if self._num_more else outputs
        with self._lock:
            return self._first(tensors)

    def _first(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        if (inner := self._inner) is None:
            return self._whole(*tensors)
        direct = inner.current_callable
        calls: list[tuple[list[Tensor], Sequence[Tensor]]] = []

        def noted(given: list[Tensor]) -> Sequence[Tensor]:
            inputs = [*given]  # which the graph takes out of its list
            calls.append((inputs, direct(given)))
            return calls[-1][1]

        inner.current_callable, self._inner = noted, None
        try:
            outputs = self._whole(*tensors)
        finally:
            inner.current_callable = direct
        if len(calls) == 1 and _is_handed_on([*self._own, *tensors], *calls[0], outputs):
            self._num_more = len(calls[0][1]) - len(outputs)
            self._direct = _without_questions(direct)
        return outputs


def _without_questions(direct: _Direct) -> _Direct:
    """Call the C++ of a graph itself where what stands around it only asks each input whether it is a tensor."""
    code = direct.__code__ if isinstance(direct, types.FunctionType) else None
    names = ("unsafe_alloc_void_ptrs_from_tensors", "alloc_tensors_by_stealing_from_void_ptrs")
    if code is None or code.co_freevars != ("f",) or not {*names} <= {*code.co_names}:
        return direct
    entry = inspect.getclosurevars(direct).nonlocals["f"]
    lent, taken = (getattr(torch._C._aoti, name) for name in names)
    return lambda tensors: taken(entry(lent(tensors)))


def _is_handed_on(
    given: Sequence[Tensor],
    inputs: Sequence[Tensor],
    inner: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> bool:
    """Tell whether a graph got what was given, and its first outputs are those of the call, each by itself."""
    if len(given) != len(inputs) or any(x is not y for x, y in zip(given, inputs, strict=True)):
        return False
    memories = [y.untyped_storage().data_ptr() for y in outputs]
    if len({*memories} | {x.untyped_storage().data_ptr() for x in given}) < len(outputs) + len(
        given
    ):
        return False
    return len(inner) >= len(outputs) and all(
        x is y or _looks(x) == _looks(y) for x, y in zip(inner, outputs, strict=False)
    )


def _looks(x: Tensor) -> tuple[Any, ...]:
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.is_conj(), x.is_neg()
