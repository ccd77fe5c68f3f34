"""The private names of PyTorch's tracer and compiler, which take seconds to import: only when they are called."""

from __future__ import annotations

import importlib
import inspect
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

# Inductor repeats what several loops take in each of them, up to so many operators; 30 by itself. Tangents, which every
# later operator takes, are read again in less time: on CPUs, of 8 to 30, this was best over the benchmarks.
MAX_INLINED = 20

_Direct = Callable[[list[Tensor]], Sequence[Tensor]]


def make_fx(func: Callable[..., Any], inputs: Sequence[Tensor], mode: str) -> fx.GraphModule:
    """Return the graph of ``func(*inputs)``; ``mode`` says whether on tensors that are ``'fake'`` or ``'real'``."""
    tracer: Any = importlib.import_module("torch.fx.experimental.proxy_tensor")
    if (
        mode == "fake"
    ):  # of a mode that knows no symbols for elements: reading one raises, with the line
        fake: Any = importlib.import_module("torch._subclasses.fake_tensor")
        made = fake.FakeTensorMode(allow_non_fake_inputs=True)
        inputs = [made.from_tensor(x) for x in inputs]
    trace = tracer.make_fx(func, tracing_mode=mode, _allow_non_fake_inputs=True)
    graph: fx.GraphModule = trace(*inputs)
    return graph


def reads_elements(error: BaseException) -> bool:
    """Tell whether a tracer says that elements are read which it does not have."""
    fake: Any = importlib.import_module("torch._subclasses.fake_tensor")
    shapes: Any = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    kinds = (
        fake.DataDependentOutputException,
        fake.DynamicOutputShapeException,
        shapes.GuardOnDataDependentSymNode,
    )
    return isinstance(error, kinds) or "get value out of a tracing tensor" in str(error)


def inductor(
    graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]
) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Return a graph compiled by Inductor, whose random numbers are those of plain calls."""
    compiler: Any = importlib.import_module("torch._inductor.compile_fx")
    options = {"fallback_random": True} | options
    if all(x.device.type == "cpu" for x in inputs):
        options["realize_opcount_threshold"] = MAX_INLINED
    within: list[Any] = []

    def inner(*args: Any, **kwargs: Any) -> Any:
        within.append(compiler.compile_fx_inner(*args, **kwargs))
        return within[-1]

    whole = compiler.compile_fx(graph, list(inputs), inner, config_patches=options)
    return Shortened(whole, within[0] if len(within) == 1 else None)


class Shortened:
    """A compiled graph without the functions around it, 2 to 3 µs of a call, where they only hand tensors on.

    They do more where outputs share memory with each other or with inputs, for example. The first call tells.
    """

    def __init__(self, whole: Callable[..., Sequence[Tensor]], inner: Any) -> None:
        """Take the graph with what is around it, and by itself; None if that is not known."""
        self._whole, self._inner = whole, inner
        self._lock = threading.Lock()
        self._direct: _Direct | None = None
        self._num_more = 0  # outputs of the graph by itself, behind those that are asked for

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs."""
        if self._direct is not None:
            outputs = self._direct([*tensors])
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
        if len(calls) == 1 and _is_handed_on(tensors, *calls[0], outputs):
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


def cpp_kernel(arguments: Sequence[str], source: str) -> Callable[..., None]:
    """Return a function of C++ called ``kernel``, to be called with tensors, of whose elements it takes pointers."""
    cache: Any = importlib.import_module("torch._inductor.codecache")
    kernel: Callable[..., None] = cache.CppPythonBindingsCodeCache.load_pybinding(
        list(arguments), source
    )
    return kernel


def empty_strided_cpu() -> Callable[..., Tensor]:
    """Return what makes a tensor without elements set, in a third of the time that the public function takes."""
    guards: Any = importlib.import_module("torch._C._dynamo.guards")
    made: Callable[..., Tensor] = guards._empty_strided_cpu
    return made


def alike(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Return what tells whether tensors have the classes, shapes, strides, dtypes, devices and flags of these.

    In C++, which takes a seventh of the time of Python for each. Whether one is conjugated or negated when it is read
    counts, too, and inference mode.
    """
    guards: Any = importlib.import_module("torch._C._dynamo.guards")
    made = guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    check: Callable[..., bool] = made.check
    return check
