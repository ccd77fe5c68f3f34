"""The samples of an entry once more, in other shapes, layouts and dtypes."""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ours
import torch
from checking import Checker, Failure, Outcome, mismatch
from device import DEVICE
from entries import Case, case_of, dtypes_of, samples_of, seeded
from references import Autograd, difference_jacobian, real_vector, size
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

NUM_SAMPLES = 3  # of each entry
MAX_NUMBERS = 450  # in the arguments of a sample

# Relative to the largest entry or 1; the reference is float64.
LOW_PRECISION = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

Change = Callable[[Tensor], Tensor]


# ----- Shapes: of every tensor of the call; what the operator itself refuses is left out -----

SHAPES: dict[str, Change] = {
    "first axis of size 1": lambda t: t[:1] if t.dim() else t,
    "last axis of size 1": lambda t: t[..., :1] if t.dim() else t,
    "all axes of size 1": lambda t: t[(slice(0, 1),) * t.dim()],
    "first axis empty": lambda t: t[:0] if t.dim() else t,
    "last axis empty": lambda t: t[..., :0] if t.dim() else t,
    "0-d": lambda t: t.reshape(-1)[0] if t.numel() else t,
}


def _to_others(change: Change) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda tensors: [*tensors[:1], *map(change, tensors[1:])]


def _to_first(change: Change) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda tensors: [*map(change, tensors[:1]), *tensors[1:]]


def _as_integers(t: Tensor) -> Tensor:
    return t.detach().round().to(torch.int64) if t.is_floating_point() else t


def _as_booleans(t: Tensor) -> Tensor:
    return t.detach() > 0 if t.is_floating_point() else t


# Of the tensors in the order of the arguments.
CHANGES: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    **{name: (lambda ts, c=change: [c(t) for t in ts]) for name, change in SHAPES.items()},
    "first argument broadcast": _to_first(SHAPES["first axis of size 1"]),
    "other arguments broadcast": _to_others(SHAPES["first axis of size 1"]),
    "first argument broadcast from 0-d": _to_first(SHAPES["0-d"]),
    "other arguments broadcast from 0-d": _to_others(SHAPES["0-d"]),
    "integer companions": _to_others(_as_integers),
    "boolean companions": _to_others(_as_booleans),
}


def is_unchecked(name: str) -> bool:
    """Tell whether the operator is a kernel that trusts its caller: other shapes would read foreign memory."""
    parts = ("backward", "unpool", "linear_cross_entropy.chunked", "pdist")
    return name.startswith(("_", "native_", "as_strided")) or any(p in name for p in parts)


# ----- Layouts: the same values, otherwise in memory -----


def _reversed_axes(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.dim())))
    return x.permute(axes).contiguous().permute(axes)


def _every_other(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]


def _with_offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].reshape(x.shape)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x) if x.dim() and x.shape[0] else x


def _negative(x: Tensor) -> Tensor:
    return torch._neg_view(-x)


def _conjugate(x: Tensor) -> Tensor:
    return x.conj().resolve_conj().conj() if x.is_complex() else x


LAYOUTS: dict[str, Change] = {
    "axes reversed": _reversed_axes,
    "every other number": _every_other,
    "storage offset": _with_offset,
    "stride 0": _expanded,
    "negative bit": _negative,
    "conjugate bit": _conjugate,
}


# ----- The checks -----


@dataclasses.dataclass
class Tried:
    """What came of an entry's variants."""

    held: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(
        default_factory=list
    )  # by the operator or torch.autograd
    failures: list[Failure] = dataclasses.field(default_factory=list)


def check_variants(name: str, entry: Any) -> Tried:
    """Check the first few samples of the entry in all variants."""
    tried = Tried()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes_of(entry):
            samples = list(_small(name, entry, dtype))
            for change in () if is_unchecked(name) else CHANGES:
                _check_first(tried, change, _changed(name, entry, samples, change, dtype))
            for layout in LAYOUTS:
                _check_first(tried, layout, _laid_out(name, entry, samples, layout, dtype))
        for dtype, tolerance in LOW_PRECISION.items():
            if dtype in entry.supported_backward_dtypes(DEVICE):
                _check_low_precision(tried, name, entry, dtype, tolerance)
    return tried


def _small(name: str, entry: Any, dtype: torch.dtype) -> Iterator[tuple[int, Any]]:
    count = 0
    for index, sample in enumerate(samples_of(entry, dtype)):
        leaves = tree_flatten((sample.input, sample.args, sample.kwargs))[0]
        numbers = sum(t.numel() for t in leaves if isinstance(t, Tensor) and not t.is_nested)
        if 0 < numbers <= MAX_NUMBERS:
            yield index, sample
            count += 1
        if count == NUM_SAMPLES:
            return


