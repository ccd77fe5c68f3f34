"""The pushing recorder: real forward mode. Every tracer carries its blocks; nothing else is kept alive."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pushforward.linear.block_sum import Blocks, add_blocks
from pushforward.linear.kinds.concat import joinable
from pushforward.linear.program import push_blocks, push_joined
from pushforward.recording.recorder import Part, Recorder


class PushingRecorder(Recorder):
    """Payloads are blocks."""

    def __init__(self, randomness: str = "error", name: str = "jacfwd") -> None:
        """Start."""
        super().__init__(randomness, name)
        self.is_pushing = True

    def combine(self, parts: Sequence[Part], out: Tensor) -> Blocks | None:
        """Push the blocks of all inputs and add them up."""
        dtype = out.dtype
        if len(parts) == 1:
            payload, linear_map, _ = parts[0]
            return tuple(push_blocks(payload, linear_map, dtype)) or None
        if sum(1 for _, linear_map, _ in parts if joinable(linear_map)) > 1:
            return add_blocks(push_joined(parts, dtype)) or None
        terms = [
            b for payload, linear_map, _ in parts for b in push_blocks(payload, linear_map, dtype)
        ]
        return add_blocks(terms) or None
