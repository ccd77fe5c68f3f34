"""The private names of PyTorch outside ``torch.func``; tests/tape/test_private_torch.py pins each."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, methodcaller
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pushforward.tape.private_functorch import FUNCTORCH_KEYS

_creation_meta: Any = torch._C._autograd._get_creation_meta
_creation_metas: Any = torch._C._autograd.CreationMeta
_MULTI_OUTPUT_NODE = int(_creation_metas.MULTI_OUTPUT_NODE)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")

Node = Any  # torch.autograd.graph.Node

set_grad_enabled = torch._C._set_grad_enabled
num_function_modes = torch._C._len_torch_function_stack
function_mode_at = torch._C._get_function_stack_at
push_function_mode = torch._C._push_on_torch_function_stack
pop_function_mode = torch._C._pop_torch_function_stack
num_dispatch_modes = torch._C._len_torch_dispatch_stack
push_dispatch_mode = torch._C._push_on_torch_dispatch_stack
pop_dispatch_mode = functools.partial(torch._C._pop_torch_dispatch_stack, None)
InferenceMode: Any = torch._C._InferenceMode
copied_when_written: Callable[[Tensor], Tensor] = torch._lazy_clone  # to either of the two
is_zero_without_memory: Callable[[Tensor], bool] = methodcaller("_is_zerotensor")
negated_view: Callable[[Tensor], Tensor] = torch._neg_view
make_wrapper = torch.Tensor._make_wrapper_subclass
without_frame = attrgetter("_op")  # of an overload: what it calls, 0.2 microseconds faster
# A context, of a tensor
keeping_version: Any = vars(torch.autograd)["_unsafe_preserve_version_counter"]

PythonNode: Any = torch.autograd.function.BackwardCFunction  # of an autograd.Function
BackwardHookFunction: Any = torch.nn.modules._functions.BackwardHookFunction
CondFunction: Any = sys.modules["torch._higher_order_ops.cond"].CondAutogradOp
CheckpointFunction: Any = torch.utils.checkpoint.CheckpointFunction  # the reentrant one


def function_of(node: Node) -> Any:
    """Return the user's ``autograd.Function`` that left a Python node.

    Under the transforms of ``torch.func`` that is wrapped in classes made for the one call.
    """
    found = node._forward_cls
    while found.__module__ == "torch._functorch.autograd_function":
        names = found.backward.__code__.co_freevars
        cell = found.backward.__closure__[names.index("autograd_function")]
        found = cell.cell_contents
    return found


JaggedTensor: Any = importlib.import_module("torch.nested._internal.nested_tensor").NestedTensor
below_autograd: Any = torch._C._AutoDispatchBelowADInplaceOrView


def _jagged_ops() -> Any:
    """Return the module that PyTorch imports with the first use of a jagged tensor: it takes long."""
    return importlib.import_module("torch.nested._internal.ops")


def jagged_function(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Carry out what jagged tensors do above autograd; other functions raise ``NotImplementedError``."""
    return _jagged_ops().jagged_torch_function(func, *args, **kwargs)


def is_done_on_values(func: Any, *args: Any, **kwargs: Any) -> bool:
    """Tell whether PyTorch has a function for an operator on jagged tensors; others are taken apart."""
    return _jagged_ops().lookup_jagged(func, *args, **kwargs) is not None


def jagged_parts(nested: Any) -> dict[str, Any]:
    """Return what a jagged tensor is made of, by the names that its class takes."""
    return {"values": nested._values, **_jagged_ops().extract_kwargs(nested)}


def dispatch_keys() -> tuple[Any, Any]:
    """Return the dispatch keys that this thread includes and excludes."""
    return torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


def with_dispatch_keys(keys: tuple[Any, Any]) -> Any:
    """Return a context with the dispatch keys that `dispatch_keys` gave."""
    return torch._C._ForceDispatchKeyGuard(*keys)


def decomposition(name: str, overload: str) -> Any:
    """Return PyTorch's own way of computing an operator from others."""
    return torch._decomp.decomposition_table[getattr(getattr(torch.ops.aten, name), overload)]


class OperatorMode(TorchDispatchMode):
    """A dispatch mode that does not make PyTorch import its compiler at the first operator: that takes two seconds."""

    def __init__(self) -> None:
        """Do as PyTorch's, whose constructor has no types."""
        super().__init__()  # type: ignore[no-untyped-call]  # a call by `super` is not excluded as others are

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def without_modes() -> Any:
    """Return a context in which tensors pass by all dispatch modes, such as those of tracers."""
    return _disable_current_modes() if num_dispatch_modes() else contextlib.nullcontext()


