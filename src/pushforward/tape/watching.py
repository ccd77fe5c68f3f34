"""What the tape does not tell by itself: seen by a mode around the function, at a microsecond a call.

- Writes through views leave nodes that say nothing. They are made copies into a view, whose place is remembered.
- Tensors of the caller's that the function writes to keep their values, and lose the history when the call ends.
- The function's own backward passes must leave the graph whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pushforward.rules.registry import listeners
from pushforward.tape.assigning import assign, write_out
from pushforward.tape.copies import base_of
from pushforward.tape.equivalents import EQUIVALENTS, Equivalent
from pushforward.tape.hooks import Hook, hand_out, register
from pushforward.tape.in_place import LAYING_OUT, SWITCHED, TWINS
from pushforward.tape.layouts import Inputs, by_numbers, lay_out_anew
from pushforward.tape.nested_tensors import JAGGED_MAKERS
from pushforward.tape.private_functorch import (
    functorch_level,
    is_wrapped,
    start_requiring_grad,
    with_inner,
)
from pushforward.tape.private_torch import (
    is_about_inference,
    is_refusal,
    num_function_modes,
    pop_function_mode,
)
from pushforward.tape.randomness import RANDOM_FUNCTIONS, generator_state, has_drawn
from pushforward.tape.recurrent import CELLS, STEPPED
from pushforward.tape.ruled import call_ruled
from pushforward.tape.sparse_operators import MAKERS
from pushforward.tape.statistics import batch_norm, instance_norm
from pushforward.tape.ties import SHARING, reduced
from pushforward.tape.writing import (
    Taken,
    Writes,
    given_back,
    write,
)
from pushforward.trees import map_tensors

Handler = Callable[["Watcher", Any, tuple[Any, ...], dict[str, Any]], Any]


class Watcher(TorchFunctionMode):
    """Watches one run of one function."""

    def __init__(self, name: str, level: int) -> None:
        """Serve the transform ``name``; ``level`` is the run's own among those of ``torch.func``, or 0."""
        super().__init__()
        self.name = name
        self.writes = Writes(level)
        self.hooks: list[Hook] = []
        self.inputs: Inputs = []
        self.has_drawn = False  # random numbers from a default generator
        self.has_sparse = False  # tensors that stand for sparse ones
        self.has_written = False  # by in-place operators
        self.has_acted = False  # and did not just call what was called
        self.has_ties = False  # whose slope is shared where no batch is taken apart
        self.has_cells = False  # of recurrent networks: under ``torch.func`` another thing
        self.nodes: list[Any] = []  # that the function asked for, and may have hooked
        self.num_hooks, self.oldest = RemovableHandle.next_id, 0  # node of the run

    def __exit__(self, *exception: object) -> None:
        """Stop, also where an interrupt has lost the mode while it was off for a function written in Python."""
        if num_function_modes():
            pop_function_mode()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, unless there is something to see."""
        handler = _HANDLERS.get(func)
        if self.writes.has_views:
            if func in LAYING_OUT and self.writes.lay_out(func, args, kwargs):
                return args[0]
            fresh = self.writes.fresh(args)
            named = self.writes.fresh(kwargs)
            self.writes.has_views = False
            try:
                result = self.__torch_function__(func, types, fresh, named)
            finally:
                self.writes.has_views = True
            if args and result is fresh[0]:
                return args[0]
            if kwargs and kwargs.get("out") is not None:
                return kwargs["out"] if result is named["out"] else result
            self.writes.own(result)
            return result
        try:
            if handler is not None:
                self.has_acted = self.has_acted or not (handler is _write or func in _QUIET)
                return handler(self, func, args, kwargs or {})
            if not kwargs:
                return func(*args)
            if kwargs.get("out") is not None:
                self.has_acted = True
                return write_out(self.writes, self.name, func, args, kwargs)
            return func(*args, **kwargs)
        except RuntimeError as error:
            self.has_acted = True
            if is_about_inference(error) and _has_inference_tensors((args, kwargs)):
                args, kwargs = map_tensors(_savable, (args, kwargs))
                return self.__torch_function__(func, types, args, kwargs)
            if not is_refusal(error) or func in LAYING_OUT:
                raise
            taken: Taken = {}
            args, kwargs = self.writes.retaken((args, kwargs), taken)
            if not taken:
                raise
            return given_back(self.__torch_function__(func, types, args, kwargs), taken)


def _savable(tensor: Tensor) -> Tensor:
    """Return a tensor that a node can save, with the same values."""
    return tensor.clone() if tensor.is_inference() else tensor


def _has_inference_tensors(tree: Any) -> bool:
    found: list[bool] = []
    map_tensors(lambda t: found.append(t.is_inference()), tree)
    return any(found)


def _write(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out an in-place operator."""
    if not args or not isinstance(args[0], Tensor):
        return func(*args, **kwargs)
    target, watcher.has_written = args[0], True
    # What has a history, and is no view, autograd follows by itself.
    if target._base is not None or not (target.requires_grad or watcher.writes.owns(target)):
        watcher.has_acted = True
    return write(watcher.writes, args[0], func, TWINS.get(func), args, kwargs)


