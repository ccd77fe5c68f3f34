"""What the tape does not tell by itself: seen by a mode around the function, at a microsecond a call.

- Writes through views leave nodes that say nothing. They are made copies into a view, whose place is remembered.
- Tensors of the caller's that the function writes to keep their values, and lose the history when the call ends.
- The function's own backward passes must leave the graph whole.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pushforward.tape.overwritten import Write, kept
from pushforward.tape.private_torch import Node, is_one_of_several
from pushforward.tape.randomness import RANDOM_FUNCTIONS, generator_state
from pushforward.tape.reader import Geometry

Handler = Callable[["Watcher", Any, tuple[Any, ...], dict[str, Any]], Any]
Taken = dict[int, tuple[Tensor, Tensor]]  # views, and the same taken anew, by id


class Watcher(TorchFunctionMode):
    """Watches one run of one function."""

    def __init__(self, name: str) -> None:
        """Serve the transform ``name``."""
        super().__init__()
        self.name = name
        self.geometries: dict[Node, Geometry] = {}  # of the nodes that copies into views left
        self.written: dict[int, Tensor] = {}  # without history before the write, by id
        self.writes: list[Write] = []  # what was overwritten and may have been saved
        self.hooks: list[tuple[Node, int, Any]] = []
        self.has_drawn = False  # random numbers from a default generator

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, unless there is something to see."""
        handler = _HANDLERS.get(func)
        try:
            if handler is not None:
                return handler(self, func, args, kwargs or {})
            if not kwargs:
                return func(*args)
            if kwargs.get("out") is not None:
                return _write_out(self, func, args, kwargs)
            return func(*args, **kwargs)
        except RuntimeError as error:
            if _REFUSED not in str(error):
                raise
            taken: Taken = {}
            args, kwargs = _retaken((args, kwargs), taken)
            if not taken:
                raise
            return _given_back(self.__torch_function__(func, types, args, kwargs), taken)

    def note(self, target: Tensor) -> Write | None:
        """Remember a tensor that is about to be written to: it may be the caller's, or saved by a node."""
        base = target._base
        if base is None:
            base = target
        if not base.requires_grad:
            self.written[id(base)] = base
        write = kept(target, base)
        if write is not None:
            self.writes.append(write)
        return write


