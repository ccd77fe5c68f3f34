"""What the caller asks of `jacobian`, and of what is made like it."""

from __future__ import annotations

import dataclasses
from typing import Any

from pushforward.errors import ArgumentValueError, message
from pushforward.transforms.arguments import Argnums
from pushforward.transforms.chunks import Chunks, ChunkSize
from pushforward.transforms.sparse_output import Output

MODES = ("auto", "forward", "reverse", "cross")


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What the caller said, to the transform of this name."""

    name: str
    argnums: Argnums
    mode: str
    has_aux: bool
    output: Output
    pattern: Any
    chunks: Chunks
    randomness: str

    @property
    def is_dense(self) -> bool:
        """Whether all entries are wanted, and computed."""
        return self.output == "dense" and self.pattern is None


def check_mode(name: str, mode: Any, chunk_size: ChunkSize = None) -> None:
    """Refuse an unknown mode, and chunks of what has no columns."""
    if mode not in MODES:
        raise ArgumentValueError(
            message(name, "mode", repr(mode), f"one of {MODES}", "Leave it out to have it chosen.")
        )
    if mode == "cross" and isinstance(chunk_size, int):
        raise ArgumentValueError(
            message(
                name,
                "chunk_size",
                chunk_size,
                "None with mode='cross', which carries no columns",
                "Use mode='forward' or 'reverse'.",
            )
        )
