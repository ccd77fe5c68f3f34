"""How much memory a sweep takes: it is run on shadows, and what it would allocate is counted.

A shadow has the shapes of the real thing and no numbers, so that the blocks alive at each step, copies and temporaries
among them, are those that will be, whatever their size. Of what PyTorch's kernels need inside, the share of
convolutions is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import Equation, LinearProgram, Term
from pushforward.planning.costs import shadow, shadow_tensor
from pushforward.tape.interrupts import under_modes
from pushforward.tape.private_functorch import functorch_stack, is_wrapped, unwrapped, vmap_settings
from pushforward.tape.private_torch import OperatorMode, bare


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """What a call is expected to hold at its peak, in bytes, beyond what there was before it.

    Attributes:
        tape: What the recording keeps: what nodes saved, and the outputs.
        run: What the recording needs beside while it goes on.
        whole: What the sweep holds at its peak if it carries all columns or rows at once: the result and the maps too.
        result: The Jacobian.
        num_seeds: How many columns or rows there are.
        one: What a sweep with one column or row holds at its peak, with the maps and without the whole result.
        most: What one with all of them holds, if they are carried without structure, as chunks are.
        is_kept: Whether autograd records the sweeps, and so holds on to all of their steps.
    """

    tape: int
    run: int
    whole: int
    result: int
    num_seeds: int
    one: int
    most: int
    is_kept: bool = False

    def peak(self, chunk_size: int | None) -> int:
        """Return the peak with chunks of this size, None for one sweep."""
        if chunk_size is None:
            return self.tape + max(self.run, self.whole)
        # A chord of a maximum of linear functions: above it, by a factor of 2 at most.
        share = (min(chunk_size, self.num_seeds) - 1) / max(self.num_seeds - 1, 1)
        chunk = self.one + math.ceil(share * (self.most - self.one))
        if self.is_kept:
            chunk = chunk * math.ceil(self.num_seeds / chunk_size) + self.result
        return self.tape + max(self.run, self.result + chunk)

    def largest_chunk(self, limit: int) -> int | None:
        """Return the largest size whose peak is within ``limit``: None for one sweep, 0 if there is none."""
        if self.peak(None) <= limit:
            return None
        if self.is_kept:
            return 0
        least, beyond = 0, self.num_seeds + 1
        while beyond - least > 1:
            middle = (least + beyond) // 2
            if self.peak(middle) <= limit:
                least = middle
            else:
                beyond = middle
        return least


def available_bytes(device: torch.device) -> int:
    """Return how much memory may still be allocated on ``device``, as far as is known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    found = [_meminfo(), _left_in_group()]
    known = [size for size in found if size is not None]
    if known:
        return min(known)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _meminfo() -> int | None:
    """Return what Linux says is available."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_in_group() -> int | None:
    """Return what a container's limit leaves."""
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        return max(limit - int((group / "memory.current").read_text()), 0)
    return None


def shadow_equation(equation: Equation) -> Equation:
    """Return an equation of the same maps, without numbers."""
    terms = [Term(t.variable, shadow(t.linear_map), t.in_dtype) for t in equation.terms]
    return Equation(equation.variable, terms, equation.dtype)


def shadow_program(program: LinearProgram) -> LinearProgram:
    """Return a program of the same maps, without numbers."""
    with bare():
        equations = [shadow_equation(equation) for equation in program.equations]
    return LinearProgram(program.inputs, equations, program.outputs)


def shadows_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors like these, without numbers."""
    with bare():
        return [shadow_tensor(tensor) for tensor in tensors]


def peak_bytes(compute: Callable[[], Any], is_recording: bool = False) -> int:
    """Return the most that ``compute``, which works on shadows, would hold at once of what it makes.

    Where autograd ``is_recording``, this is all: it holds on to the steps.
    """
    seen = _Allocations()
    with bare():
        result = under_modes((), (seen,), compute)
    del result
    return max(seen.total, seen.peak) if is_recording else seen.peak


def peak_of_making(make: Callable[[], LinearProgram]) -> int:
    """Return the most that is held at once while maps are made: some take more than they keep."""
    seen = _Allocations()
    under_modes((), (seen,), make)
    return seen.peak


def storage_bytes(tensors: Iterable[Tensor], but: Iterable[Tensor] = ()) -> int:
    """Return how much memory lies behind ``tensors``, leaving out what lies behind others."""
    left_out = {_place(t) for t in _with_storage(but)}
    sizes = {_place(t): t.untyped_storage().nbytes() for t in _with_storage(tensors)}
    return sum(size for place, size in sizes.items() if place not in left_out)


def maps_in(program: LinearProgram) -> Iterator[Tensor]:
    """Return the tensors that the maps of a program hold."""
    for equation in program.equations:
        for term in equation.terms:
            yield from tensors_in(term.linear_map)


def tensors_in(linear_map: AbstractLinearMap) -> Iterator[Tensor]:
    """Return the tensors that a map holds, as far as they are its own fields."""
    for field in dataclasses.fields(linear_map):
        value = getattr(linear_map, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, AbstractLinearMap):
            yield from tensors_in(value)


def _with_storage(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        while is_wrapped(tensor):
            tensor = unwrapped(tensor)
        if tensor.layout is torch.strided and not tensor.is_nested:
            yield tensor


def num_copies() -> int:
    """Return how many calls at once the ``vmap``s around this one stand for."""
    settings = [vmap_settings(interpreter) for interpreter in functorch_stack() or ()]
    return math.prod(found[0] for found in settings if found is not None)


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


_LANES = 8  # channels


def _scratch(
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
) -> int:
    """Return what a convolution needs beside its result, as measured on CPUs.

    In single precision oneDNN lays all out anew, several channels side by side. In others windows are written out, by
    the transposed one those of one image at a time.
    """
    if x.dtype is torch.float32:
        return sum(-(-t.shape[1] // _LANES) * _LANES * t.nbytes // t.shape[1] for t in (x, result))
    small, large = (x[:1], result) if transposed else (result, x)
    num_windows = len(small) * math.prod(small.shape[2:])
    return num_windows * large.shape[1] * math.prod(weight.shape[2:]) * x.element_size()


class _Allocations(OperatorMode):
    """Counts the bytes of the storages that operators make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.total = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, and look at the results."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            scratch = result.nbytes + _scratch(result, *args)
            self.peak = max(self.peak, self.now + scratch)
        given = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and _place(item) not in given:
                self._see(item)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._alive:
            return
        size = storage.nbytes()

        def free(_: Any) -> None:
            self._alive.pop(place, None)
            self.now -= size

        self._alive[place] = weakref.ref(storage, free)
        self.now += size
        self.total += size
        self.peak = max(self.peak, self.now)