def _write(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out an in-place operator: on a view, as a copy into it."""
    target = args[0]
    if not isinstance(target, Tensor):
        return func(*args, **kwargs)
    return _carried_out(watcher, target, func, _TWINS.get(func), args, kwargs)


def _carried_out(
    watcher: Watcher,
    target: Tensor,
    func: Any,
    twin: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Write to ``target``: where it is a view by ``twin``, which gives the new values, and a copy."""
    is_view = target._base is not None and torch.is_grad_enabled() and _is_followed(args, kwargs)
    if is_view and is_one_of_several(target):
        taken: Taken = {}
        args, kwargs = _retaken((args, kwargs), taken)
        result = _carried_out(watcher, taken[id(target)][1], func, twin, args, kwargs)
        return _given_back(result, taken)
    if is_view and twin is not None:
        if func not in _SAVING_NOTHING:
            args = (target.clone(), *args[1:])  # what is saved shall not be overwritten
        func, args, kwargs = Tensor.copy_, (target, twin(*args, **kwargs)), {}
    elif target.requires_grad:
        args = (target, *[_apart(value, target) for value in args[1:]])
    write = watcher.note(target)
    try:
        if is_view and func in _COPIES:
            return _copy_into(watcher, target, func, args, kwargs)
        return func(*args, **kwargs)
    finally:
        if write is not None:
            write.after = write.base._version


def _apart(value: Any, target: Tensor) -> Any:
    """Return a copy of an argument that is about to be overwritten itself, as the operator may save it."""
    if isinstance(value, Tensor) and (value is target or value._base is target):
        return value.clone()
    return value


def _write_if_asked(
    place: int, watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Carry out a function of ``torch.nn.functional`` whose argument at ``place`` says that it is in-place."""
    is_in_place = kwargs.get("inplace", args[place] if len(args) > place else False)
    if not is_in_place or not args or not isinstance(args[0], Tensor):
        return func(*args, **kwargs)

    def twin(*_: Any, **__: Any) -> Any:
        outer = {name: value for name, value in kwargs.items() if name != "inplace"}
        return func(
            *args[:place], *((False,) if len(args) > place else ()), *args[place + 1 :], **outer
        )

    return _carried_out(watcher, args[0], func, twin, args, kwargs)


def _write_out(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out a function with ``out=``, which autograd does not follow: as copies of its result."""
    targets = kwargs["out"] if isinstance(kwargs["out"], (tuple, list)) else (kwargs["out"],)
    if not torch.is_grad_enabled() or not _is_followed(args, kwargs):
        writes = [watcher.note(target) for target in targets]
        result = func(*args, **kwargs)
        for write in writes:
            if write is not None:
                write.after = write.base._version
        return result
    result = func(*args, **{name: value for name, value in kwargs.items() if name != "out"})
    values = (result,) if isinstance(result, Tensor) else result
    for target, value in zip(targets, values, strict=True):
        if not torch.can_cast(value.dtype, target.dtype):
            raise RuntimeError(
                f"{watcher.name}: result type {value.dtype} can't be cast to the desired output type {target.dtype}"
            )
        if target.shape != value.shape:
            target.resize_(value.shape)
        _write(watcher, Tensor.copy_, (target, value), {})
    return targets[0] if isinstance(result, Tensor) else type(result)(targets)


def _copy_into(
    watcher: Watcher, target: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Copy into a view, and remember where it lies."""
    value = args[1] if len(args) > 1 else None
    if isinstance(value, Tensor) and value.shape != target.shape:
        args = (args[0], value.expand(target.shape), *args[2:])
    result = func(*args, **kwargs)
    base = target._base
    if (
        base is not None
        and base.dtype is target.dtype
        and not (target.is_conj() or target.is_neg())
    ):
        node = base.grad_fn
        if node is not None:
            offset = int(target.storage_offset() - base.storage_offset())
            place = (tuple(target.shape), target.stride(), offset)
            watcher.geometries[node] = (tuple(base.shape), base.stride(), *place)
    return result


def _set_item(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Assign: by integers and slices, as a copy into the view that they take."""
    target, index, value = args
    write = watcher.note(target)
    try:
        _assign(watcher, func, target, index, value)
    finally:
        if write is not None:
            write.after = write.base._version


def _set_part(
    is_real: bool, watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Assign to the real or the imaginary part: write both, as a view of one is of another dtype."""
    target, value = args
    if not (torch.is_grad_enabled() and target.is_complex() and _is_followed(args, {})):
        if isinstance(target, Tensor):
            watcher.note(target)
        func(*args)
        return
    other = target.imag if is_real else target.real
    part = torch.as_tensor(value, dtype=other.dtype, device=other.device).expand_as(other)
    both = torch.complex(part, other) if is_real else torch.complex(other, part)
    _write(watcher, Tensor.copy_, (target, both), {})


def _assign(watcher: Watcher, func: Any, target: Tensor, index: Any, value: Any) -> None:
    if (
        not isinstance(value, Tensor)
        or not torch.is_grad_enabled()
        or not (value.requires_grad or target.requires_grad)
        or not _is_basic(index)
    ):
        func(target, index, value)
        return
    view = target[index]
    if view._base is None:
        func(target, index, value)
    elif not _is_same(view, value):
        while value.dim() > view.dim() and value.shape[0] == 1:
            value = value[0]
        _copy_into(watcher, view, Tensor.copy_, (view, value), {})


def _is_basic(index: Any) -> bool:
    items = index if type(index) is tuple else (index,)
    return all(type(i) in (int, slice) or i is None or i is Ellipsis for i in items)


def _is_same(view: Tensor, value: Tensor) -> bool:
    """Tell whether the value is the view itself: ``y[i] += 1`` assigns what it has written already."""
    return (
        value._base is view._base
        and value.shape == view.shape
        and value.stride() == view.stride()
        and value.storage_offset() == view.storage_offset()
        and value.dtype is view.dtype
    )


def _map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)(_map_tensors(function, item) for item in tree)
    if type(tree) is dict:
        return {name: _map_tensors(function, value) for name, value in tree.items()}
    return tree


def _retaken(tree: Any, taken: Taken) -> Any:
    """Take views that came from operators with several outputs from their bases anew, each by itself."""

    def retake(view: Tensor) -> Tensor:
        base = view._base
        if base is None or not is_one_of_several(view):
            return view
        if id(view) not in taken:
            new = base.as_strided(view.shape, view.stride(), view.storage_offset())
            taken[id(view)] = (view, new)
        return taken[id(view)][1]

    return _map_tensors(retake, tree)


def _given_back(result: Any, taken: Taken) -> Any:
    """Return the view that the function has, in place of the one that was taken anew."""
    for old, new in taken.values():
        if result is new:
            return old
    return result


def _is_followed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether any tensor among the arguments has a derivative."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif isinstance(value, (tuple, list)) and _is_followed(tuple(value), {}):
            return True
    return False


def _retain(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the function's own backward pass, and keep the graph: it is the tape."""
    names = _BACKWARD[func]
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
    return func(*_map_tensors(Tensor.detach, args), **kwargs)


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
    watcher.has_drawn |= generator_state(()) != before
    return result


def _hook(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Register a hook, and remember it: reverse mode honours it."""
    target = args[0]
    if target.requires_grad and target.grad_fn is not None:
        watcher.hooks.append(
            (target.grad_fn, target.output_nr, args[1] if len(args) > 1 else kwargs["hook"])
        )
    return func(*args, **kwargs)


_REFUSED = "is the output of a function that returns multiple views"  # in messages of autograd's

_HANDLERS: dict[Any, Handler] = {}
_TWINS: dict[Any, Any] = {}
_COPIES = {Tensor.copy_}
_SAVING_NOTHING: set[Any] = set()  # of what they write to
# These change no elements.
_NO_WRITES = {
    "requires_grad_", "detach_", "retain_grad_", "share_memory_", "rename_", "squeeze_", "unsqueeze_", "transpose_",
    "t_", "swapaxes_", "swapdims_", "resize_", "resize_as_", "as_strided_", "set_", "sparse_resize_",
    "sparse_resize_and_clear_",
}  # fmt: skip
_BACKWARD = {
    torch.autograd.grad: (
        "outputs", "inputs", "grad_outputs", "retain_graph", "create_graph", "allow_unused", "is_grads_batched",
        "materialize_grads",
    ),
    torch.autograd.backward: ("tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs"),
    Tensor.backward: ("self", "gradient", "retain_graph", "create_graph", "inputs"),
}  # fmt: skip
_IN_PLACE_NUMBERS = [
    "add",
    "sub",
    "mul",
    "truediv",
    "div",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
]


def _install() -> None:
    for name in dir(Tensor):
        if not name.endswith("_") or name.endswith("__") or name.startswith("_"):
            continue
        if name in _NO_WRITES:
            continue
        method = getattr(Tensor, name)
        _HANDLERS[method] = _write
        twin = getattr(Tensor, name[:-1], None)
        if twin is not None and not isinstance(twin, types.GetSetDescriptorType):
            _TWINS[method] = twin
        function = getattr(torch, name, None)
        if function is not None:
            _HANDLERS[function] = _write
            if twin is not None:
                _TWINS[function] = twin
    for name, function in vars(torch.nn.functional).items():
        if name.endswith("_") and not name.startswith("_"):
            _HANDLERS[function] = _write
            _TWINS[function] = getattr(torch.nn.functional, name[:-1], None)
        elif inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters:
            place = list(inspect.signature(function).parameters).index("inplace")
            _HANDLERS[function] = functools.partial(_write_if_asked, place)
    for name in _IN_PLACE_NUMBERS:
        method = getattr(Tensor, f"__i{name}__", None)
        twin = getattr(Tensor, f"__{name}__", None)
        if method is not None:
            _HANDLERS[method] = _write
            if twin is not None:
                _TWINS[method] = twin
    for name in ("add", "sub"):
        for owner, pattern in ((Tensor, "{}_"), (Tensor, "__i{}__"), (torch, "{}_")):
            _SAVING_NOTHING.add(getattr(owner, pattern.format(name), None))
    _HANDLERS[Tensor.__setitem__] = _set_item
    for function in _BACKWARD:
        _HANDLERS[function] = _retain
    for part in ("real", "imag"):
        _HANDLERS[getattr(Tensor, part).__set__] = functools.partial(_set_part, part == "real")
    for function in (Tensor.__float__, Tensor.__complex__):
        _HANDLERS[function] = _take_out
    for function in (torch.tensor, torch.as_tensor):
        _HANDLERS[function] = _make_from_data
    _HANDLERS[Tensor.register_hook] = _hook
    for function in RANDOM_FUNCTIONS:
        _HANDLERS[function] = functools.partial(_draw, _HANDLERS.get(function))


_install()
