"""What the tape does not tell by itself: seen by a mode around the function, at a microsecond a call.

- Writes through views leave nodes that say nothing. They are made copies into a view, whose place is remembered.
- Tensors of the caller's that the function writes to keep their values, and lose the history when the call ends.
- The function's own backward passes must leave the graph whole.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pushforward.errors import UnsupportedError
from pushforward.tape.private_torch import Node
from pushforward.tape.reader import Geometry

Handler = Callable[["Watcher", Any, tuple[Any, ...], dict[str, Any]], Any]


class Watcher(TorchFunctionMode):
    """Watches one run of one function."""

    def __init__(self, name: str) -> None:
        """Serve the transform ``name``."""
        super().__init__()
        self.name = name
        self.geometries: dict[Node, Geometry] = {}  # of the nodes that copies into views left
        self.written: dict[int, Tensor] = {}  # without history before the write, by id
        self.hooks: list[tuple[Node, int, Any]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, unless there is something to see."""
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs or {})
        if not kwargs:
            return func(*args)
        if "out" in kwargs:
            self.note(kwargs["out"])
        elif "inplace" in kwargs and kwargs["inplace"] and args:
            self.note(args[0])
        return func(*args, **kwargs)

    def note(self, target: Any) -> None:
        """Remember a tensor that is about to be written to, if it has no history: it may be the caller's."""
        if isinstance(target, (tuple, list)):
            for item in target:
                self.note(item)
        elif isinstance(target, Tensor) and not target.requires_grad:
            base = target._base if target._base is not None else target
            self.written[id(base)] = base


def _write(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out an in-place operator: on a view, as a copy into it."""
    target = args[0]
    if not isinstance(target, Tensor):
        return func(*args, **kwargs)
    watcher.note(target)
    if target._base is None or not torch.is_grad_enabled() or not _is_followed(args, kwargs):
        return func(*args, **kwargs)
    if func in _COPIES:
        return _copy_into(watcher, target, func, args, kwargs)
    twin = _TWINS.get(func)
    if twin is None:
        return func(*args, **kwargs)
    value = twin(*args, **kwargs)
    _copy_into(watcher, target, Tensor.copy_, (target, value), {})
    return target


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
            offset = target.storage_offset() - base.storage_offset()
            place = (tuple(target.shape), target.stride(), offset)
            watcher.geometries[node] = (tuple(base.shape), base.stride(), *place)
    return result


def _set_item(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Assign: by integers and slices, as a copy into the view that they take."""
    target, index, value = args
    watcher.note(target)
    if (
        not isinstance(value, Tensor)
        or not torch.is_grad_enabled()
        or not (value.requires_grad or target.requires_grad)
        or not _is_basic(index)
    ):
        return func(*args, **kwargs)
    view = target[index]
    if view._base is None or _is_same(view, value):
        return None if view._base is not None else func(*args, **kwargs)
    while value.dim() > view.dim() and value.shape[0] == 1:
        value = value[0]
    _copy_into(watcher, view, Tensor.copy_, (view, value), {})
    return None


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
    """Refuse to make a constant of values that are being differentiated."""
    if (
        args
        and isinstance(args[0], (tuple, list))
        and torch.is_grad_enabled()
        and _is_followed(tuple(args[0]), {})
    ):
        raise UnsupportedError(
            f"{watcher.name}: a value that is being differentiated leaves PyTorch unseen (torch.tensor([...]) of "
            "it): expected tensors to be put together by torch.stack or torch.cat. Use those, or .item() where a "
            "constant is meant."
        )
    return func(*args, **kwargs)


def _hook(watcher: Watcher, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Register a hook, and remember it: reverse mode honours it."""
    target = args[0]
    if target.requires_grad and target.grad_fn is not None:
        watcher.hooks.append(
            (target.grad_fn, target.output_nr, args[1] if len(args) > 1 else kwargs["hook"])
        )
    return func(*args, **kwargs)


_HANDLERS: dict[Any, Handler] = {}
_TWINS: dict[Any, Any] = {}
_COPIES = {Tensor.copy_}
_BACKWARD = {
    torch.autograd.grad: (
        "outputs", "inputs", "grad_outputs", "retain_graph", "create_graph", "allow_unused", "is_grads_batched",
        "materialize_grads",
    ),
    torch.autograd.backward: ("tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs"),
    Tensor.backward: ("self", "gradient", "retain_graph", "create_graph", "inputs"),
}  # fmt: skip
_IN_PLACE_NUMBERS = (
    "add sub mul truediv div floordiv mod pow and or xor lshift rshift matmul".split()
)


def _install() -> None:
    for name in dir(Tensor):
        if not name.endswith("_") or name.endswith("__") or name.startswith("_"):
            continue
        if name in ("requires_grad_", "detach_", "retain_grad_", "share_memory_", "rename_"):
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
    for name in _IN_PLACE_NUMBERS:
        method = getattr(Tensor, f"__i{name}__", None)
        twin = getattr(Tensor, f"__{name}__", None)
        if method is not None:
            _HANDLERS[method] = _write
            if twin is not None:
                _TWINS[method] = twin
    del _TWINS[Tensor.resize_], _TWINS[Tensor.resize_as_]
    _HANDLERS[Tensor.__setitem__] = _set_item
    for function in _BACKWARD:
        _HANDLERS[function] = _retain
    _HANDLERS[torch.tensor] = _HANDLERS[torch.as_tensor] = _make_from_data
    _HANDLERS[Tensor.register_hook] = _hook


_install()
