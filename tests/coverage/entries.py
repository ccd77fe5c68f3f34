"""PyTorch's operator database as plain functions of dense floating tensors."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from device import DEVICE
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

SEED = 20260921
DTYPES = (torch.float64, torch.complex128)

Point = tuple[Tensor, ...]

# Outputs that are compared, where not all are. The third of lstsq are singular values, and the samples are nearly
# orthogonal: the values are so close that differences say nothing. linalg.svdvals has the same derivative.
NUM_OUTPUTS = {"linalg.lstsq": 2}


@dataclasses.dataclass(frozen=True)
class Case:
    """One sample of one operator: a function of its differentiable arguments, and the point to take."""

    entry: str
    index: int
    dtype: torch.dtype
    function: Callable[..., tuple[Tensor, ...]]
    point: Point
    bare: Callable[
        ..., tuple[Tensor, ...]
    ]  # the function, given its arguments themselves and no copies
    is_random: bool
    least_precise: torch.dtype  # of all floating tensors of the call
    label: str  # the arguments, abbreviated

    @property
    def name(self) -> str:
        """Say which sample this is: pin it down with ``--entry`` and this number."""
        return f"{_short(self.dtype)} #{self.index} {self.label}"


def seeded(thunk: Callable[[], Any]) -> Any:
    """Call ``thunk`` with the random numbers of every other call: random operators are functions then."""
    torch.default_generator.manual_seed(
        SEED
    )  # torch.manual_seed takes 0.5 ms, for the other devices
    return thunk()


def name_of(entry: Any) -> str:
    """Return ``name.variant``."""
    return str(entry.full_name)


def entries() -> dict[str, Any]:
    """Return the entries that support autograd on the CPU in float64 or complex128, by name."""
    found = {}
    for entry in op_db:
        if entry.supports_autograd and dtypes_of(entry):
            name, count = name_of(entry), 2
            while name in found:  # the database holds a few operators twice, with other samples
                name, count = f"{name_of(entry)}#{count}", count + 1
            found[name] = entry
    return found


def dtypes_of(entry: Any) -> list[torch.dtype]:
    """Return those of float64 and complex128 in which PyTorch differentiates the operator."""
    return [dtype for dtype in DTYPES if dtype in entry.supported_backward_dtypes(DEVICE)]


def samples_of(entry: Any, dtype: torch.dtype) -> list[Any]:
    """Return the entry's samples, the same at every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)
        return list(entry.sample_inputs(DEVICE, dtype, requires_grad=True))


def cases(name: str, entry: Any, dtype: torch.dtype) -> Iterator[Case]:
    """Yield every sample of the entry that has something to differentiate."""
    samples = samples_of(entry, dtype)
    found = [case_of(name, entry, sample, index, dtype) for index, sample in enumerate(samples)]
    # Dropout at rate 1 draws nothing in the kernel, and is a random operator to every transform.
    is_random = any(case.is_random for case in found if case)
    for case in found:
        if case is not None:
            yield dataclasses.replace(case, is_random=is_random)


def case_of(name: str, entry: Any, sample: Any, index: int, dtype: torch.dtype) -> Case | None:
    """Return the sample as a function of the tensors that it marks as differentiable, None if it marks none."""
    leaves, spec = tree_flatten(((sample.input, *sample.args), sample.kwargs))
    tensors = [isinstance(leaf, Tensor) and not leaf.is_nested for leaf in leaves]
    active = [
        i
        for i, leaf in enumerate(leaves)
        if tensors[i] and _has_values(leaf) and leaf.requires_grad
    ]
    if not active:  # samples without marks: whatever is of the dtype
        active = [
            i
            for i, leaf in enumerate(leaves)
            if tensors[i] and _has_values(leaf) and leaf.dtype == dtype
        ]
    if not active:
        return None
    templates = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    call = _call(entry, sample, templates, spec, active)
    point = tuple(_values(templates[i]).clone() for i in active)
    with _RandomWatch() as watch:
        try:
            function, bare = seeded(
                lambda: _differentiable_outputs(call, point, NUM_OUTPUTS.get(name))
            )
        except _NoDerivativeError:
            return None
    precisions = [t.dtype.to_real() for t in templates if isinstance(t, Tensor) and _has_values(t)]
    least_precise = max(precisions, key=lambda d: torch.finfo(d).eps)
    label = _label(leaves[0], sample)
    return Case(name, index, dtype, function, point, bare, watch.has_drawn, least_precise, label)


