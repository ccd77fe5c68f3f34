"""Where the values of terms are written by strides."""

import pytest
import torch

import pushforward as pf
from pushforward.sparse import placing
from pushforward.sparse.placing import placements


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
