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
from pushforward.planning.shadowed import has_shadows, on_shadows
from pushforward.tape.interrupts import under_modes
from pushforward.tape.private_functorch import functorch_stack, is_wrapped, unwrapped, vmap_settings
from pushforward.tape.private_torch import OperatorMode, bare, writes_out_windows

aten = torch.ops.aten


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
        kept: What autograd holds of a sweep with one column or row that it records, and of one with all; None where it
            does not record them.
    """

    tape: int
    run: int
    whole: int
    result: int
    num_seeds: int
    one: int
    most: int
    kept: tuple[int, int] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether autograd records the sweeps, and so holds on to steps of them."""
        return self.kept is not None

    def peak(self, chunk_size: int | None) -> int:
        """Return the peak with chunks of this size, None for one sweep."""
        if chunk_size is None:
            return self.tape + max(self.run, self.whole)
        chunk = self._chunk(chunk_size, self.one, self.most)
        if self.kept is not None:
            others = math.ceil(self.num_seeds / chunk_size) - 1
            chunk += others * self._chunk(chunk_size, *self.kept)
        return self.tape + max(self.run, self.result + chunk)

    def _chunk(self, size: int, one: int, most: int) -> int:
        """Return what a chunk takes where one column takes ``one``, and all take ``most``."""
        # A chord of a maximum of linear functions: above it, by a factor of 2 at most.
        share = (min(size, self.num_seeds) - 1) / max(self.num_seeds - 1, 1)
        return one + math.ceil(share * (most - one))

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


def shadow_program(
    program: LinearProgram, is_recording: bool = False, *, is_whole: bool = False
) -> LinearProgram:
    """Return a program of the same maps, without numbers; the arguments are those of `costs.shadow`."""

    def term(of: Term) -> Term:
        linear_map = shadow(of.linear_map, is_recording, is_whole=is_whole)
        return Term(of.variable, linear_map, of.in_dtype)

    with bare():
        equations = [
            Equation(e.variable, [*map(term, e.terms)], e.dtype) for e in program.equations
        ]
    return LinearProgram(program.inputs, equations, program.outputs)


def shadows_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors like these, without numbers."""
    with bare():
        return [shadow_tensor(tensor) for tensor in tensors]


def held_bytes(compute: Callable[[], Any], is_recording: bool = False) -> tuple[int, int]:
    """Return the most that ``compute``, which works on shadows, would hold at once of what it makes, and in the end.

    That is its result, and where autograd ``is_recording``, what that keeps.
    """
    seen = _Allocations(on_shadows=True)
    with bare(below_autograd=not is_recording):
        result = under_modes((), (seen,), compute)
    left = seen.now
    del result
    return seen.peak, left


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
_POWERS = 11  # of matrices, of one 13, their exponential takes at most, as measured


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

    oneDNN, in single precision alone, lays all out anew, several channels side by side. Elsewhere windows are written
    out, by the transposed one those of one image at a time.
    """
    if not writes_out_windows(x, weight, stride, padding, dilation, transposed, *rest):
        return sum(-(-t.shape[1] // _LANES) * _LANES * t.nbytes // t.shape[1] for t in (x, result))
    small, large = (x[:1], result) if transposed else (result, x)
    num_windows = len(small) * math.prod(small.shape[2:])
    return num_windows * large.shape[1] * math.prod(weight.shape[2:]) * x.element_size()


class _Allocations(OperatorMode):
    """Counts the bytes of the storages that operators make, for as long as they live."""

    def __init__(self, *, on_shadows: bool = False) -> None:
        super().__init__()
        self._on_shadows = on_shadows
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call, and look at the results."""
        kwargs = kwargs or {}
        if self._on_shadows and (has_shadows((args, kwargs)) or kwargs.get("device") is not None):
            args, kwargs = on_shadows(args, kwargs)
        result = func(*args, **kwargs)
        if func is aten.convolution.default:
            self._need(result.nbytes + _scratch(result, *args))
        elif func is aten.convolution_backward.default:  # by its input, as linear maps call it
            cotangent, _, weight, _, stride, padding, dilation, _, *rest = args
            options = (stride, padding, dilation, True, *rest[:2])
            self._need(result[0].nbytes + _scratch(result[0], cotangent, weight, None, *options))
        elif func is aten.linalg_matrix_exp.default:
            self._need(_POWERS * result.nbytes)
        given = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and _place(item) not in given:
                self._see(item)
        return result

    def _need(self, size: int) -> None:
        self.peak = max(self.peak, self.now + size)

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
        self._need(0)