def _changed(
    name: str, entry: Any, samples: list[tuple[int, Any]], change: str, dtype: torch.dtype
) -> Iterator[Case]:
    for index, sample in samples:
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [
            i
            for i, t in enumerate(leaves)
            if isinstance(t, Tensor) and t.layout is torch.strided and not t.is_nested
        ]
        before = [leaves[i] for i in places]
        after = CHANGES[change](before)
        if all(
            b is a or (b.shape == a.shape and b.dtype == a.dtype)
            for a, b in zip(after, before, strict=True)
        ):
            continue
        for i, t in zip(places, after, strict=True):
            leaves[i] = t
        first, args, kwargs = tree_unflatten(leaves, spec)
        changed = _sample(first, args, kwargs, sample)
        try:
            case = case_of(name, entry, changed, index, dtype)
        except Exception:  # the operator does not take it
            continue
        if case is not None:
            yield case


def _laid_out(
    name: str, entry: Any, samples: list[tuple[int, Any]], layout: str, dtype: torch.dtype
) -> Iterator[Case]:
    for index, sample in samples:
        case = case_of(name, entry, sample, index, dtype)
        if case is None:
            continue
        point = tuple(LAYOUTS[layout](x) for x in case.point)
        try:
            value = real_vector(seeded(lambda case=case, point=point: case.bare(*point)))
            plain = real_vector(seeded(lambda case=case, point=point: case.function(*point)))
        except Exception:  # view_as_real refuses the conjugate bit
            continue
        if mismatch(value, plain, 0.0):  # as_strided reads memory and not values
            continue
        yield dataclasses.replace(case, point=point, function=case.bare)


def _check_first(tried: Tried, variant: str, cases: Iterator[Case]) -> None:
    """Check the first case that the operator and torch.autograd take."""
    for case in cases:
        outcome = Outcome(case.entry)
        checker = Checker(case, outcome, has_second=False)
        try:
            checker.prepare()
        except Exception:  # a matrix that is not positive definite any more
            continue
        if checker.row is None or not _is_well_defined(checker):
            continue
        checker.first_order()
        what = f"{variant}, {case.name}"
        tried.failures += [(what, *failure[1:]) for failure in outcome.failures]
        if not outcome.failures:
            tried.held.append(what)
        return
    tried.refused.append(variant)


def _is_well_defined(checker: Checker) -> bool:
    """Leave out infinities, and where torch.autograd and differences differ: matrices of too low a rank, kinks."""
    if checker.row is None or not checker.autograd.value.isfinite().all():
        return False
    return checker.slope is not None and not mismatch(
        checker.row.double() @ checker.u, checker.w @ checker.slope.double(), 1e-4
    )


def _check_low_precision(
    tried: Tried, name: str, entry: Any, dtype: torch.dtype, tolerance: float
) -> None:
    """Compare vjp and jvp in ``dtype`` with float64."""
    for index, sample in _small(name, entry, dtype):
        label = f"{dtype}, sample {index}"
        exact = tree_map_only(
            Tensor,
            lambda t: (
                t.detach().double().requires_grad_(t.requires_grad) if t.dtype == dtype else t
            ),
            (sample.input, sample.args, sample.kwargs),
        )
        try:
            low = case_of(name, entry, sample, index, dtype)
            high = case_of(name, entry, _sample(*exact, sample), index, torch.float64)
            if low is None or high is None:
                continue
            outs = seeded(lambda low=low: low.function(*low.point))
            if any(out.dtype is torch.complex32 for out in outs):
                continue  # PyTorch has hardly any kernels for it
            value = real_vector(outs)
            if not value.isfinite().all():
                continue
        except Exception:
            tried.refused.append(label)
            continue
        if message := _low_precision_mismatch(low, high, dtype, value.numel(), tolerance):
            tried.failures.append((label, "jvp, vjp", message))
        else:
            tried.held.append(label)


def _low_precision_mismatch(
    low: Case, high: Case, dtype: torch.dtype, num_outputs: int, tolerance: float
) -> str:
    """Return what is wrong by torch.autograd in float64, in the low precision (ties!), and by differences.

    What is too large for the low precision is infinite there, as the slope of frexp is at the smallest numbers.
    """
    generator = torch.Generator(DEVICE).manual_seed(low.index)
    w, u = (
        torch.randn(count, generator=generator, dtype=torch.float64)
        for count in (num_outputs, size(low.point))
    )
    w, u = w + w.sign(), u + u.sign()  # of at least 1: what is too large is the slope
    try:
        row, slope = ours.pull(low, w).double(), ours.push(low, u).double()
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error)[:300]}"
    references: list[Callable[[], Tensor]] = [
        lambda: Autograd(high).row(w),
        lambda: Autograd(low).row(w),
        lambda: w @ difference_jacobian(high),
    ]
    messages = []
    for reference in references:
        try:
            expected = reference().detach().double()
            held = expected.to(dtype).double()
            expected = torch.where(held.isfinite(), expected, held)
        except Exception as error:
            messages.append(f"no reference: {type(error).__name__}")
            continue
        message = mismatch(row, expected, tolerance)
        spread = float(w.norm() * u.norm())
        message = message or mismatch(w @ slope, expected @ u, tolerance * (1 + spread))
        if not message:
            return ""
        messages.append(message)
    return "; ".join(messages)


def _sample(first: Any, args: Any, kwargs: Any, sample: Any) -> Any:
    return types.SimpleNamespace(
        input=first,
        args=args,
        kwargs=kwargs,
        output_process_fn_grad=sample.output_process_fn_grad,
    )
