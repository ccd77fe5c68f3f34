"""Numbers: kernels of small tensors as straight code of Python's numbers.

A call of PyTorch's takes a microsecond, whatever it computes; a product of two numbers takes a thirtieth of that. So
tensors of a few elements are taken apart: each is an array of the numbers that its elements are, on which functions
that only move elements run themselves. In double precision, as that is what Python computes in.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.planning.calls import (
    MAKERS,
    NEGATIONS,
    PLAIN,
    PRODUCTS,
    SUMS,
    VIEWS,
    Call,
    Ref,
    functions,
    refs_in,
    replaced,
)
from pushforward.planning.simplifying import may_write
from pushforward.tape.private_compiler import empty_strided_cpu
from pushforward.tape.private_functorch import is_wrapped
from pushforward.tape.private_torch import bare

Replay = Callable[[Sequence[Any]], Any]

MAX_ELEMENTS = 256  # of one tensor
MAX_NUMBERS = 8192  # of all: of more, the code takes long to compile
MAX_DEPTH = 12  # of expressions within each other
# In microseconds: a call of PyTorch's, loading a tensor, an operation, a function of the C library, a result.
CALL, LOAD, OPERATION, FUNCTION, RESULT = 0.8, 0.15, 0.022, 0.05, 0.8
MIN_SAVED = 3.0
PUT_OFF = 64  # calls: to write the code takes as long as dozens of them

PRODUCT, SUM = "{0} * {1}", "{0} + {1}"
_ONE = "(1.0)"
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
FUNCTIONS = ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "log", "sqrt", "log1p", "expm1")

aten = torch.ops.aten

_ELEMENTWISE: dict[Any, str] = {}
for _names, _template in (
    ("sub __sub__", "{0} - {1}"),
    ("rsub __rsub__", "{1} - {0}"),
    ("div __truediv__ true_divide", "{0} / {1}"),
    ("__rdiv__ __rtruediv__", "{1} / {0}"),
    ("reciprocal", "1.0 / {0}"),
    ("square", "{0} * {0}"),
    ("abs", "abs({0})"),
    ("sign sgn", "float(({0} > 0.0) - ({0} < 0.0))"),
    *((f"{name} __{name}__", f"{{0}} {sign} {{1}}") for name, sign in COMPARISONS.items()),
    ("logical_not", "not {0}"),
    ("where", "{1} if {0} else {2}"),
    ("addcmul", "{0} + {1} * {2}"),
    *((name, f"{name}({{0}})") for name in FUNCTIONS),
):
    _ELEMENTWISE |= dict.fromkeys(functions(*_names.split()), _template)
_ELEMENTWISE |= dict.fromkeys(PRODUCTS, PRODUCT)
_ELEMENTWISE |= dict.fromkeys(SUMS, SUM)
_ELEMENTWISE |= dict.fromkeys(NEGATIONS, "-{0}")
_ELEMENTWISE |= {
    aten.tanh_backward.default: "{0} * (1.0 - {1} * {1})",
    aten.sigmoid_backward.default: "{0} * (1.0 - {1}) * {1}",
}
_DTYPES = (torch.float64, torch.bool)
_POWERS, _TOTALS, _ADDING = functions("pow", "__pow__"), functions("sum"), functions("index_add")
_SAME = functions("clone", "contiguous")
_INDEXING = functions("__getitem__", "index_select")
_MOVING = VIEWS - functions("as_strided") | _INDEXING | functions(
    "stack", "cat", "diag_embed", "flip", "roll", "slice_scatter", "select_scatter"
)  # fmt: skip
_MOVING |= {getattr(Tensor, name).__get__ for name in ("T", "mT")}
_MATRICES = functions("mm", "mv", "bmm", "matmul", "__matmul__", "dot")
_SCOPE: dict[str, Any] = {
    **{name: getattr(math, name) for name in (*FUNCTIONS, "inf", "nan")},
    "empty": empty_strided_cpu(), "fill": ctypes.memmove, "pack": struct.pack, "float64": torch.float64,
}  # fmt: skip


class _UnsuitableError(Exception):
    """A kernel has something that is not taken apart."""


def in_numbers(
    calls: Sequence[Call], rows: Any, constants: dict[Ref, Tensor], tensors: dict[Ref, Tensor]
) -> Replay | None:
    """Return the calls as code of numbers, None where that is impossible, or takes longer."""
    try:
        program = _Program(constants, tensors)
        for call in calls:
            program.run(call)
        text, price = program.code(rows)
    except (_UnsuitableError, RuntimeError, TypeError, ValueError, LookupError, SyntaxError):
        return None
    if price + MIN_SAVED > CALL * len(calls):
        return None
    scope = dict(_SCOPE)
    exec(text, scope)  # the source is ours alone
    compute: Replay = scope["replay"]
    compute.__doc__ = text
    return compute


def later(
    calls: Sequence[Call], rows: Any, constants: dict[Ref, Tensor], tensors: dict[Ref, Tensor]
) -> Callable[[Replay], Replay] | None:
    """Return what makes a kernel compute with numbers after some calls; None where there are no few numbers."""
    if CALL * len(calls) < MIN_SAVED or not _are_small(calls, rows, constants, tensors):
        return None
    kept = [dataclasses.replace(call) for call in calls]
    refs = {ref for call in calls for ref in (*call.refs, call.result)} & tensors.keys()
    # Examples may hold a graph.
    like = {r: torch.empty(tensors[r].shape, dtype=tensors[r].dtype, device="meta") for r in refs}
    return functools.partial(_first, functools.partial(in_numbers, kept, rows, constants, like))


def _first(make: Callable[[], Replay | None], tensors: Replay) -> Replay:
    """Return a function that computes with numbers after some calls, and with tensors where numbers have no result."""
    numbers, waiting = None, PUT_OFF

    def replay(v: Sequence[Any]) -> Any:
        nonlocal numbers, waiting
        if waiting > 0:
            waiting -= 1
            if waiting <= 0:  # other threads count, too
                with bare():
                    numbers = make()
                if numbers is not None:
                    replay.__doc__ = numbers.__doc__
        if numbers is None:
            return tensors(v)
        try:
            return numbers(v)
        except (ZeroDivisionError, OverflowError, ValueError):  # which tensors tell by inf and nan
            return tensors(v)

    replay.__doc__ = tensors.__doc__
    return replay


def _are_small(
    calls: Sequence[Call], rows: Any, constants: dict[Ref, Tensor], tensors: dict[Ref, Tensor]
) -> bool:
    """Tell whether all that is computed with are a few numbers in double precision."""
    used = [ref for call in calls for ref in call.refs]
    returned = refs_in(rows)
    if any(r.is_value or r.place is not None or not tensors[r].numel() for r in returned):
        return False
    results = {call.result for call in calls}
    for ref in {*used, *returned} - constants.keys():
        example = tensors.get(ref)
        if type(example) not in PLAIN or example is None or example.numel() > MAX_ELEMENTS:
            return False
        if example.layout is not torch.strided:
            return False
        is_integer = example.dtype is torch.int64 and not example.dim()  # in the function's code
        if not (example.dtype in _DTYPES or is_integer):
            return False
        if ref not in results and (is_wrapped(example) or not example.is_cpu):
            return False
    return all(t.numel() <= MAX_ELEMENTS and t.is_cpu for t in constants.values()) and not any(
        may_write(call) for call in calls
    )


class _Program:
    """Calls, carried out on numbers: tensors are arrays of the places at which these stand."""

    def __init__(self, constants: dict[Ref, Tensor], tensors: dict[Ref, Tensor]) -> None:
        self._tensors = tensors
        self._numbers: list[tuple[str, tuple[int, ...]]] = []  # templates, and what fills them
        self._places: dict[Any, int] = {}
        self._found: dict[Ref, Tensor] = {}  # arrays
        self._known: dict[Ref, Tensor] = dict(constants)  # as they are
        self._loads: list[tuple[Ref, list[int]]] = []
        self._constant(0.0)  # the place 0, with which functions that move elements fill gaps

    def _of(self, template: str, *places: int) -> int:
        """Return the place of an operation on numbers."""
        if template == PRODUCT and _ONE in (texts := [self._numbers[p][0] for p in places]):
            return places[1 - texts.index(_ONE)]
        key = (template, places)
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = len(self._numbers)
            self._numbers.append(key)
            if found > MAX_NUMBERS:
                raise _UnsuitableError
        return found

    def _constant(self, value: Any) -> int:
        return self._of(f"({float(value)!r})")

    def _array(self, given: Any) -> Tensor:
        """Return the numbers that something is made of."""
        if isinstance(given, Ref):
            found = self._found.get(given)
            if found is None:
                known = self._known.get(given)
                found = self._loaded(given) if known is None else self._constants(known)
                self._found[given] = found
            return found
        if type(given) in (int, float, bool):
            return torch.tensor(self._constant(given))
        if type(given) in PLAIN:  # a table, which the kernel keeps
            return self._constants(given)
        raise _UnsuitableError

    def _constants(self, tensor: Tensor) -> Tensor:
        is_suitable = tensor.is_cpu and tensor.numel() <= MAX_ELEMENTS
        if not is_suitable or tensor.dtype not in _DTYPES:
            raise _UnsuitableError
        places = [self._constant(value) for value in tensor.flatten().tolist()]
        return torch.tensor(places, dtype=torch.int64).reshape(tensor.shape)

    def _loaded(self, ref: Ref) -> Tensor:
        if not ref.is_value:
            raise _UnsuitableError
        shape, first = self._tensors[ref].shape, len(self._numbers)
        places = [self._of(f"n{first + i}") for i in range(shape.numel())]
        self._loads.append((ref, places))
        return torch.tensor(places, dtype=torch.int64).reshape(shape)

    def run(self, call: Call) -> None:
        """Carry out one call."""
        func, args = call.func, call.args
        template = _ELEMENTWISE.get(func)
        if func in MAKERS:
            if call.refs:
                raise _UnsuitableError
            self._known[call.result] = func(*args, **call.kwargs)
        elif template is not None and not call.kwargs:
            self._found[call.result] = self._elementwise(template, *map(self._array, args))
        elif func in _POWERS and not call.kwargs:
            self._found[call.result] = self._power(*args)
        elif func is Tensor.to and args[1:] == (torch.float64,) and not call.kwargs:
            self._found[call.result] = self._elementwise("float({0})", self._array(args[0]))
        elif func in _SAME and len(args) == 1:
            self._found[call.result] = self._array(args[0])
        elif func in _TOTALS:
            self._found[call.result] = self._summed(*args, **call.kwargs)
        elif func in _MATRICES and not call.kwargs:
            self._found[call.result] = self._product(*map(self._array, args))
        elif func in _ADDING and not call.kwargs:
            self._found[call.result] = self._added(*args)
        elif func in _MOVING or (func is torch.constant_pad_nd and len(args) == 2):
            self._move(call)
        else:
            raise _UnsuitableError
        found, example = self._found.get(call.result), self._tensors.get(call.result)
        if found is not None and example is not None and found.shape != example.shape:
            raise _UnsuitableError
        if template == SUM and example is not None and example.dtype is torch.bool:
            raise _UnsuitableError  # Python counts what is true

    def _move(self, call: Call) -> None:
        """Let a function move numbers."""

        def arrays(tree: Any) -> Any:
            if type(tree) in (tuple, list):
                return type(tree)(arrays(item) for item in tree)
            return self._array(tree) if isinstance(tree, (Ref, Tensor)) else tree

        if call.func in _INDEXING:  # by constants, as far as by tensors
            known = {ref: self._known[ref] for ref in refs_in(call.args[1:])}
            args = (self._array(call.args[0]), *replaced(call.args[1:], known))
            kwargs = {name: replaced(value, self._known) for name, value in call.kwargs.items()}
        else:
            args, kwargs = arrays(call.args), {n: arrays(a) for n, a in call.kwargs.items()}
        result = call.func(*args, **kwargs)
        for place, part in enumerate([result] if isinstance(result, Tensor) else result):
            if part.dtype is not torch.int64:
                raise _UnsuitableError
            ref = call.result
            self._found[ref if part is result else Ref(ref.number, False, place)] = part

    def _elementwise(self, template: str, *arrays: Tensor) -> Tensor:
        broadcast = torch.broadcast_tensors(*arrays)
        rows = zip(*(a.flatten().tolist() for a in broadcast), strict=True)
        places = [self._of(template, *row) for row in rows]
        return torch.tensor(places, dtype=torch.int64).reshape(broadcast[0].shape)

    def _power(self, base: Any, exponent: Any) -> Tensor:
        x = self._array(base)
        if type(exponent) not in (int, float) or exponent not in (1, 2, 3):
            raise _UnsuitableError
        found = x
        for _ in range(int(exponent) - 1):
            found = self._elementwise(PRODUCT, found, x)
        return found

    def _summed(self, given: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = self._array(given)
        axes = range(x.dim()) if dim is None else (dim,) if type(dim) is int else dim
        axes = sorted(axis % max(x.dim(), 1) for axis in axes)
        for axis in reversed(axes if x.dim() else []):
            terms = x.unbind(axis)
            total = terms[0] if terms else torch.zeros_like(x.sum(axis))
            for term in terms[1:]:
                total = self._elementwise(SUM, total, term)
            x = total.unsqueeze(axis) if keepdim else total
        return x

    def _added(self, given: Any, axis: int, index: Any, other: Any) -> Tensor:
        """Return the sum with parts along an axis at constant places."""
        x, y = self._array(given), self._array(other)
        places = self._known[index] if isinstance(index, Ref) else index
        parts = list(x.unbind(axis))
        for place, part in zip(places.tolist(), y.unbind(axis), strict=True):
            parts[place] = self._elementwise(SUM, parts[place], part)
        return torch.stack(parts, axis)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of two matrices, or of a matrix and a vector, or of two vectors."""
        left, right = a if a.dim() > 1 else a[None], b if b.dim() > 1 else b[:, None]
        terms = self._elementwise(PRODUCT, left[..., :, None, :], right.mT[..., None, :, :])
        if not terms.shape[-1]:
            raise _UnsuitableError
        total = terms[..., 0]
        for number in range(1, terms.shape[-1]):
            total = self._elementwise(SUM, total, terms[..., number])
        total = total if b.dim() > 1 else total[..., 0]
        return total if a.dim() > 1 else total[..., 0] if b.dim() == 1 else total[..., 0, :]

    def code(self, rows: Any) -> tuple[str, float]:
        """Return the source of the function, and what it takes in microseconds."""
        results = {ref: self._array(ref) for ref in refs_in(rows)}
        outputs = {place for found in results.values() for place in found.flatten().tolist()}
        uses = [0] * len(self._numbers)
        for place in outputs:
            uses[place] += 2  # a name
        for place in range(len(self._numbers) - 1, -1, -1):
            if uses[place]:
                template, operands = self._numbers[place]
                for i, operand in enumerate(operands):
                    uses[operand] += template.count(f"{{{i}}}")
        lines, price = ["def replay(v):"], 0.0
        for ref, places in self._loads:
            if any(uses[place] for place in places):
                names = iter(f"n{place}" if uses[place] else "_" for place in places)
                shape = self._tensors[ref].shape
                lines.append(f"    {_nested(shape, names)} = {ref.source}.tolist()")
                price += LOAD + OPERATION * len(places)
        texts: list[str] = []
        depths: list[int] = []
        for place, (template, operands) in enumerate(self._numbers):
            text, depth = template, 0
            if operands:
                text = template.format(*(texts[operand] for operand in operands))
                depth = 1 + max(depths[operand] for operand in operands)
                price += (FUNCTION if template[0].isalpha() else OPERATION) * bool(uses[place])
                if uses[place] == 1 and depth < MAX_DEPTH:
                    text = f"({text})"
                elif uses[place]:
                    lines.append(f"    n{place} = {text}")
                    text, depth = f"n{place}", 0
            texts.append(text if uses[place] else "")
            depths.append(depth)
        for ref, found in results.items():
            name, count, strides = ref.source, found.numel(), found.contiguous().stride()
            numbers = ", ".join(texts[place] for place in found.flatten().tolist())
            lines.append(f"    {name} = empty({tuple(found.shape)}, {strides}, float64)")
            lines.append(f"    fill({name}.data_ptr(), pack('{count}d', {numbers}), {8 * count})")
            price += RESULT + OPERATION * count
        lines.append(f"    return {_listed(rows)}")
        return "\n".join(lines), price


def _nested(shape: Sequence[int], names: Any) -> str:
    """Return names in nested brackets, as what ``tolist`` gives is unpacked."""
    if not shape:
        return str(next(names))
    return f"[{', '.join(_nested(shape[1:], names) for _ in range(shape[0]))}]"


def _listed(rows: Any) -> str:
    if isinstance(rows, Ref):
        return rows.source
    if type(rows) in (tuple, list):
        items = "".join(f"{_listed(item)}, " for item in rows)
        return f"({items})" if type(rows) is tuple else f"[{items}]"
    return repr(rows)
