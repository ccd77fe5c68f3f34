"""Noting: which of PyTorch's functions a computation calls, seen by a mode around it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pushforward.linear.tables import table
from pushforward.planning.calls import PLAIN, SELVES, VIEWS, Call, Ref
from pushforward.planning.shadowed import SHADOWS, Shadowing
from pushforward.tape.interrupts import under_modes
from pushforward.tape.metadata import METADATA
from pushforward.tape.private_functorch import functorch_level, is_wrapped
from pushforward.tape.private_torch import (
    OperatorMode,
    PythonNode,
    is_zero_without_memory,
    set_grad_enabled,
)
from pushforward.tape.unsaved import Unsaved
from pushforward.trees import map_tensors

Rows = list[list[Tensor]]

_VALUE_TAGS = {
    torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded,
}  # fmt: skip
# The method is written in Python, and takes 2 microseconds more
_FASTER: dict[Any, Any] = {Tensor.__rsub__: torch.rsub}
_STATE = {set_grad_enabled, torch.set_grad_enabled}  # of the thread: that of the replay is right


@dataclasses.dataclass(slots=True)
class Noted:
    """Calls in order, what of their results is returned, and examples of what the references stand for."""

    calls: list[Call]
    rows: Any
    tensors: dict[Ref, Tensor]


def noted(
    values: Sequence[Any], compute: Callable[[], Rows], device: torch.device | None = None
) -> Noted | None:
    """Return the calls that ``compute()`` makes, starting from ``values``; None if they depend on elements.

    Given the ``device`` on which all is, large results are not computed, and None is also returned where they have to.
    """
    calls, elements = _Calls(values, device), _Elements()
    if device is None:
        rows = under_modes((calls,), (elements,), compute)
    else:
        try:
            rows = under_modes((calls,), (elements, Shadowing(device)), compute)
        except Exception:  # what operators raise that find no numbers
            return None
    return None if elements.have_mattered else calls.noted(rows)


class _Calls(TorchFunctionMode):
    """Writes down the functions of PyTorch that are called."""

    def __init__(self, values: Sequence[Any], device: torch.device | None) -> None:
        """Take what the computation starts from, tensors, nodes, and tuples of them; and what shadows stand for."""
        super().__init__()
        self._device = device
        self._tensors: dict[Ref, Tensor] = {}  # or what is like them, of those that may die
        self._refs: dict[int, Ref] = {}  # by id, which is a name as long as the tensor lives
        self._mortal: dict[int, weakref.ref[Tensor]] = {}
        self._tables: dict[int, Tensor] = {}  # which the plan keeps
        self._calls: list[Call] = []
        self._is_possible = True
        self._is_in_level = functorch_level() is not None
        for number, value in enumerate(values):
            if type(value) in (tuple, list):
                for place, part in enumerate(value):
                    self._name_value(part, Ref(number, True, place))
            else:
                self._name_value(value, Ref(number, True))

    def _name_value(self, value: Any, ref: Ref) -> None:
        if value is not None and id(value) not in self._refs:
            self._name(value, ref)

    def _name(self, tensor: Tensor, ref: Ref) -> None:
        self._refs[id(tensor)] = ref
        self._tensors.setdefault(ref, tensor)

    def _name_result(self, tensor: Tensor, ref: Ref) -> None:
        """Name a result, without keeping it alive where its shape is all that is asked for later."""
        is_recorded = tensor.requires_grad
        if type(tensor) is not Tensor or is_wrapped(tensor) or (is_recorded and self._is_in_level):
            self._name(tensor, ref)
            return
        self._refs[id(tensor)] = ref
        self._let_die(tensor)
        with torch._C._DisableTorchDispatch():
            like = torch.empty(
                tensor.shape, dtype=tensor.dtype, device=SHADOWS, requires_grad=is_recorded
            )
        self._tensors.setdefault(ref, like)

    def _let_die(self, tensor: Tensor) -> None:
        """Forget the tensor's name when it dies."""
        name = id(tensor)
        refs, mortal = self._refs, self._mortal

        def forget(_: Any) -> None:
            refs.pop(name, None)
            mortal.pop(name, None)

        mortal[name] = weakref.ref(tensor, forget)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, and write the call down."""
        kwargs = kwargs or {}
        if func is table:
            if args[0].is_meta:
                self._give_up()
            elif not is_wrapped(args[0]):  # or it would outlive its transform
                self._tables[id(args[0])] = args[0]
            return table(args[0])
        result = func(*args, **kwargs)
        is_itself = func in SELVES and bool(args) and result is args[0]
        is_nothing = is_itself or func in METADATA or func in _STATE
        if self._is_possible and not is_nothing:
            self._write(_FASTER.get(func, func), args, kwargs, result)
        return result

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        refs: list[Ref] = []
        first: Any = args[0] if args else None
        args = self._with_refs(args, refs)
        kwargs = {name: self._with_refs(a, refs) for name, a in kwargs.items()}
        if not self._is_possible:
            self._give_up()
            return
        is_view = func in VIEWS and bool(refs and args) and args[0] is refs[0]
        if is_view and _is_same_view(result, first):
            if id(result) not in self._refs:
                self._refs[id(result)] = refs[0]
                self._let_die(result)
            return
        ref = Ref(len(self._calls), False)
        self._calls.append(Call(func, args, kwargs, ref, refs))
        if isinstance(result, Tensor):
            self._name_result(result, ref)
        elif isinstance(result, (tuple, list)) and all(map(_is_tensor_or_none, result)):
            for place, part in enumerate(result):
                if part is not None:
                    self._name_result(part, dataclasses.replace(ref, place=place))
        elif result is not None:
            self._give_up()  # a number read from a tensor may be another next time

    def _give_up(self) -> None:
        self._is_possible = False
        self._tensors.clear()
        self._calls.clear()

    def _with_refs(self, tree: Any, refs: list[Ref]) -> Any:
        """Replace tensors and nodes by references, and collect these."""
        if id(tree) in self._tables:
            return tree
        ref = self._refs.get(id(tree))
        if ref is not None:
            if (
                not ref.is_value
                and isinstance(tree, Tensor)
                and isinstance(tree.grad_fn, PythonNode)
            ):
                # The operators inside an autograd.Function are not all there is to it
                self._is_possible = False
            refs.append(ref)
            return ref
        if type(tree) is torch.device and tree == SHADOWS and self._device is not None:
            return self._device
        if isinstance(tree, Tensor):
            if isinstance(tree, Unsaved):
                return tree  # a shape and no more
            self._is_possible = False  # made out of our sight
        if type(tree) in (tuple, list):
            return type(tree)(self._with_refs(item, refs) for item in tree)
        return tree

    def noted(self, rows: Rows) -> Noted | None:
        """Return the calls that led to ``rows``, None if they cannot be repeated."""
        found = self._with_refs(rows, [])
        return Noted(self._calls, found, self._tensors) if self._is_possible else None


class _Elements(OperatorMode):
    """Notices operators whose result has a shape, or is a number, that depends on elements; and random ones."""

    def __init__(self) -> None:
        super().__init__()
        self.have_mattered = False
        self._is_below = functorch_level() is not None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at the operator's tags."""
        if not _VALUE_TAGS.isdisjoint(func.tags):
            self.have_mattered = self.have_mattered or not _takes_integers(func, args)
        if self._is_below:  # forward mode of torch.func crashes here with zeros that have no memory
            args = map_tensors(_with_memory, args)
        return func(*args, **(kwargs or {}))


def _is_tensor_or_none(result: Any) -> bool:
    return result is None or isinstance(result, Tensor)


def _with_memory(tensor: Tensor) -> Tensor:
    """Return zeros that lie in memory instead of such as do not."""
    if not is_zero_without_memory(tensor):
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _takes_integers(func: Any, args: tuple[Any, ...]) -> bool:
    """Tell whether this is indexing by integers alone, whose tag is meant for masks."""
    if func.overloadpacket is not torch.ops.aten.index:
        return False
    return not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _is_same_view(result: Any, viewed: Tensor) -> bool:
    return (
        type(result) is Tensor
        and type(viewed) in PLAIN
        and result.layout is viewed.layout is torch.strided
        and result.shape == viewed.shape
        and result.stride() == viewed.stride()
        and result.dtype is viewed.dtype
        and not (is_wrapped(result) or is_wrapped(viewed))
        and result.storage_offset() == viewed.storage_offset()  # there may be no memory
        and result.data_ptr() == viewed.data_ptr()
    )