def _write_if_asked(
    place: int, watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Carry out a function of ``torch.nn.functional`` whose argument at ``place`` says whether it is in-place."""
    if not kwargs.get("inplace", args[place] if len(args) > place else False):
        return func(*args, **kwargs)
    watcher.has_acted = True

    def twin(*args: Any, **kwargs: Any) -> Any:
        if len(args) > place:
            return func(*args[:place], False, *args[place + 1 :], **kwargs)
        return func(*args, **(kwargs | {"inplace": False}))

    return write(watcher.writes, args[0], func, twin, args, kwargs)


def _make(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a tensor of nothing, and remember that it is the function's own."""
    if kwargs.get("out") is not None:
        watcher.has_acted = True
        return write_out(watcher.writes, watcher.name, func, args, kwargs)
    result = func(*args, **kwargs)
    watcher.writes.own_new(result)
    return result


def _get_item(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take a part, and remember that the view is the function's own."""
    result = func(*args)
    watcher.writes.own(result)
    return result


def _set_item(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Assign to a part."""
    assign(watcher.writes, func, *args)


def _call_equivalent(
    equivalent: Equivalent,
    watcher: Watcher,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call another function that does the same, where that can be."""
    is_batched = equivalent in STEPPED.values() and functorch_level() is not None
    if is_batched or (torch.is_grad_enabled() and watcher.writes.is_followed((args, kwargs))):
        result = equivalent(*args, **kwargs)
        if result is not None:
            watcher.has_acted = True
            return result
    watcher.has_cells = watcher.has_cells or func in CELLS
    return func(*args, **kwargs)


def _detach(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Detach, and remember of what: both lie in the same memory."""
    inner = watcher.writes.inner(args[0])
    if inner.requires_grad:
        watcher.writes.originals.append(base_of(inner))
    return func(*args, **kwargs)


def _data(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what ``.data`` gives, without a derivative at any level of ``torch.func``, as ``detach`` is."""
    return with_inner(args[0], func)


def _retain(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the function's own backward pass, and keep the graph: it is the tape."""
    names = BACKWARD[func]
    given = dict(zip(names, args, strict=False)) | kwargs
    if not given.get("create_graph"):
        given["retain_graph"] = True
    return func(**given)


def _make_from_data(
    watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Make a tensor of a list of numbers: a constant."""
    if args and isinstance(args[0], (tuple, list)):
        return _take_out(watcher, func, args, kwargs)
    return func(*args, **kwargs)


def _take_out(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make numbers, or a tensor of them, which are constants: autograd would warn of that."""
    return func(*map_tensors(Tensor.detach, args), **kwargs)


def _draw(
    handler: Handler | None,
    watcher: Watcher,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call, and see whether random numbers were drawn: tells the function's own draws from other threads'."""
    before = generator_state(())
    result = func(*args, **kwargs) if handler is None else handler(watcher, func, args, kwargs)
    if has_drawn(before, ()):
        watcher.has_drawn = watcher.has_acted = True
    return result


def _hook(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Register a hook, and remember it: reverse mode honours it."""
    call = args[1] if len(args) > 1 else kwargs["hook"]
    handle, hook = register(func, args[0], call, watcher.oldest)
    if hook is not None:
        watcher.hooks.append(hook)
    return handle


def _require(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Start to require grad, which a transform of ``torch.func`` around this would forbid."""
    if functorch_level() is None or args[1:] == (False,) or kwargs:
        return func(*args, **kwargs)
    start_requiring_grad(args[0])
    return args[0]


def _answer(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Say whether a tensor has a derivative: not the same under ``vmap``, so that this has to be seen."""
    return func(*args, **kwargs)


def _declared(operator: Any) -> None:
    """See the calls of a ``torch.library`` operator that the user declared."""
    is_packet = isinstance(operator, torch._ops.OpOverloadPacket)
    if not is_packet and not isinstance(operator, torch._ops.OpOverload):
        return
    packet = operator if is_packet else operator.overloadpacket
    overloads = [getattr(packet, name) for name in packet.overloads()]
    if overloads[0].namespace in _OF_PYTORCH:
        return  # autograd tells of these
    names = [packet, *overloads] if is_packet or len(overloads) == 1 else [operator]
    for name in names:
        _HANDLERS[name] = functools.partial(_call_ruled, operator)


def _call_ruled(
    operator: Any, watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return call_ruled(operator, func, args, kwargs)


def _make_sparse(
    maker: Callable[..., Tensor],
    watcher: Watcher,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Make a sparse tensor: what depends on the inputs is stood for by its places and values."""
    if not torch.is_grad_enabled() or not watcher.writes.is_followed((args, kwargs)):
        return func(*args, **kwargs)
    watcher.has_sparse = True
    return maker(*args, **kwargs)


def _branch(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the branch of ``torch.cond`` that is taken, so that the tape shows what it does."""
    taken, if_true, if_false, operands = args
    if torch.compiler.is_compiling() or (isinstance(taken, Tensor) and is_wrapped(taken)):
        return func(*args, **kwargs)
    with watcher:
        return (if_true if taken else if_false)(*operands)


QUESTIONS: set[Any] = {  # about derivatives
    getattr(Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf")
}
_OF_PYTORCH = ("aten", "prims", "prim")
_HANDLERS: dict[Any, Handler] = {}
_QUIET: set[Any] = {  # whose handlers mostly just call
    torch.tensor, torch.as_tensor, Tensor.__getitem__, *SHARING,
}  # fmt: skip
_MAKERS = (
    "zeros", "ones", "empty", "full", "eye", "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros",
    "new_ones", "new_empty", "new_full",
)  # fmt: skip
BACKWARD = {
    torch.autograd.grad: (
        "outputs", "inputs", "grad_outputs", "retain_graph", "create_graph", "allow_unused", "is_grads_batched",
        "materialize_grads",
    ),
    torch.autograd.backward: ("tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs"),
    Tensor.backward: ("self", "gradient", "retain_graph", "create_graph", "inputs"),
}  # fmt: skip


def _install() -> None:
    for function in TWINS:
        _HANDLERS[function] = _write
    for function in LAYING_OUT:
        _HANDLERS[function] = lay_out_anew
        _QUIET.add(function)
    for function, place in SWITCHED.items():
        _HANDLERS[function] = functools.partial(_write_if_asked, place)
        _QUIET.add(function)
    _HANDLERS[Tensor.__setitem__] = _set_item
    _HANDLERS[Tensor.__getitem__] = _get_item
    for name in _MAKERS:
        for owner in (torch, Tensor):
            if hasattr(owner, name):
                _HANDLERS[getattr(owner, name)] = _make
                _QUIET.add(getattr(owner, name))
    for function in BACKWARD:
        _HANDLERS[function] = _retain
    for function in SHARING:
        _HANDLERS[function] = reduced
    for function in QUESTIONS:
        _HANDLERS[function] = hand_out
    _HANDLERS[Tensor.data.__get__] = _data  # type: ignore[attr-defined]
    _HANDLERS[Tensor.detach] = _HANDLERS[torch.detach] = _detach
    for function in (Tensor.__float__, Tensor.__complex__):
        _HANDLERS[function] = _take_out
    for function in (torch.tensor, torch.as_tensor):
        _HANDLERS[function] = _make_from_data
    _HANDLERS[Tensor.register_hook] = _hook
    _HANDLERS[Tensor.requires_grad_] = _HANDLERS[Tensor.requires_grad.__set__] = _require  # type: ignore[attr-defined]
    _HANDLERS[torch.ops.higher_order.cond] = _branch
    for function, equivalent in (EQUIVALENTS | STEPPED).items():
        _HANDLERS[function] = functools.partial(_call_equivalent, equivalent)
    for function, maker in (MAKERS | JAGGED_MAKERS).items():
        _HANDLERS[function] = functools.partial(_make_sparse, maker)
    for normalize, handler in (
        (torch.nn.functional.batch_norm, batch_norm),
        (torch.nn.functional.instance_norm, instance_norm),
    ):
        _HANDLERS[normalize] = functools.partial(handler, _HANDLERS.get(normalize, _answer))
    for name in ("as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter"):
        for owner in (torch, Tensor):
            if hasattr(owner, name):
                function = getattr(owner, name)
                _HANDLERS[function] = functools.partial(
                    by_numbers, _HANDLERS.get(function, _answer)
                )
                _QUIET.add(function)
    _QUIET.update(EQUIVALENTS, CELLS, RANDOM_FUNCTIONS)
    _QUIET.add(torch.nn.functional.instance_norm)
    for function in RANDOM_FUNCTIONS:
        _HANDLERS[function] = functools.partial(_draw, _HANDLERS.get(function))


_install()
listeners.append(_declared)
