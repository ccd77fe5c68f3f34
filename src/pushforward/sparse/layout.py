"""Layout: where the entries of terms stand in a compressed sparse matrix. Worked out once; nothing is ever n by n."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pushforward.linear.axes import Shape
from pushforward.sparse.entries import rows_of, starts_of
from pushforward.sparse.index import Index, flat
from pushforward.sparse.placing import Placement, placements
from pushforward.sparse.symbolic import Symbolic
from pushforward.sparse.term import Term
from pushforward.tape.private_torch import bare

_T = TypeVar("_T")

# In a row: where there are fewer, positions are found by comparing columns, faster than by sorting
MAX_COLUMNS = 64
MAX_FREE = 16


@dataclasses.dataclass(slots=True)
class Layout:
    """The pattern of a compressed sparse matrix, and where the entries of each term stand in its values."""

    starts: Tensor  # (rows + 1,): where each row begins
    columns: Tensor  # (nnz,), sorted within each row
    shape: tuple[int, int]  # rows and columns; exchanged where columns are compressed
    placement: Placement
    # Other forms, once asked for
    forms: dict[object, Any] = dataclasses.field(default_factory=dict)

    def form(self, key: object, make: Callable[[], _T]) -> _T:
        """Return what follows from the pattern alone; it is made once."""
        if key not in self.forms:
            with bare():
                self.forms[key] = make()
        found: _T = self.forms[key]
        return found

    @property
    def rows(self) -> Tensor:
        """The row of each entry ``(nnz,)``."""
        return self.form("rows", lambda: rows_of(self.starts))

    @property
    def flat(self) -> Tensor:
        """The place of each entry in the dense matrix, row-major ``(nnz,)``."""
        return self.form("flat", lambda: self.rows * self.shape[1] + self.columns)

    @property
    def indices(self) -> Tensor:
        """Row and column of each entry ``(2, nnz)``."""
        return self.form("indices", lambda: torch.stack([self.rows, self.columns]))


@dataclasses.dataclass(slots=True)
class _Entries:
    """The entries of one term: rows, columns, and what is found of their places."""

    rows: Tensor  # (*lengths of the axes that rows follow), flattened
    cols: Tensor  # (free, rows)
    low: int
    high: int
    order: tuple[int, ...]  # axes: those that rows follow, then the free ones
    is_injective: bool
    places: Tensor | None = None  # like cols


def layout(
    terms: Sequence[Term],
    num_rows: int,
    num_columns: int,
    by_columns: bool,
    symbolic: Symbolic,
    like: Tensor,
) -> Layout:
    """Return the layout of the sum of ``terms``; ``by_columns`` compresses columns instead of rows."""
    pairs = []
    for term in terms:
        rows = flat(term.rows, term.shape, symbolic, term.lengths)
        cols = flat(term.cols, term.seed_shape, symbolic, term.lengths)
        pairs.append((cols, rows) if by_columns else (rows, cols))
    lengths = [t.lengths for t in terms]
    shape = (num_columns, num_rows) if by_columns else (num_rows, num_columns)
    return symbolic.once(lambda: _layout(pairs, lengths, shape, like.device))


def _layout(
    pairs: Sequence[tuple[Index, Index]],
    lengths: Sequence[Shape],
    shape: tuple[int, int],
    device: torch.device,
) -> Layout:
    found = [_entries(*pair, box, device) for pair, box in zip(pairs, lengths, strict=True)]
    counts = torch.zeros(shape[0], dtype=torch.int64, device=device)
    groups = _overlapping(found)
    for group in groups:
        _place(group, counts, shape[1])
    starts = starts_of(counts)
    nnz = int(starts[-1]) if shape[0] else 0
    columns = torch.empty(nnz, dtype=torch.int64, device=device)
    places = []
    for entries, box in zip(found, lengths, strict=True):
        assert entries.places is not None
        where = entries.places.add_(starts[entries.rows])
        columns[where.reshape(-1)] = entries.cols.reshape(-1)
        entries.places, entries.cols = None, columns[:0]
        places.append(_in_order(where, entries.order, box))
    return Layout(starts, columns, shape, placements(places, nnz))


def _entries(rows: Index, cols: Index, lengths: Shape, device: torch.device) -> _Entries:
    mine = rows.axes
    free = tuple(a for a in range(len(lengths)) if a not in mine)
    order = (*mine, *free)
    sizes = tuple([lengths[a] for a in mine])
    place = {a: i for i, a in enumerate(order)}
    flat_rows = rows.with_axes(place.__getitem__).evaluated(sizes, device).expand(sizes).reshape(-1)
    box = tuple([lengths[a] for a in order])
    inner = cols.with_axes(place.__getitem__).evaluated(box, device).expand(box)
    inner = inner.reshape(len(flat_rows), math.prod(lengths[a] for a in free)).t().contiguous()
    low, high = (int(flat_rows.min()), int(flat_rows.max())) if len(flat_rows) else (0, -1)
    return _Entries(flat_rows, inner, low, high, order, _is_injective(rows, lengths))


def _is_injective(rows: Index, lengths: Shape) -> bool:
    """Tell whether positions are distinct, as far as that is seen at once."""
    if not rows.is_regular:
        return False
    reach = 0
    for at, axis in sorted((abs(at), axis) for axis, at in rows.parts if isinstance(at, int)):
        if at <= reach:
            return False
        reach += at * (lengths[axis] - 1)
    return True


def _overlapping(found: Sequence[_Entries]) -> list[list[_Entries]]:
    """Group what may share rows."""
    groups: list[list[_Entries]] = []
    end = -1
    for entries in sorted(found, key=lambda e: e.low):
        if groups and entries.low <= end:
            groups[-1].append(entries)
        else:
            groups.append([entries])
        end = max(end, entries.high) if len(groups[-1]) > 1 else entries.high
    return groups


def _place(group: list[_Entries], counts: Tensor, num_columns: int) -> None:
    """Find the place of each entry within its row, and how many entries each row has."""
    low, high = min(e.low for e in group), max(e.high for e in group)
    count = high - low + 1
    num = sum(len(e.cols) for e in group)
    size = sum(e.cols.numel() for e in group)
    may_compare = (
        num <= MAX_COLUMNS
        and num * count <= 4 * size
        and all(e.is_injective and len(e.cols) <= MAX_FREE for e in group)
    )
    if may_compare:
        _compared(group, counts, low, count, num_columns)
    else:
        _sorted(group, counts, low, num_columns)


def _compared(
    group: list[_Entries], counts: Tensor, low: int, count: int, num_columns: int
) -> None:
    """Find places by comparing the columns of each row with one another; an entry that comes twice has one."""
    kind = torch.int32 if num_columns < 2**31 - 1 else torch.int64
    device = counts.device
    lines: list[Tensor] = []  # the column in each row, num_columns where there is none
    for entries in group:
        rows = entries.rows - low
        is_full = len(rows) == count and bool((rows == torch.arange(count, device=device)).all())
        for cols in entries.cols:
            if is_full:
                lines.append(cols.to(kind))
            else:
                line = torch.full((count,), num_columns, dtype=kind, device=device)
                line[rows] = cols.to(kind)
                lines.append(line)
    present = [line != num_columns for line in lines]
    comes_twice = False
    for k, line in enumerate(lines):  # an entry that came already does not count
        for j in range(k):
            same = (lines[j] == line) & present[k]
            if bool(same.any()):
                present[k] &= ~same
                comes_twice = True
    ranks = [torch.zeros(count, dtype=torch.int8, device=device) for _ in lines]
    for k, line in enumerate(lines):
        for j in range(k):
            behind = lines[j] < line
            ranks[k] += behind & present[j] if comes_twice else behind
            ranks[j] += (line < lines[j]) & present[k] if comes_twice else ~behind
    for line in present:
        counts[low : low + count] += line
    start = 0
    for entries in group:
        mine = torch.stack(ranks[start : start + len(entries.cols)])
        start += len(entries.cols)
        entries.places = mine[:, entries.rows - low].to(torch.int64)


def _sorted(group: list[_Entries], counts: Tensor, low: int, num_columns: int) -> None:
    """Find places by sorting; entries that come twice share one."""
    keys = torch.cat([((e.rows - low) * num_columns + e.cols).reshape(-1) for e in group])
    ordered, order = torch.sort(keys)
    new = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=new[1:])
    number = new.cumsum(0) - 1
    rows = torch.div(ordered, max(num_columns, 1), rounding_mode="floor")
    size = int(rows[-1]) + 1 if len(rows) else 0
    numbers = torch.bincount(rows[new], minlength=size)
    counts[low : low + size] = numbers
    before = numbers.cumsum(0) - numbers
    place = torch.empty_like(keys)
    place[order] = number - before[rows]
    start = 0
    for entries in group:
        end = start + entries.cols.numel()
        entries.places = place[start:end].reshape(entries.cols.shape)
        start = end


def _in_order(places: Tensor, order: tuple[int, ...], lengths: Shape) -> Tensor:
    """Arrange (free, rows) as the axes of the term."""
    box = [lengths[a] for a in order]
    whole = places.t().reshape(box)
    back = sorted(range(len(order)), key=order.__getitem__)
    return whole.permute(back)
