"""Views and writes: what is written through one alias is seen through every other.

Primals and tangents of tracers are never overwritten in place: residuals may hold them. A write gives the base a new
primal and a new payload, and its views make theirs again when they are next read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.linear.block import Block
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.transposed import transpose
from pushforward.linear.map import AbstractLinearMap
from pushforward.recording.dispatch import bare, needs_tracer
from pushforward.recording.tracer import Alias, Tracer, make_tracer, map_tensors
from pushforward.rules.registry import lookup, maps_of


def make_view(
    recorder: Any,
    tracer: Tracer,
    viewed: Tracer,
    op: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    index: int,
) -> None:
    """Remember that ``tracer`` is output ``index`` of the view operator ``op`` on ``viewed``."""
    rule = lookup(op)
    assert rule is not None
    primal, viewed_primal = tracer._primal, viewed._primal

    def linear_map() -> AbstractLinearMap:
        maps = maps_of(rule, 0, primal, args, kwargs, viewed_primal)
        one: AbstractLinearMap = maps[index] if isinstance(maps, (tuple, list)) else maps
        return one

    def view(primal: Tensor) -> Tensor:
        result: Any = op(primal, *args[1:], **kwargs)
        one: Tensor = result[index] if isinstance(result, (tuple, list)) else result
        return one

    attach(tracer, viewed, view, linear_map, is_cut=False)


def attach(
    tracer: Tracer,
    viewed: Tracer,
    view: Callable[[Tensor], Tensor],
    linear_map: Callable[[], AbstractLinearMap],
    is_cut: bool,
) -> None:
    """Make ``tracer`` an alias of ``viewed``, or of what that is a view of; the map is made when it is needed."""
    parent = viewed._alias
    if parent is None:
        tracer._alias = Alias(viewed, (view,), (linear_map,), is_cut)
    else:
        tracer._alias = Alias(
            parent.base, (*parent.views, view), (*parent.maps, linear_map), is_cut or parent.is_cut
        )


def refresh(recorder: Any, tracer: Tracer) -> None:
    """Make the primal and payload of a view again if its base was written to."""
    alias = tracer._alias
    if alias is None:
        return
    if alias.base._alias is not None:  # a captured view whose base was captured later
        refresh(recorder, alias.base)
    if alias.seen == alias.base._writes:
        return
    primal = alias.base._primal
    with recorder.entry.restored():
        for view in alias.views:
            primal = view(primal)
        tracer._primal = primal
        if alias.is_cut or alias.base._payload is None:
            tracer._payload = None
        else:
            part = (
                alias.base._payload,
                compose(*[linear_map() for linear_map in alias.maps]),
                alias.base.dtype,
            )
            tracer._payload = recorder.combine([part], primal)
    alias.seen = alias.base._writes
    tracer._writes += 1  # for views that were made of it before it became one


def write(recorder: Any, tracer: Tracer, primal: Tensor, payload: Any, keep_payload: bool) -> None:
    """Give ``tracer`` a new value, and every alias with it.

    ``keep_payload``: the write was made under ``no_grad``, so that the derivative stays what it was.
    """
    alias = tracer._alias
    if alias is None:
        tracer._primal = primal
        if not keep_payload:
            tracer._payload = payload
        tracer._writes += 1
        return
    if any(n > 1 and step == 0 for n, step in zip(primal.shape, tracer.stride(), strict=True)):
        raise UnsupportedError(
            f"{recorder.name}: unsupported operation: more than one element of the written-to tensor refers to a "
            f"single memory location: got an expanded tensor of shape {tuple(primal.shape)}, expected one "
            "without repeated elements. Use .clone() before the write."
        )
    base = alias.base
    if base._alias is not None:
        refresh(recorder, base)
    linear_map = compose(*[linear_map() for linear_map in alias.maps])
    old = base._primal
    if primal.numel() == old.numel() and primal.dtype == old.dtype:
        mask = None
        new = _put(linear_map, primal)
    else:
        ones = torch.ones(primal.shape, device=primal.device, dtype=torch.float32)
        mask = _put(linear_map, ones) != 0
        new = torch.where(mask, _put(linear_map, primal).to(old.dtype), old)
    new_payload = base._payload
    if not (keep_payload or alias.is_cut):
        parts = []
        if payload is not None:
            parts.append((payload, transpose(linear_map), primal.dtype))
        if mask is not None and base._payload is not None:
            shape = tuple(old.shape)
            kept = Scale(shape, shape, (~mask).to(old.dtype))
            parts.append((base._payload, kept, old.dtype))
        new_payload = recorder.combine(parts, new) if parts else None
    if base._alias is not None:
        write(recorder, base, new, new_payload, keep_payload)
    else:
        base._primal, base._payload = new, new_payload
        base._writes += 1
    refresh(recorder, tracer)


def _put(linear_map: AbstractLinearMap, values: Tensor) -> Tensor:
    """Return zeros of the base's shape with ``values`` where the view is."""
    block = Block(values, linear_map.out_shape, (), ())
    return linear_map.pull(block).expanded_values()


