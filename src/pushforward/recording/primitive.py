"""Plain Python functions as primitives: recorded whole, with a rule of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pushforward.recording.tracer import find_tracers, top_recorder
from pushforward.rules.registry import lookup


def primitive(func: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of tensors a primitive: it is not looked into, its derivative is its rule's.

    Args:
        func: Takes tensors (and anything else) and returns a tensor or a tuple of tensors. It may leave PyTorch, for
            NumPy or a compiled library: it is only called on values.

    Returns:
        The function, to be given a rule with `pushforward.rule` or `pushforward.elementwise`. Inside a
        ``torch.func.vmap`` that is itself inside a function being differentiated it is run as an ordinary function.

    Raises:
        NotImplementedError: When it is differentiated without a rule.

    Example:
        >>> from pushforward import elementwise, jacfwd
        >>> square = primitive(lambda x: x * x)
        >>> elementwise(square, lambda x: 2 * x)
        >>> jacfwd(square)(torch.tensor([1.0, 3.0]))
        tensor([[2., 0.],
                [0., 6.]])
    """

    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not find_tracers((args, kwargs), []):
            return func(*args, **kwargs)
        recorder = top_recorder((args, kwargs))
        return recorder.apply(lookup(call), call, args, kwargs)

    return call