class _RandomWatch(TorchDispatchMode):
    """Notices random operators; the generator does not tell, as some wrappers of the database put it back."""

    has_drawn = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.has_drawn |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class _NoDerivativeError(Exception):
    """The sample gives no floating output."""


def _call(
    entry: Any, sample: Any, templates: list[Any], spec: Any, active: list[int]
) -> Callable[..., list[Any]]:
    op, wrapper, finish = entry.get_op(), entry.gradcheck_wrapper, sample.output_process_fn_grad
    reads_memory = name_of(entry) == "as_strided.partial_views"
    constants = [
        i for i, t in enumerate(templates) if isinstance(t, Tensor) and t.is_floating_point()
    ]

    def call(*point: Tensor) -> list[Any]:
        leaves = list(templates)
        for i in constants:  # running statistics are written in place
            leaves[i] = leaves[i].clone()
        for i, x in zip(active, point, strict=True):
            leaves[i] = _rebuilt(templates[i], x, in_place=reads_memory)
        args, kwargs = tree_unflatten(leaves, spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = finish(wrapper(op, *args, **kwargs))
        return [_to_dense(o) for o in tree_flatten(out)[0]]

    return call


def _differentiable_outputs(
    call: Callable[..., list[Any]], point: Point, num_outputs: int | None
) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]:
    """Return ``call`` with its floating outputs alone: of copies of its arguments, and of these themselves."""
    outs = call(*(x.clone() for x in point))
    chosen = [
        i
        for i, o in enumerate(outs[:num_outputs])
        if isinstance(o, Tensor) and (o.is_floating_point() or o.is_complex())
    ]
    if not chosen:
        raise _NoDerivativeError

    def bare(*xs: Tensor) -> tuple[Tensor, ...]:
        result = call(*xs)
        return tuple(result[i].clone() for i in chosen)

    def function(*xs: Tensor) -> tuple[Tensor, ...]:
        return bare(*(x.clone() for x in xs))  # some operators write into their arguments

    return function, bare


def _has_values(leaf: Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _values(leaf: Tensor) -> Tensor:
    if leaf.layout is torch.strided:
        return leaf
    return leaf._values() if leaf.layout is torch.sparse_coo else leaf.values()


def _rebuilt(template: Tensor, values: Tensor, *, in_place: bool) -> Tensor:
    """Return ``values`` as they are, or ``in_place`` of a view, or in a sparse tensor, like ``template``."""
    layout = template.layout
    if layout is torch.strided and not in_place:
        return values
    if layout is torch.strided:
        num_bytes = template.untyped_storage().nbytes()
        whole = template.as_strided((num_bytes // template.itemsize,), (1,), 0).clone()
        view = whole.as_strided(template.shape, template.stride(), template.storage_offset())
        return view.copy_(values)
    if layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(template._indices(), values, template.shape)
    by_rows = layout in (torch.sparse_csr, torch.sparse_bsr)
    outer = template.crow_indices() if by_rows else template.ccol_indices()
    inner = template.col_indices() if by_rows else template.row_indices()
    return torch.sparse_compressed_tensor(outer, inner, values, template.shape, layout=layout)


def _to_dense(out: Any) -> Any:
    if isinstance(out, Tensor) and out.layout is not torch.strided:
        return out.to_dense()
    return out


def _label(first: Any, sample: Any) -> str:
    parts = [_brief(first), *map(_brief, sample.args)]
    parts += [f"{k}={_brief(v)}" for k, v in sample.kwargs.items()]
    text = ", ".join(parts)
    return f"({text if len(text) < 160 else text[:157] + '...'})"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_short(value.dtype)}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_brief, value))}]"
    return repr(value)[:40]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