def writes_out_windows(
    x: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
) -> bool:
    """Tell whether PyTorch convolves tensors of such shapes, on a CPU, by a product with all windows written out."""
    x, weight = (torch.empty(1, dtype=t.dtype).expand(t.shape) for t in (x, weight))
    given = (x, weight, None, stride, padding, dilation, transposed, *rest, None)
    return str(torch._C._select_conv_backend(*given)).startswith("_ConvBackend.Slow")


@contextlib.contextmanager
def bare(*, below_autograd: bool = True) -> Iterator[None]:
    """Let plain tensors pass by autograd, the transforms of ``torch.func`` and all modes."""
    with (
        torch._C.DisableTorchFunction(),
        torch._C._AutoDispatchBelowAutograd() if below_autograd else contextlib.nullcontext(),
        torch._C._ExcludeDispatchKeyGuard(FUNCTORCH_KEYS),
        without_modes(),
    ):
        yield


# When a node was made, counted within its thread. In C, as the reader asks every node.
sequence_number: Callable[[Node], int] = methodcaller("_sequence_nr")
# Shape, dtype and device of every output of the operator that a node belongs to.
output_metadata: Callable[[Node], Any] = attrgetter("_input_metadata")


def expected_version(error: RuntimeError) -> int | None:
    """Return which version a saved tensor had that was written to since; None if the error says something else."""
    message = str(error)
    if "modified by an inplace operation" not in message:
        return None
    found = re.search(r"expected version (\d+) instead", message)
    return None if found is None else int(found[1])


def is_refusal(error: RuntimeError) -> bool:
    """Tell whether an error says that a view may not be used after a write, as it is one of several outputs."""
    return "is the output of a function that returns multiple views" in str(error)


def is_about_inference(error: RuntimeError) -> bool:
    """Tell whether an error says that a node would have to save a tensor made in inference mode."""
    return "Inference tensors cannot be saved for backward" in str(error)


# Of the node that this thread makes next.
next_sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr


def num_holders(tensor: Tensor) -> int:
    """Return how many hold a tensor: a variable of Python, views, nodes that saved it."""
    return tensor._use_count()  # type: ignore[attr-defined, no-any-return]


def _num_references(found: object) -> int:
    return sys.getrefcount(found)


def _passed_on(found: object) -> int:
    return _num_references(found)


def _references_of_one_variable() -> int:
    found = object()
    return _passed_on(found)


def is_held(tensor: Tensor) -> bool:
    """Tell whether Python holds a tensor, beside one variable of the caller's.

    Else only nodes that saved it do, or views of it: they keep the object alive, by one reference.
    """
    # Counted anew, as calls take more references where Dynamo watches them.
    others = _num_references(tensor) - _references_of_one_variable()
    return others > int(num_holders(tensor) > 1)


def is_plain_view(view: Tensor) -> bool:
    """Tell whether autograd follows writes to a view: not to one made without it, or by an operator with several."""
    return bool(int(_creation_meta(view)) == 0)


def num_owners(tensor: Tensor) -> tuple[int, int]:
    """Return how many hold a tensor, and how many tensors hold its storage."""
    storages = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1  # the one asked
    return num_holders(tensor), storages


