"""Interrupts: an exception may come between any two calls, and so also where the state of a thread is put back.

PyTorch's modes and levels are contexts written in Python: they stay on when an interrupt comes as ``__enter__`` ends or
as ``__exit__`` begins. So what there was before is remembered, and put back whatever happened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import GeneratorType
from typing import Any, TypeVar

import torch

from pushforward.tape.private_functorch import (
    allow_requiring_grad,
    functorch_level,
    pop_levels_above,
)
from pushforward.tape.private_torch import (
    NoSavingHooks,
    function_mode_at,
    num_dispatch_modes,
    num_function_modes,
    pop_dispatch_mode,
    pop_function_mode,
    push_dispatch_mode,
    push_function_mode,
    set_grad_enabled,
)

T = TypeVar("T")
Modes = tuple[Any, ...]

_context: Any = contextlib._GeneratorContextManager
_CONTEXT_CODES = {_context.__enter__.__code__, _context.__exit__.__code__}


def function_modes() -> Modes:
    """Return the function modes that are on, the innermost last."""
    number = num_function_modes()
    return tuple(map(function_mode_at, range(number))) if number else ()


def put_modes_back(modes: Modes, level: int | None) -> None:
    """Take off function modes and levels of ``torch.func`` that were left since, and put on modes that were lost."""
    if functorch_level() != level:
        pop_levels_above(level or 0)
    while num_function_modes() > len(modes):
        pop_function_mode()
    for mode in modes[num_function_modes() :]:
        push_function_mode(mode)


def finish_contexts(error: BaseException) -> None:
    """End contexts that an interrupt cut short, innermost first.

    Those that are generators would end when the error is forgotten, and change then what was put back before.
    """
    if isinstance(error, Exception):
        return
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code in _CONTEXT_CODES:
            found.append(frame.f_locals["self"].gen)
        traceback = traceback.tb_next
    for generator in reversed(found):
        if type(generator) is GeneratorType and not generator.gi_running:
            generator.close()
    # torch.func allows it for a moment, in which no function of a user's runs
    allow_requiring_grad(False)


def in_grad_mode(is_enabled: bool, compute: Callable[[], T]) -> T:
    """Return ``compute()`` with autograd on or off, and out of sight of hooks on what it saves.

    A checkpoint counts that, and computes again: the second time it may be computed otherwise.
    """
    before, modes, level = torch.is_grad_enabled(), function_modes(), functorch_level()
    try:
        set_grad_enabled(is_enabled)
        with NoSavingHooks():
            return compute()
    except BaseException as error:
        finish_contexts(error)
        put_modes_back(modes, level)
        raise
    finally:
        set_grad_enabled(before)


def under_modes(functions: Modes, operators: Modes, compute: Callable[[], T]) -> T:
    """Return ``compute()`` under more modes."""
    modes, level, number = function_modes(), functorch_level(), num_dispatch_modes()

    def leave() -> None:
        while num_dispatch_modes() > number:
            pop_dispatch_mode()
        put_modes_back(modes, level)

    try:
        try:
            for mode in functions:
                push_function_mode(mode)
            for mode in operators:
                push_dispatch_mode(mode)
            return compute()
        except BaseException as error:
            finish_contexts(error)
            raise
        finally:
            leave()
    finally:
        leave()  # again: the interrupt may have come while it was done
