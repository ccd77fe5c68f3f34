"""Lines: where in the caller's code nodes were made, as PyTorch's anomaly mode notes it."""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Any, NamedTuple

import torch

from pushforward.tape.private_torch import Node, frames_noted

_OWN, _TORCH = (
    os.path.dirname(sys.modules[name].__file__ or "") + os.sep for name in ("pushforward", "torch")
)
_FRAME = re.compile(r'\s*File "(.*)", line (\d+), in .*\n?\s*(.*)')


class Line(NamedTuple):
    """A line of code."""

    path: str
    number: int
    code: str

    def __str__(self) -> str:
        """Show file, number and code."""
        return f"{os.path.basename(self.path)}:{self.number}  {self.code}".rstrip()


def noting_lines() -> Any:
    """Return a context in which nodes note the frames that make them; nothing else of anomaly mode is on."""
    return torch.autograd.set_detect_anomaly(True, check_nan=False)


def depth_here() -> int:
    """Return the number of frames down to the caller's."""
    return sum(1 for _ in traceback.walk_stack(sys._getframe(1)))


def line_of(node: Node, depth: int) -> Line | None:
    """Return the innermost line below ``depth`` frames that is the caller's, else PyTorch's; None if there is none."""
    inside: Line | None = None
    for frame in reversed(frames_noted(node)[depth:]):
        found = _FRAME.match(frame)
        if found is None or found[1].startswith(_OWN):
            continue
        line = Line(found[1], int(found[2]), found[3].strip())
        if not line.path.startswith(_TORCH):
            return line
        inside = inside or line
    return inside
