"""Runs that were begun elsewhere: the function was called already, and what it did turned out to be something new."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pushforward.tape.private_torch import Node
from pushforward.tape.randomness import State
from pushforward.tape.reader import oldest_of
from pushforward.tape.run import Run
from pushforward.tape.scripts import Script
from pushforward.tape.trust import Unwatched


@dataclasses.dataclass(slots=True)
class Begun:
    """What there is of a run."""

    state: State  # of the generators before it; empty where nothing may be drawn
    num_hooks: int  # before it
    count: int  # of this run among those of the thread
    is_apart: bool = False  # whether the batch of a ``vmap`` became an axis
    tracked: list[Tensor] = dataclasses.field(default_factory=list)
    given: list[Tensor] = dataclasses.field(default_factory=list)  # the same as the function got it
    starts: list[Node] = dataclasses.field(default_factory=list)
    end: int = 0  # the number of the node after those of the function
    result: Any = None
    error: BaseException | None = None  # that the function raised


class Continued(Run):
    """The rest of such a run."""

    __slots__ = ("_begun",)

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        randomness: str,
        scripts: list[Script],
        begun: Begun,
    ) -> None:
        """Prepare."""
        super().__init__(
            name, inputs, randomness, begun.is_apart, False, scripts, may_share=begun.is_apart
        )
        self._begun = begun

    def __enter__(self) -> Run:
        """Go on."""
        begun = self._begun
        super().__enter__()
        self._random_state, self._count = begun.state or None, begun.count + 1
        self._starts, self._versions = begun.starts, [0] * len(begun.starts)
        self._oldest = oldest_of(begun.tracked, begun.starts)
        return self

    def _tracked(self) -> list[Tensor]:
        if self.batch is not None:
            self.inputs = self.batch.physical_but(self.shared, self.inputs)
        self.tracked = self._begun.given
        return self._begun.tracked

    def _called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        error, self._begun.error = self._begun.error, None  # or it would hold what holds it
        if isinstance(error, RuntimeError) or RemovableHandle.next_id != self._begun.num_hooks:
            raise Unwatched from error
        if error is not None:
            raise error
        self._end = self._begun.end
        return self._begun.result
