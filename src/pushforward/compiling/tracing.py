"""Tracing: a function of tensors as a graph of ATen operators, by PyTorch's `make_fx`."""

from __future__ import annotations

import contextlib
import linecache
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pushforward.errors import UnsupportedError, message
from pushforward.tape.private_compiler import make_fx, reads_elements
from pushforward.tape.private_torch import OperatorMode, bare, keeping_version

NAME = "compile"
Function = Callable[..., Any]

_PACKAGES = tuple(os.path.dirname(f) + os.sep for f in (__file__, torch.__file__))
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
# These read the elements of a tensor where no operator tells of it.
_ESCAPES: set[Any] = {Tensor.numpy, Tensor.__array__, Tensor.tolist}


def traced(
    func: Function,
    inputs: Sequence[Tensor],
    written: Sequence[Tensor] = (),
    *,
    is_dynamic: bool = False,
) -> fx.GraphModule:
    """Return the graph of ``func(*inputs)``, which gives a list of tensors; ``written`` are tensors it may write to.

    Sizes are symbols if it ``is_dynamic``, numbers otherwise.
    Nothing is computed, if that can be helped: PyTorch's fake tensors have no elements. Where ours has to look at the
    elements of index tensors, to lay out a sparse result, the function runs on the tensors themselves.

    Raises:
        UnsupportedError: What ``func`` does depends on the elements of a tensor.
    """
    if is_dynamic:
        return _graph(func, inputs, written, "symbolic")
    try:
        return _graph(func, inputs, written, "fake")
    except RuntimeError as error:
        if not _reads_elements(error):
            raise
        first = error
        if not _is_ours(error):
            raise _unsupported(error) from error
    try:
        graph = _graph(func, inputs, written, "real")
    except RuntimeError as error:
        if not _reads_elements(error):
            raise
        raise _unsupported(first) from error
    if any(map(_has_shape_of_elements, graph.graph.nodes)):
        raise _unsupported(first) from first
    return graph


def _graph(
    func: Function, inputs: Sequence[Tensor], written: Sequence[Tensor], mode: str
) -> fx.GraphModule:
    def seen(*given: Tensor) -> Sequence[Tensor]:
        with _Drawn():
            results: Sequence[Tensor] = func(*given)
            return results

    leaving = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None
    with (
        leaving or contextlib.nullcontext(),
        torch.no_grad(),
        _nothing_changed([*inputs, *written]),
        _Escapes(),
    ):
        try:
            given = [x.clone() if x.is_inference() else x.detach() for x in inputs]
            return make_fx(seen, given, mode)
        except RuntimeError as error:
            found = _refusal(str(error))
            if found is None:
                raise
            raise found from error


def _refusal(error: str) -> UnsupportedError | None:
    """Return what to raise instead of an error of PyTorch's tracer, None if that tells enough."""
    if "UntypedStorage" in error:
        step = "a step that reads the memory of an argument by numbers, such as as_strided"
        got, expected = step, "steps that read tensors"
    elif "do not have strides" in error:
        got, expected = "a captured tensor of a compressed sparse layout", "dense ones"
    else:
        return None
    return UnsupportedError(
        message(NAME, "the function", got, expected, "Call the transform without compile.")
    )


@contextlib.contextmanager
def _nothing_changed(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put back what a trace writes to tensors of the caller's, and the generators."""
    kept = [(t, t._version, t.detach().clone()) for t in tensors if not t.is_inference()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, version, copy in kept:
                    if tensor._version != version:
                        with keeping_version(tensor):
                            tensor.copy_(copy)


class _Escapes(TorchFunctionMode):
    """Refuses to give elements to what is no operator."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, unless it is one of those."""
        if func in _ESCAPES:
            raise _ElementsError(func.__name__)
        return func(*args, **(kwargs or {}))


class _Drawn(OperatorMode):
    """Lets random operators, which draw nothing of fake tensors, change the generator, by which they are noticed."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call."""
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor):
            with bare():
                torch.rand((), device=result.device)
        return result


class _ElementsError(RuntimeError):
    """A function reads elements."""


def _reads_elements(error: RuntimeError) -> bool:
    return isinstance(error, _ElementsError) or reads_elements(error)


def _has_shape_of_elements(node: fx.Node) -> bool:
    """Tell whether the shape of a result depends on elements. Indexing by integers has the tag that masks need."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices: Any = node.args[1]
    found = [i.meta.get("val") for i in indices if isinstance(i, fx.Node) and i.op != "get_attr"]
    return any(i is None or i.dtype in (torch.bool, torch.uint8) for i in found)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__)


def _is_ours(error: BaseException) -> bool:
    """Tell whether it was pushforward that wanted to see elements, and not the function."""
    names = [f.filename for f in _frames(error) if not f.filename.startswith(_PACKAGES[1])]
    return bool(names) and names[-1].startswith(_OWN)


def _unsupported(error: BaseException) -> UnsupportedError:
    theirs = [f for f in _frames(error) if not f.filename.startswith((_OWN, _PACKAGES[1]))]
    where = ""
    if theirs and theirs[-1].lineno is not None:
        last = theirs[-1]
        code = linecache.getline(last.filename, theirs[-1].lineno or 0).strip()
        where = f" in {last.filename}:{last.lineno}, `{code}`"
    return UnsupportedError(
        message(
            NAME,
            "the function",
            f"a step that depends on the elements of a tensor{where}",
            "the same steps for all elements",
            "Use torch.where for branches, keep numbers as tensors, or call the transform without compile.",
        )
    )
