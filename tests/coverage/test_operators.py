"""Every operator of PyTorch's own database, on all its samples; the figures are printed when pytest ends."""

import dataclasses
import json
from collections.abc import Callable

import pytest
from checking import check_entry, figures, unexplained
from entries import entries
from exceptions import BLACK_BOXES, refusals_of
from variants import check_variants

ENTRIES = entries()
SHOWN = 6  # failures in a message


@pytest.mark.parametrize("name", ENTRIES)
def test_derivatives_of_every_sample(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """First and second derivatives in every mode, and batches, against torch.autograd or differences."""
    outcome = check_entry(name, ENTRIES[name])
    record_property("op_db", json.dumps(dataclasses.asdict(figures(outcome))))
    failures = unexplained(name, outcome.failures)
    shown = "\n".join(": ".join(failure) for failure in failures[:SHOWN])
    assert not failures, f"{name}: {len(failures)} failures\n{shown}"
    for refusal in refusals_of(name):
        assert any(refusal.covers(d, m) for _, d, m in outcome.failures), f"stale: {refusal}"
    assert set(outcome.black_boxes) == set(BLACK_BOXES.get(name, ())), (
        "bring BLACK_BOXES up to date"
    )


@pytest.mark.parametrize("name", ENTRIES)
def test_other_shapes_layouts_and_dtypes(name: str) -> None:
    """Empty, size-1, 0-d, broadcast, strided, integer companions; float32, bfloat16 and half against float64."""
    tried = check_variants(name, ENTRIES[name])
    failures = unexplained(name, tried.failures)
    shown = "\n".join(": ".join(failure) for failure in failures[:SHOWN])
    assert not failures, f"{name}: {len(failures)} failures\n{shown}"


def test_hardly_any_entry_uses_a_black_box() -> None:
    """The table of those that do is exact: the test of each entry compares it with what was counted."""
    assert set(BLACK_BOXES) <= set(ENTRIES)
    assert len(BLACK_BOXES) <= 8
