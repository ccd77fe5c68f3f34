"""Where the values of terms are written by strides."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pushforward as pf
from pushforward.sparse import placing
from pushforward.sparse.placing import Box, _aligned, placements


@pytest.mark.parametrize("shape", [(40, 44, 48), (200, 210), (40_000,)])
def test_interiors_of_stencils_are_written_by_strides(shape: tuple[int, ...]):
    """Rows along the border are shorter, so that strides of the interior would meet in the whole."""
    place = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [(place, place)]
    for axis, size in enumerate(shape):
        one, two = place.narrow(axis, 0, size - 1), place.narrow(axis, 1, size - 1)
        parts += [(one, two), (two, one)]
    rows, cols = (torch.cat([p.reshape(-1) for p in side]) for side in zip(*parts, strict=True))
    pattern = pf.Pattern.from_coo((place.numel(),) * 2, rows, cols)
    keys = pattern.rows * place.numel() + pattern.cols
    places = [torch.searchsorted(keys, i * place.numel() + j) for i, j in parts]
    found = placements(places, pattern.nnz)
    assert all(piece.box is not None for piece in found.pieces)
    assert found.rests[0].numel() < pattern.nnz / 4
    values = [torch.rand(p.shape) for p in places]
    written = found.written(values, values[0])
    for p, v in zip(places, values, strict=True):
        assert torch.equal(written[p], v)


def test_places_that_meet_are_not_written_by_strides():
    place = torch.arange(100)[:, None] + torch.arange(100)
    assert placing._box(place) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 60), *[st.integers(15, 20)] * 2, *[st.integers(0, 3)] * 2),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([(120, 6), (6, 120), (50, 2)]),
)
def test_aligned_boxes_are_parts_that_stand_where_they_stood(drawn, strides):
    boxes = [
        Box(start, (rows, columns), strides, offset) for offset, rows, columns, *start in drawn
    ]
    found = _aligned([None, *boxes])
    assert found[0] is None
    for old, new in zip(boxes, found[1:], strict=True):
        assert new.strides == strides
        assert math.prod(new.lengths) > 0.5 * math.prod(old.lengths)
        assert origin(new) == origin(old)
        for axis in range(2):
            assert new.starts[axis] >= old.starts[axis]
            ends = [b.starts[axis] + b.lengths[axis] for b in (new, old)]
            assert ends[0] <= ends[1]


def origin(box):
    return box.offset - sum(s * a for s, a in zip(box.strides, box.starts, strict=True))


def test_boxes_of_a_row_are_aligned():
    whole, inner = Box((0, 0), (70, 80), (480, 6), 480), Box((0, 1), (70, 78), (480, 6), 487)
    first, second = _aligned([whole, inner])
    assert (first.starts, first.lengths, first.offset) == ((0, 1), (70, 78), 486)
    assert second == inner
