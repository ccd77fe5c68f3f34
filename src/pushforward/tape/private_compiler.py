"""The private names of PyTorch's tracer and compiler, which take seconds to import: only when they are called."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, fx


def compile_lock() -> AbstractContextManager[Any]:
    """Return the lock under which ``torch.compile`` compiles: tracing replaces functions of PyTorch for all threads."""
    lock: AbstractContextManager[Any] = importlib.import_module(
        "torch._dynamo.convert_frame"
    ).compile_lock
    return lock


def make_fx(func: Callable[..., Any], inputs: Sequence[Tensor], mode: str) -> fx.GraphModule:
    """Return the graph of ``func(*inputs)``.

    Args:
        func: What to trace.
        inputs: Tensors like those that it will be called with.
        mode: Whether it sees tensors that are ``'fake'``, without elements, ``'real'``, or ``'symbolic'``: fake ones
            whose sizes are symbols. What the graph takes for granted of them, ``graph.meta['fits']`` asks of others.
    """
    tracer: Any = importlib.import_module("torch.fx.experimental.proxy_tensor")
    env: Any = _shape_env() if mode == "symbolic" else None
    if mode != "real":
        fake: Any = importlib.import_module("torch._subclasses.fake_tensor")
        # A mode that knows no symbols for elements: reading one raises, with the line.
        made = fake.FakeTensorMode(allow_non_fake_inputs=True, shape_env=env)
        options = [_dynamic(number) if env else {} for number in range(len(inputs))]
        inputs = [made.from_tensor(x, **o) for x, o in zip(inputs, options, strict=True)]
    trace = tracer.make_fx(func, tracing_mode=mode, _allow_non_fake_inputs=True)
    graph: fx.GraphModule = trace(*inputs)
    if mode == "symbolic":
        graph.meta["fits"] = lambda tensors: env.evaluate_guards_for_args(
            inputs, tensors, ignore_static=False
        )
    return graph


def _shape_env() -> Any:
    shapes: Any = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    return shapes.ShapeEnv(
        allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False, duck_shape=False
    )


def _dynamic(number: int) -> dict[str, Any]:
    sources: Any = importlib.import_module("torch._dynamo.source")
    return {"static_shapes": False, "source": sources.ConstantSource(f"x{number}")}


def fake_mode() -> Any:
    """Return a mode in which tensors have no elements."""
    return importlib.import_module("torch._subclasses.fake_tensor").FakeTensorMode()


def static_like(x: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Return a fake tensor like ``x``, whose sizes are numbers, of the same mode as the fake ones among others."""
    fake: Any = importlib.import_module("torch._subclasses.fake_tensor")
    mode = next(y.fake_mode for y in others if isinstance(y, fake.FakeTensor))
    made: Tensor = mode.from_tensor(x, static_shapes=True)
    return made


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


def cpp_kernel(
    arguments: Sequence[str], source: str, headers: Sequence[str] = ()
) -> Callable[..., None]:
    """Return a function of C++ called ``kernel``, to be called with tensors, of whose elements it takes pointers."""
    lines = [f"#include <{name}>" for name in headers]
    kernel: Callable[..., None] = _bindings(tuple(headers)).load_pybinding(
        list(arguments), "\n".join([*lines, source])
    )
    return kernel


@functools.cache
def _bindings(headers: tuple[str, ...]) -> Any:
    """Return what compiles functions for Python with these headers, which are compiled before, once for a machine.

    By itself it takes those of loops over vectors, which the compiler then reads for a third of a second.
    """
    cache: Any = importlib.import_module("torch._inductor.codecache")
    # Inductor writes `#include <...>` around this.
    header = ">\n#include <".join(("Python.h", "sstream", "cstdlib", "cerrno", *headers))
    found = {"_get_uncompiled_header": classmethod(lambda cls, device: header)}
    return type("Bindings", (cache.CppPythonBindingsCodeCache,), found)


def empty_strided_cpu() -> Callable[..., Tensor]:
    """Return what makes a tensor without elements set, in a third of the time that the public function takes."""
    guards: Any = importlib.import_module("torch._C._dynamo.guards")
    made: Callable[..., Tensor] = guards._empty_strided_cpu
    return made


def alike(tensors: Sequence[Tensor], has_strides: bool = True) -> Callable[..., bool]:
    """Return what tells whether tensors have the classes, shapes, dtypes, devices and flags of these.

    And the strides, if it ``has_strides``. In C++, which takes a seventh of the time of Python for each. Whether one is
    conjugated or negated when it is read counts, too, and inference mode.
    """
    guards: Any = importlib.import_module("torch._C._dynamo.guards")
    sizes = None if has_strides else [list(t.shape) for t in tensors]
    strides = None if has_strides else [[None] * t.dim() for t in tensors]
    made = guards.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    check: Callable[..., bool] = made.check
    return check
