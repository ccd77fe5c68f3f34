"""Kernels of many sweeps over one tape: what does not depend on what is given to each is made once.

Where autograd records the sweeps it keeps all of that, for each sweep anew if each makes it. Elsewhere slopes are made
where they are used and let go of, which takes less memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pushforward.planning.calls import MAKERS, Call, Ref, refs_in, replaced
from pushforward.planning.noting import Rows
from pushforward.planning.simplifying import may_write

Kernels = Callable[[Sequence[Any]], Rows]


@dataclasses.dataclass(frozen=True, slots=True)
class Sharing:
    """Kernels in two parts: ``first`` gives one row, which ``rest`` takes as further values."""

    first: Kernels
    rest: Kernels

    def __call__(self, values: Sequence[Any]) -> Rows:
        """Run both."""
        return self.rest([*values, *self.first(list(values))[0]])


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Calls in two parts: those of ``first`` make ``shared``, which ``rest`` and ``rows`` take as values.

    ``tensors`` are examples of what references in ``rest`` stand for.
    """

    first: list[Call]
    shared: list[Ref]
    rest: list[Call]
    rows: Any
    tensors: dict[Ref, Tensor]


def parted(
    calls: list[Call],
    rows: Any,
    tensors: dict[Ref, Tensor],
    constants: dict[Ref, Tensor],
    num_shared: int,
    num_values: int,
) -> Parts | None:
    """Return what depends on the first ``num_shared`` of ``num_values`` values alone, and the rest; None of nothing."""
    if any(may_write(call) for call in calls):
        return None
    made: set[Ref] = set()
    first, rest = [], []
    for call in calls:
        is_shared = all(
            ref.number < num_shared if ref.is_value else ref.whole in made or ref in constants
            for ref in call.refs
        )
        if is_shared and (call.refs or call.func in MAKERS):
            made.add(call.result)
            first.append(call)
        else:
            rest.append(call)
    used = [ref for call in rest for ref in call.refs] + refs_in(rows)
    shared = list(dict.fromkeys(ref.whole for ref in used if ref.whole in made))
    if not shared:
        return None
    places = {ref: num_values + i for i, ref in enumerate(shared)}
    same = {r: Ref(places[r.whole], True, r.place) for r in used if r.whole in places}
    known = tensors | {new: tensors[old] for old, new in same.items() if old in tensors}
    return Parts(first, shared, [call.renamed(same) for call in rest], replaced(rows, same), known)