def shares_storage(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors lie in the same memory."""
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def saved_as_now(node: Node, versions: Sequence[int]) -> tuple[Tensor, ...]:
    """Return what an ``autograd.Function`` saved as it is now, ``versions`` being those that it saw."""
    tensors = tuple(item.data for item in node._raw_saved_tensors)
    now = tuple(tensor._version for tensor in tensors)
    try:
        torch._C._autograd._unsafe_set_version_counter(tensors, tuple(versions))
        saved: tuple[Tensor, ...] = node.saved_tensors
        return saved
    finally:
        torch._C._autograd._unsafe_set_version_counter(tensors, now)


def raw_saved(node: Node, name: str) -> Any:
    """Return what a node saved as it is now, also where it was written to since."""
    raw = getattr(node, f"_raw_saved_{name}")
    return tuple(item.data for item in raw) if isinstance(raw, (tuple, list)) else raw.data


def is_one_of_several(view: Tensor) -> bool:
    """Tell whether a view is an output of an operator with several, which autograd does not let anybody write to."""
    return bool(int(_creation_meta(view)) == _MULTI_OUTPUT_NODE)


def unseen(compute: Callable[[], _Result]) -> _Result:
    """Return ``compute()``, of which function modes, such as those of recordings around, see nothing."""
    if not num_function_modes():
        return compute()
    with torch._C.DisableTorchFunction():
        return compute()


_saving_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks  # the innermost


def has_saving_hooks() -> bool:
    """Tell whether there are hooks on what autograd saves now."""
    return _saving_hooks(False) is not None


class NoSavingHooks:
    """While it is on, autograd saves what it saves as it is."""

    __slots__ = ("_hooks",)

    def __enter__(self) -> NoSavingHooks:
        """Take the hooks away, the innermost first."""
        self._hooks = _take_saving_hooks()
        return self

    def __exit__(self, *exception: object) -> None:
        """Put them back, in place of those that are there."""
        _take_saving_hooks()
        while self._hooks:
            torch._C._autograd._push_saved_tensors_default_hooks(*self._hooks.pop())


def _take_saving_hooks() -> list[Any]:
    found = []
    while (hooks := _saving_hooks(False)) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        found.append(hooks)
    return found


def run_backward(tensor: Tensor, cotangent: Tensor) -> None:
    """Run a backward pass, also where a transform of ``torch.func`` forbids that to its function."""
    torch.autograd.Variable._execution_engine.run_backward(
        (tensor,), (cotangent,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


_backward_pass: Callable[[], int] = torch._C._current_graph_task_id


def in_backward_pass() -> bool:
    """Tell whether this thread is inside a backward pass."""
    return _backward_pass() != -1


is_autocasting: Callable[[], bool] = torch._C._is_any_autocast_enabled  # for any device


class _Eagerly:
    """While a recording runs, functions made by ``torch.compile`` run as they were written.

    Dynamo's stance belongs to the process, so the recordings that are on, in all threads, are remembered by their
    ``id``. It is set as ``torch.compiler.set_stance`` sets it, which takes 7 microseconds more. Both may be done twice,
    as they are when an interrupt comes in between.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._before: Any = None
        self._eager: Any = None

    def begin(self, recording: int) -> None:
        """Start a recording."""
        eval_frame: Any = sys.modules["torch._dynamo.eval_frame"]
        with self._lock:
            self._running.add(recording)
            if eval_frame._stance is not self._eager:
                if self._eager is None:
                    self._eager = eval_frame.DynamoStance("force_eager")
                self._before, eval_frame._stance = eval_frame._stance, self._eager

    def end(self, recording: int) -> None:
        """End it."""
        eval_frame: Any = sys.modules["torch._dynamo.eval_frame"]
        with self._lock:
            self._running.discard(recording)
            if not self._running and eval_frame._stance is self._eager:
                eval_frame._stance = self._before


compiled_functions_run_eagerly = _Eagerly()

_eval_frame: Any = torch._C._dynamo.eval_frame
_SKIP = _eval_frame._FrameExecStrategy(_eval_frame._FrameAction.SKIP, _eval_frame._FrameAction.SKIP)

_skipped: set[Any] = set()  # code that dynamo was told of


def frames_noted(node: Node) -> list[str]:
    """Return the frames in which a node was made, outermost first: none unless anomaly mode was on."""
    frames: list[str] = node.metadata.get("traceback_", [])
    return frames


def left_alone_by_dynamo(function: _Function) -> _Function:
    """Mark a function that ``torch.compile`` is to call as it is, with all that this calls.

    ``torch.compiler.disable`` does as much, but imports the compiler, which takes seconds, and wraps each call.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = "pushforward records it"  # type: ignore[attr-defined]
    code = function.__code__
    if code not in _skipped:
        _skipped.add(code)
        _eval_frame.set_code_exec_strategy(code, _SKIP)
    return function


def has_dynamo() -> bool:
    """Tell whether anything was compiled in this process; another thread may be about to import what does so."""
    return hasattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance")


def hooks_of_all_modules() -> tuple[dict[int, Any], ...]:
    """Return what was registered to be called with every module: four kinds of hooks."""
    found: Any = torch.nn.modules.module
    return (
        found._global_forward_hooks, found._global_forward_pre_hooks, found._global_backward_hooks,
        found._global_backward_pre_hooks,
    )  # fmt: skip
