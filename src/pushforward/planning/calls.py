"""Calls of PyTorch's functions, written down: what was called on which tensors, and which functions do what."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def functions(*names: str) -> set[Any]:
    """Return the functions and methods with these names."""
    owners = (torch, Tensor)
    return {getattr(owner, name) for name in names for owner in owners if hasattr(owner, name)}


PRODUCTS = functions("mul", "__mul__", "__rmul__")
SUMS = functions("add", "__add__", "__radd__")
NEGATIONS = functions("neg", "__neg__", "negative")
# Functions whose result shares memory with no argument.
FRESH = PRODUCTS | SUMS | functions(
    "mm", "mv", "bmm", "matmul", "__matmul__", "addmm", "sum", "sub", "__sub__", "rsub", "div", "__truediv__", "outer",
    "neg", "__neg__", "square", "pow", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sqrt", "rsqrt",
    "reciprocal", "sigmoid", "sign", "where", "cat", "stack", "diag_embed", "index_select", "index_add", "gather",
    "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "logical_not",
    "logical_and", "clone", "slice_scatter", "select_scatter", "scatter_add", "one_hot", "einsum", "cumsum", "flip",
    "constant_pad_nd", "abs", "argsort", "conj_physical", "log1p", "expm1", "erf", "clamp", "roll", "bitwise_not",
    "addcmul",
)  # fmt: skip
# These give their first argument itself where there is nothing to do.
SELVES = functions(
    "contiguous", "reshape", "expand", "to", "conj", "resolve_conj", "resolve_neg", "real", "float", "double",
)  # fmt: skip
VIEWS = functions(
    "permute", "reshape", "view", "expand", "t", "transpose", "movedim", "select", "narrow", "unsqueeze", "squeeze",
    "__getitem__", "unbind", "diagonal", "flatten", "unflatten", "as_strided", "mT", "unfold",
)  # fmt: skip
# New tensors, of no tensor's elements.
MAKERS = {
    getattr(torch, name)
    for name in ("ones", "zeros", "empty", "full", "eye", "arange", "tensor", "scalar_tensor", "tril_indices")
}  # fmt: skip
PLAIN = {Tensor, torch.nn.Parameter}


@functools.cache
def _is_functional(func: Any) -> bool:
    """Tell whether an operator writes to no argument, and gives new tensors only; what gives nothing may raise."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    schema = func._schema
    is_pure = not schema.is_mutable and torch.Tag.nondeterministic_seeded not in func.tags
    is_useful = is_pure and bool(schema.returns)
    return is_useful and all(r.alias_info is None for r in schema.returns)


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
    """A tensor: one of the values that a computation starts from, or the result of a call."""

    number: int
    is_value: bool
    place: int | None = None  # in a value or result that is a tuple

    @property
    def source(self) -> str:
        """The expression that stands for it."""
        name = f"v[{self.number}]" if self.is_value else f"t{self.number}"
        return name if self.place is None else f"{name}[{self.place}]"

    @property
    def whole(self) -> Ref:
        """The value or result that it is, or is part of."""
        return self if self.place is None else Ref(self.number, self.is_value)


@dataclasses.dataclass(slots=True)
class Call:
    """One call."""

    func: Any
    args: tuple[Any, ...]  # with references for tensors
    kwargs: dict[str, Any]
    result: Ref
    refs: list[Ref]  # among the arguments

    @property
    def is_fresh(self) -> bool:
        """Whether it writes to no argument, and its result shares memory with none."""
        if self.func is torch.einsum and len(self.refs) < 2:
            return False  # perhaps it only permutes axes, or takes a diagonal
        return (self.func in FRESH or _is_functional(self.func)) and "out" not in self.kwargs

    @property
    def is_harmless(self) -> bool:
        """Whether nobody notices that it is left out, if its result is not used."""
        is_view = self.func in VIEWS or self.func is torch.einsum
        return self.is_fresh or is_view or self.func in MAKERS

    def renamed(self, same: Mapping[Ref, Any]) -> Call:
        """Return the call with other references."""
        if not any(ref in same for ref in self.refs):
            return self
        return Call(
            self.func,
            replaced(self.args, same),
            {name: replaced(value, same) for name, value in self.kwargs.items()},
            self.result,
            [ref for ref in replaced(self.refs, same) if isinstance(ref, Ref)],
        )


def replaced(tree: Any, same: Mapping[Ref, Any]) -> Any:
    """Replace references in nested tuples and lists."""
    if isinstance(tree, Ref):
        return same.get(tree, tree)
    if type(tree) in (tuple, list):
        return type(tree)(replaced(item, same) for item in tree)
    return tree


def refs_in(tree: Any) -> list[Ref]:
    """Return the references in nested tuples and lists."""
    if isinstance(tree, Ref):
        return [tree]
    if type(tree) in (tuple, list):
        return [ref for item in tree for ref in refs_in(item)]
    return []


def only_read(calls: Iterable[Call], returned: Iterable[Ref]) -> set[Ref]:
    """Return the results that are not returned, viewed or written to."""
    others = {ref.whole for ref in returned}
    results = set()
    for call in calls:
        results.add(call.result)
        if not call.is_fresh:
            others.update(ref.whole for ref in call.refs)
    return results - others


def reached(calls: list[Call], targets: Iterable[Ref]) -> set[Ref]:
    """Return what may share memory with ``targets``: all that they were made of, but by fresh calls."""
    found = {ref.whole for ref in targets}
    for call in reversed(calls):
        if call.result in found and not call.is_fresh and call.func not in MAKERS:
            found.update(ref.whole for ref in call.refs)
    return found


def num_uses(calls: Iterable[Call], returned: Iterable[Ref]) -> collections.Counter[Ref]:
    """Return how often each is an argument, or returned."""
    uses = collections.Counter(ref for call in calls for ref in call.refs)
    uses.update(returned)
    return uses