class Captured:
    """The plain tensors into which a traced value was written: from then on they are followed as tracers."""

    def __init__(self, recorder: Any) -> None:
        """Start empty."""
        self._recorder = recorder
        self._roots: dict[int, tuple[Tensor, Tracer]] = {}
        self._mode: Any = None

    @property
    def is_used(self) -> bool:
        """Tell whether any tensor was adopted."""
        return bool(self._roots)

    def owns(self, tracer: Tracer) -> bool:
        """Tell whether ``tracer`` stands for a captured tensor."""
        return any(root is tracer for _, root in self._roots.values())

    def adopt(self, tensor: Tensor) -> Tracer:
        """Return the tracer that stands for a plain ``tensor`` from now on."""
        with torch._C.DisableTorchFunction():
            key = _storage_key(tensor)
            whole = tensor if key in self._roots else _whole_storage(tensor)
        if key not in self._roots:
            primal = whole.clone()  # the caller's tensor changes only at the end
            self._roots[key] = (whole, make_tracer(primal, None, self._recorder))
            if self._mode is None:
                self._mode = self._recorder.make_mode()
                self._mode.__enter__()
        found = self.lookup(tensor)
        assert isinstance(found, Tracer)
        return found

    def lookup(self, tensor: Any) -> Any:
        """Return the tracer of ``tensor`` if it shares memory with an adopted one, else ``tensor``."""
        state = self._recorder.entry
        if (
            not self._roots
            or state.busy
            or not isinstance(tensor, Tensor)
            or self._recorder.is_mine(tensor)
        ):
            return tensor
        state.busy += 1  # what follows reads the tensor itself
        try:
            return self._find(tensor)
        finally:
            state.busy -= 1

    def _find(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            entry = self._roots.get(_storage_key(tensor))
            if entry is None:
                return tensor
            whole, root = entry
            if tensor is whole or _same_layout(tensor, whole):
                return root
        with bare():
            index = _positions_in(tensor, whole)
            is_larger = index is None and _positions_in(whole, tensor) is not None
        if is_larger:
            return self._rebase(whole, root, tensor)
        return self._view_of(root, whole, tensor, index)

    def _rebase(self, part: Tensor, root: Tracer, whole: Tensor) -> Tracer:
        """Follow ``whole`` from now on, of which a ``part`` was followed until now."""
        with self._recorder.entry.restored():
            base = make_tracer(whole.clone(), None, self._recorder)
        with torch._C.DisableTorchFunction():
            self._roots[_storage_key(whole)] = (whole, base)
        with bare():
            index = _positions_in(part, whole)
        view = self._view_of(base, whole, part, index)
        primal, payload = root._primal, root._payload
        root._alias = view._alias
        write(self._recorder, root, primal, payload, keep_payload=False)
        return base

    def _view_of(self, root: Tracer, whole: Tensor, tensor: Tensor, index: Tensor | None) -> Tracer:
        if tensor.dtype != whole.dtype:
            raise UnsupportedError(
                f"{self._recorder.name}: a tensor that was written to is read through a view as {tensor.dtype}, "
                f"expected {whole.dtype}. Convert with .to() instead."
            )
        if index is None:
            raise UnsupportedError(
                f"{self._recorder.name}: under vmap, or in another derivative, a traced value was written into a "
                f"view of shape {tuple(whole.shape)} of a tensor now read as {tuple(tensor.shape)}: expected the write "
                "to be made to the tensor itself. Use c[index] = value, or torch.where."
            )
        index, size = index.to(whole.device), tuple(tensor.shape)
        shape = tuple(whole.shape)
        first = Reshape(shape, (whole.numel(),))
        second = Gather((whole.numel(),), (index.numel(),), index, (0,), (0,))
        linear_map = compose(first, second, Reshape((index.numel(),), size))

        with torch._C.DisableTorchFunction():
            is_flat, stride = whole.is_contiguous(), tensor.stride()
            offset = tensor.storage_offset() - whole.storage_offset()

        def view(primal: Tensor) -> Tensor:
            if not is_flat or needs_tracer(primal):
                return primal.reshape(-1)[index].reshape(size)
            # In the memory of the whole, as as_strided with an offset reads that.
            memory = primal.contiguous() if primal.storage_offset() == 0 else primal.clone()
            return memory.as_strided(size, stride, offset)

        tracer = make_tracer(tensor, None, self._recorder)
        attach(tracer, root, view, lambda: linear_map, is_cut=False)
        assert tracer._alias is not None
        tracer._alias.seen = -1
        refresh(self._recorder, tracer)
        return tracer

    def leave(self) -> None:
        """Stop watching operators on captured tensors."""
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)

    def write_back(self) -> None:
        """Copy the new values into the caller's tensors; those that only the function knew are left alone."""
        for key in list(self._roots):
            whole, root = self._roots.pop(key)
            if not root._writes:
                continue
            primal = root._primal
            batched = torch._C._functorch.is_batchedtensor
            if batched(primal) and not batched(whole):
                if sys.getrefcount(whole) > _LOCAL_REFERENCES or whole._base is not None:
                    raise UnsupportedError(
                        f"{self._recorder.name}: under vmap a batched value was written into a captured tensor of "
                        f"shape {tuple(whole.shape)}: expected a tensor with one entry per batch element. Pass the "
                        "tensor as an argument, or return the new value."
                    )
                continue
            whole.copy_(primal)


