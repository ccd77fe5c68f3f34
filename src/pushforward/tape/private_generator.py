"""The state of the CPU's random numbers, read where it lies; tests/tape/test_private_generator.py pins it.

PyTorch copies it into a tensor when it is asked, which takes 1.6 microseconds within the call of a small function; to
read it takes 0.1. It is read with versions of PyTorch that were tested, where it tells what PyTorch tells; else PyTorch
is asked.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from typing import Any

import torch
from torch import Tensor

from pushforward.tape.private_torch import bare

TESTED = range(11, 16)  # minor versions of PyTorch 2

_HEAD = 256  # bytes of a generator in which its seed is looked for: what comes first depends on the platform
_SEED = 0x7E57_5EED_0BAD_CAFE

# Of the Mersenne twister: its seed, how many numbers are left, whether it was seeded, the place of the next, and all of
# them; then the second of two normal numbers, and whether there is one: as single, and as double precision.
_MEMORY = struct.Struct("<Qi?3xI2496s4xf?3xd?7x")
# The same in a tensor: each number has twice the bytes; the double with two numbers that are of no use any more.
_TENSOR = struct.Struct("<QiiQ4992sddd?7xf?3x")


@functools.cache
def memory_of_cpu() -> Any:
    """Return an array whose ``raw`` is the state as bytes, None where that is not sure."""
    if sys.implementation.name != "cpython" or not _is_tested():
        return None
    private = torch.Generator().manual_seed(_SEED)
    start = _address(private)
    seed = ctypes.string_at(start, _HEAD).find(_SEED.to_bytes(8, sys.byteorder))
    with bare():
        if seed < 0 or not _tells_all(private, _array(start + seed)):
            return None
    return _array(_address(torch.default_generator) + seed)


def is_same(one: bytes, other: bytes) -> bool:
    """Tell whether two states are the same: bytes between numbers may differ."""
    return one == other or _packed(one) == _packed(other)


def as_tensor(memory: bytes) -> Tensor:
    """Return the state as PyTorch gives it."""
    return torch.frombuffer(bytearray(_packed(memory)), dtype=torch.uint8)


def _packed(memory: bytes) -> bytes:
    seed, left, seeded, place, numbers, single, has_single, double, has_double = _MEMORY.unpack(
        memory
    )
    wide = struct.pack("<624Q", *struct.unpack("<624I", numbers))
    return _TENSOR.pack(
        seed, left, seeded, place, wide, 0.0, double if has_double else 0.0, 0.0, has_double,
        single if has_single else 0.0, has_single,
    )  # fmt: skip


def _is_tested() -> bool:
    major, minor = torch.__version__.split(".")[:2]
    return major == "2" and int(minor) in TESTED


def _address(generator: torch.Generator) -> int:
    """Return where what a generator points to begins: its first field is that pointer."""
    return ctypes.c_size_t.from_address(id(generator) + object.__basicsize__).value


def _array(address: int) -> Any:
    return (ctypes.c_char * _MEMORY.size).from_address(address)


def _tells_all(generator: torch.Generator, array: Any) -> bool:
    """Tell whether the memory changes with every kind of draw, and is the state that PyTorch gives."""
    for dtype in (torch.float32, torch.float64):
        for draw, count in (
            (torch.rand, 1),
            (torch.rand, 624),
            (torch.randn, 1),
            (torch.randn, 1),  # without a number of the twister's: the second of two
        ):
            before = array.raw
            draw(count, dtype=dtype, generator=generator, device="cpu")
            if array.raw == before or not torch.equal(as_tensor(array.raw), generator.get_state()):
                return False
    return True
