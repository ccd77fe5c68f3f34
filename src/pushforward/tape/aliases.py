"""Aliases: which of the tensors that nodes saved are one and the same object.

Kernels take two for one where they are one in every call that the kernels answer: that is part of the signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

# Places of tensors that came before, each with the first at which it came
Aliases = list[tuple[int, int]]


def aliases(tensors: Sequence[Tensor]) -> Aliases:
    """Return which of ``tensors`` are one."""
    names = [id(t) for t in tensors]
    if len(set(names)) == len(names):
        return []
    first: dict[int, int] = {}
    places = [(place, first.setdefault(name, place)) for place, name in enumerate(names)]
    return [pair for pair in places if pair[0] != pair[1]]


class Apart:
    """Makes objects of their own of tensors that come one after the other, but of those that are always one.

    Numbers, too: the one in ``4 * x`` is saved as a tensor that modes see as a number.
    """

    def __init__(self, known: Aliases, others: Iterable[Tensor]) -> None:
        """Take which are one, and tensors that none of the objects may be."""
        self._first = dict(known)
        self._found: list[Tensor] = []
        self._seen = {id(t) for t in others}

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return what stands for the next tensor."""
        first = self._first.get(len(self._found))
        if first is not None:
            found = self._found[first]
        elif not tensor.dim():
            found = tensor.clone()
        else:
            found = tensor.view_as(tensor) if id(tensor) in self._seen else tensor
        self._seen.add(id(tensor))
        self._found.append(found)
        return found