_LOCAL_REFERENCES = 2  # the local variable and getrefcount's own argument


def shares_memory(tensor: Tensor, tree: Any) -> bool:
    """Tell whether ``tensor`` is, or is a view of, one of the plain tensors in ``tree``."""
    with torch._C.DisableTorchFunction():
        key = _storage_key(tensor)
        found: list[int] = []
        map_tensors(tree, lambda t: found.append(_storage_key(t)))
    return key in found


def _holder(tensor: Tensor) -> Tensor:
    """Return what holds the memory: the base of an outer recording's tracer, or the tensor below wrappers."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if isinstance(tensor, Tracer) and tensor._alias is not None:
        return tensor._alias.base
    return tensor


def _storage_key(tensor: Tensor) -> int:
    holder = _holder(tensor)
    if isinstance(holder, Tracer):
        return id(holder)
    return int(holder.untyped_storage()._cdata)


def _whole_storage(tensor: Tensor) -> Tensor:
    """Return ``tensor`` if it spans all of its memory, else a tensor that does, as far as there is one."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return tensor
    if isinstance(tensor, Tracer):
        return _holder(tensor)
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.is_contiguous() and tensor.numel() == size:
        return tensor
    return tensor.as_strided((size,), (1,), 0)


def _positions_in(tensor: Tensor, whole: Tensor) -> Tensor | None:
    """Return where in ``whole`` (flat, row-major) the elements of ``tensor`` lie; None if one lies outside."""
    held, order = torch.sort(_offsets(whole))
    sought = _offsets(tensor)
    if not sought.numel() or not held.numel():
        return None if sought.numel() else sought
    place = torch.searchsorted(held, sought).clamp(max=held.numel() - 1)
    return order[place] if torch.equal(held[place], sought) else None


def _offsets(tensor: Tensor) -> Tensor:
    """Return where in memory each element lies, in row-major order."""
    result = torch.tensor(tensor.storage_offset())
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        result = result.unsqueeze(-1) + torch.arange(size) * step
    return result.flatten()


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )
