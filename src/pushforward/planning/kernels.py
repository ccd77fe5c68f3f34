"""Kernels: the calls of PyTorch's functions that a computation made, as a function that makes them again.

Which calls a sweep makes depends on shapes and structure alone. Made again without deciding anew, they also leave out
what turned out to be nothing: products with one, views that change nothing, results that nobody uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pushforward.tape.metadata import METADATA
from pushforward.tape.private_torch import is_wrapped

Rows = list[list[Tensor]]
Replay = Callable[[Sequence[Tensor]], Rows]

MAX_BYTES = 2**26  # of results that are kept alive while calls are written down


def _functions(*names: str) -> set[Any]:
    """Return the functions and methods with these names."""
    owners = (torch, Tensor)
    return {getattr(owner, name) for name in names for owner in owners if hasattr(owner, name)}


_PRODUCTS = _functions("mul", "__mul__", "__rmul__")
_FRESH = _PRODUCTS | _functions(
    "mm", "mv", "bmm", "matmul", "__matmul__", "sum", "add", "__add__", "sub", "__sub__", "rsub", "div", "__truediv__",
    "neg", "__neg__", "square", "pow", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sqrt", "rsqrt",
    "reciprocal", "sigmoid", "sign", "where", "cat", "stack", "diag_embed",
)  # fmt: skip
# These give their first argument itself where there is nothing to do.
_SELVES = _functions(
    "contiguous", "reshape", "expand", "to", "conj", "resolve_conj", "resolve_neg", "real", "float", "double",
)  # fmt: skip
_VALUE_TAGS = {
    torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded,
}  # fmt: skip
_VIEWS = _functions("permute", "reshape", "view", "expand", "t", "transpose", "movedim")
_MAKERS = {torch.ones, torch.zeros, torch.empty, torch.full, torch.eye, torch.arange}
_PLAIN = {Tensor, torch.nn.Parameter}
_FASTER: dict[Any, Any] = {
    Tensor.__rsub__: torch.rsub  # the method is written in Python: 2 microseconds more
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Ref:
    """A tensor: one of the values, or the result of a call."""

    number: int
    is_value: bool
    place: int | None = None  # in a result that is a tuple

    @property
    def source(self) -> str:
        if self.is_value:
            return f"v[{self.number}]"
        return f"t{self.number}" if self.place is None else f"t{self.number}[{self.place}]"


@dataclasses.dataclass(slots=True)
class _Call:
    func: Any
    args: tuple[Any, ...]  # with references for tensors
    kwargs: dict[str, Any]
    result: _Ref
    refs: list[_Ref]  # among the arguments

    @property
    def is_fresh(self) -> bool:
        """Whether it writes to no argument, and its result shares memory with none."""
        return self.func in _FRESH and "out" not in self.kwargs


def written(values: Sequence[Tensor], compute: Callable[[], Rows]) -> Replay | None:
    """Return the function of tensors like ``values`` that repeats ``compute()``; None if that depends on elements."""
    kernels = noted(values, compute)
    return None if kernels is None else kernels.compiled()


def noted(values: Sequence[Tensor], compute: Callable[[], Rows]) -> Kernels | None:
    """Return the calls that ``compute()`` makes, starting from ``values``; None if they depend on elements."""
    calls, elements = _Calls(values), _Elements()
    with calls, elements:
        rows = compute()
    return None if elements.have_mattered else calls.kernels(rows)


class Kernels:
    """Calls, and what of their results is returned."""

    def __init__(self, calls: list[_Call], rows: Any, tensors: dict[_Ref, Tensor]) -> None:
        """Take calls in order; ``tensors`` are examples of what the references stand for."""
        self._calls, self._rows, self._tensors = calls, rows, tensors

    def compiled(self) -> Replay:
        """Return one Python function that makes the calls which are needed."""
        rows = self._rows
        calls, same = _without_repetitions(self._calls, _refs_in(rows))
        rows = _with(rows, same)
        calls, same = _without_units(calls, _refs_in(rows), self._tensors)
        rows = _with(rows, same)
        returned = _refs_in(rows)
        calls = _without_unused(calls, returned)
        calls = _in_place(calls, returned, self._tensors)
        return _compiled(calls, rows, returned)

    def run(self, values: Sequence[Tensor]) -> tuple[Rows, dict[int, _Ref]]:
        """Make the calls one by one; return the rows, and what stands for each tensor, by its id."""
        found: dict[_Ref, Any] = {_Ref(n, is_value=True): v for n, v in enumerate(values)}
        for call in self._calls:
            result = call.func(*_with(call.args, found), **_with_names(call.kwargs, found))
            found[call.result] = result
            if isinstance(result, (tuple, list)):
                for place, part in enumerate(result):
                    found[dataclasses.replace(call.result, place=place)] = part
        refs: dict[int, _Ref] = {}
        for ref, tensor in found.items():
            refs.setdefault(id(tensor), ref)
        rows: Rows = _with(self._rows, found)
        return rows, refs

    def followed_by(self, other: Kernels, refs: Sequence[_Ref | None]) -> Replay | None:
        """Return a function that makes these calls and then those of ``other``.

        The values of ``other`` are what ``refs`` stand for here; None: nothing, so that no call may need it.
        """
        if any(refs[ref.number] is None for ref in other.values_used):
            return None
        shift = len(self._calls)
        known = {_Ref(n, is_value=True): ref for n, ref in enumerate(refs) if ref is not None}

        def moved(ref: _Ref) -> _Ref:
            return dataclasses.replace(ref, number=ref.number + shift)

        same = known | {ref: moved(ref) for ref in other._tensors if not ref.is_value}
        same |= {call.result: moved(call.result) for call in other._calls}
        calls = self._calls + [
            _Call(
                call.func,
                _with(call.args, same),
                _with_names(call.kwargs, same),
                same[call.result],
                _with(call.refs, same),
            )
            for call in other._calls
        ]
        tensors = self._tensors | {
            same[ref]: tensor for ref, tensor in other._tensors.items() if not ref.is_value
        }
        return Kernels(calls, _with(other._rows, same), tensors).compiled()

    @property
    def values_used(self) -> set[_Ref]:
        """The values that calls take or that are returned."""
        refs = [*_refs_in(self._rows), *(ref for call in self._calls for ref in call.refs)]
        return {ref for ref in refs if ref.is_value}


class _Calls(TorchFunctionMode):
    """Writes down the functions of PyTorch that are called."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        """Take the tensors that the computation starts from."""
        super().__init__()
        self._tensors: dict[_Ref, Tensor] = {}  # ids are names only as long as their tensors live
        self._refs: dict[int, _Ref] = {}
        self._calls: list[_Call] = []
        self._num_bytes = 0
        self._is_possible = True
        for number, value in enumerate(values):
            if id(value) not in self._refs:
                self._name(value, _Ref(number, is_value=True))

    def _name(self, tensor: Tensor, ref: _Ref) -> None:
        self._refs[id(tensor)] = ref
        self._tensors.setdefault(ref, tensor)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, and write the call down."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        is_nothing = func in METADATA or (func in _SELVES and result is args[0])
        if self._is_possible and not is_nothing:
            self._write(_FASTER.get(func, func), args, kwargs, result)
        return result

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        refs: list[_Ref] = []
        args = self._with_refs(args, refs)
        kwargs = {name: self._with_refs(a, refs) for name, a in kwargs.items()}
        if not self._is_possible:
            self._give_up()
            return
        if func in _VIEWS and _is_same_view(result, self._tensors[refs[0]]):
            self._refs[id(result)] = refs[0]
            self._tensors[_Ref(-1 - len(self._tensors), is_value=False)] = result  # keep it alive
            return
        ref = _Ref(len(self._calls), is_value=False)
        if isinstance(result, Tensor):
            self._num_bytes += result.numel() * result.element_size()
            if self._num_bytes > MAX_BYTES:
                self._give_up()
                return
        self._calls.append(_Call(func, args, kwargs, ref, refs))
        if isinstance(result, Tensor):
            self._name(result, ref)
        elif isinstance(result, (tuple, list)) and all(isinstance(r, Tensor) for r in result):
            for place, part in enumerate(result):
                self._name(part, dataclasses.replace(ref, place=place))
        elif result is not None:
            self._give_up()  # a number read from a tensor may be another next time

    def _give_up(self) -> None:
        self._is_possible = False
        self._tensors.clear()
        self._calls.clear()

    def _with_refs(self, tree: Any, refs: list[_Ref]) -> Any:
        """Replace tensors by references, and collect these."""
        if isinstance(tree, Tensor):
            ref = self._refs.get(id(tree))
            if ref is None:
                self._is_possible = False  # made out of our sight
                ref = _Ref(0, is_value=True)
            refs.append(ref)
            return ref
        if type(tree) in (tuple, list):
            return type(tree)(self._with_refs(item, refs) for item in tree)
        return tree

    def kernels(self, rows: Rows) -> Kernels | None:
        """Return the calls that led to ``rows``, None if they cannot be repeated."""
        rows = self._with_refs(rows, [])
        return Kernels(self._calls, rows, self._tensors) if self._is_possible else None


class _Elements(TorchDispatchMode):
    """Notices operators whose result has a shape, or is a number, that depends on elements; and random ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.have_mattered = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Answer no: PyTorch would import its compiler at the first operator, which takes two seconds."""
        return False

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
        return func(*args, **(kwargs or {}))


def _takes_integers(func: Any, args: tuple[Any, ...]) -> bool:
    """Tell whether this is indexing by integers alone, whose tag is meant for masks."""
    if func.overloadpacket is not torch.ops.aten.index:
        return False
    return not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _is_same_view(result: Any, viewed: Tensor) -> bool:
    return (
        type(result) is Tensor
        and type(viewed) in _PLAIN
        and result.shape == viewed.shape
        and result.stride() == viewed.stride()
        and not (is_wrapped(result) or is_wrapped(viewed))
        and result.data_ptr() == viewed.data_ptr()
    )


def _without_units(
    calls: list[_Call], returned: list[_Ref], tensors: dict[_Ref, Tensor]
) -> tuple[list[_Call], dict[_Ref, _Ref]]:
    """Leave out products with ones, where nobody can tell whether the result is the other factor itself.

    Returns the calls that are left, and what stands for the results of the others.
    """
    only_read, only_returned = _only_read(calls, returned), _only_read(calls, [])
    fresh = {call.result for call in calls if call.is_fresh} & only_read
    units = _units(calls)
    same: dict[_Ref, _Ref] = {}
    kept = []
    for call in calls:
        refs = call.refs
        is_product = call.func in _PRODUCTS and call.is_fresh and len(refs) == 2
        if is_product and not units.isdisjoint(refs):
            factor = refs[1] if refs[0] in units else refs[0]
            factor = same.get(factor, factor)
            old, new = tensors[factor], tensors[call.result]
            is_hidden = call.result in only_read or (
                call.result in only_returned and factor in fresh
            )
            if is_hidden and old.shape == new.shape and old.dtype is new.dtype:
                same[call.result] = factor
                if call.result not in only_read:
                    fresh.discard(factor)  # it is returned now
                continue
        kept.append(_renamed(call, same))
    return kept, same


def _units(calls: list[_Call]) -> set[_Ref]:
    """Return what is one everywhere, and stays so: ones and their views, if none of them may be written to."""
    units: set[_Ref] = set()
    for call in calls:
        if call.func is torch.ones or (call.func in _VIEWS and call.refs[0] in units):
            units.add(call.result)
        elif not call.is_fresh and not units.isdisjoint(call.refs):
            return set()
    return units


def _only_read(calls: list[_Call], returned: list[_Ref]) -> set[_Ref]:
    """Return the results that are not returned, viewed or written to."""
    others = set(returned)
    for call in calls:
        if not call.is_fresh:
            others.update(call.refs)
    return {call.result for call in calls} - others


def _renamed(call: _Call, same: dict[_Ref, _Ref]) -> _Call:
    if not any(ref in same for ref in call.refs):
        return call
    kwargs = _with_names(call.kwargs, same)
    return _Call(call.func, _with(call.args, same), kwargs, call.result, _with(call.refs, same))


def _with(tree: Any, same: Mapping[_Ref, Any]) -> Any:
    """Replace references."""
    if isinstance(tree, _Ref):
        return same.get(tree, tree)
    if type(tree) in (tuple, list):
        return type(tree)(_with(item, same) for item in tree)
    return tree


def _with_names(kwargs: dict[str, Any], same: Mapping[_Ref, Any]) -> dict[str, Any]:
    return {name: _with(value, same) for name, value in kwargs.items()}


def _refs_in(tree: Any) -> list[_Ref]:
    if isinstance(tree, _Ref):
        return [tree]
    if type(tree) in (tuple, list):
        return [ref for item in tree for ref in _refs_in(item)]
    return []


def _without_repetitions(
    calls: list[_Call], returned: list[_Ref]
) -> tuple[list[_Call], dict[_Ref, _Ref]]:
    """Leave out calls that were made before with the same arguments, unless the caller gets their results."""
    only_read = _only_read(calls, returned)
    before: dict[Any, _Ref] = {}
    same: dict[_Ref, _Ref] = {}
    kept = []
    for call in calls:
        renamed = _renamed(call, same)
        if renamed.is_fresh and call.result in only_read:
            key = _hashable((renamed.func, renamed.args, tuple(renamed.kwargs.items())))
            if key in before:
                same[call.result] = before[key]
                continue
            if all(ref.is_value or ref in only_read for ref in renamed.refs):
                before[key] = call.result
        kept.append(renamed)
    return kept, same


def _hashable(tree: Any) -> Any:
    if type(tree) in (tuple, list):
        return (type(tree), *map(_hashable, tree))
    return (type(tree), tree) if not isinstance(tree, float) else (float, repr(tree))


def _without_unused(calls: list[_Call], returned: list[_Ref]) -> list[_Call]:
    """Leave out results that nobody uses; all calls stay where one might write to its arguments."""
    needed = {ref.number for ref in returned if not ref.is_value}
    kept = []
    for call in reversed(calls):
        if call.result.number in needed or not _is_harmless(call):
            kept.append(call)
            needed.update(ref.number for ref in call.refs if not ref.is_value)
    return kept[::-1]


def _is_harmless(call: _Call) -> bool:
    return call.is_fresh or call.func in _VIEWS or call.func in _MAKERS


def _in_place(calls: list[_Call], returned: list[_Ref], tensors: dict[_Ref, Tensor]) -> list[_Call]:
    """Write products over their first factor, where it is a temporary that is not needed any more.

    Only where all tensors are plain: autograd, or a recording around this one, would hold on to temporaries.
    """
    if not all(
        type(t) in _PLAIN and not t.requires_grad and not is_wrapped(t) for t in tensors.values()
    ):
        return calls
    only_read = _only_read(calls, returned)
    last = {ref: i for i, call in enumerate(calls) for ref in call.refs}
    fresh: set[_Ref] = set()
    for i, call in enumerate(calls):
        if call.is_fresh:
            fresh.add(call.result)
        if call.func in _PRODUCTS and call.is_fresh and isinstance(call.args[0], _Ref):
            first = call.args[0]
            if first in fresh and first in only_read and last[first] == i:
                old, new = tensors[first], tensors[call.result]
                if old.shape == new.shape and old.dtype is new.dtype:
                    call.func = Tensor.mul_
    return calls


def _compiled(calls: list[_Call], rows: Any, returned: list[_Ref]) -> Replay:
    """Return the calls as one Python function."""
    scope: dict[str, Any] = {}

    def source(tree: Any) -> str:
        if isinstance(tree, _Ref):
            return tree.source
        if type(tree) in (tuple, list):
            items = "".join(f"{source(item)}, " for item in tree)
            return f"({items})" if type(tree) is tuple else f"[{items}]"
        if type(tree) in (int, bool, str, type(None)):
            return repr(tree)
        name = f"c{len(scope)}"
        scope[name] = tree
        return name

    last = {ref.number: i for i, call in enumerate(calls) for ref in call.refs if not ref.is_value}
    for ref in returned:
        last.pop(ref.number, None)
    lines = ["def replay(v):"]
    for i, call in enumerate(calls):
        arguments = [source(a) for a in call.args]
        arguments += [f"{name}={source(a)}" for name, a in call.kwargs.items()]
        lines.append(f"    t{call.result.number} = {source(call.func)}({', '.join(arguments)})")
        ended = {r.number for r in call.refs if not r.is_value and last.get(r.number) == i}
        if ended:
            lines.append(f"    del {', '.join(f't{n}' for n in sorted(ended))}")
    lines.append(f"    return {source(rows)}")
    text = "\n".join(lines)
    exec(text, scope)  # the source is ours alone
    replay: Replay = scope["replay"]
    replay.__doc__ = text
    return replay
