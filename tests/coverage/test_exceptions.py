"""What the table of exceptions says: the error that a user gets, and the page in the docs."""

import warnings

import ours
import pytest
from documentation import PAGE, render
from entries import cases, entries
from exceptions import REFUSALS, Refusal

ENTRIES = entries()


@pytest.mark.parametrize("refusal", REFUSALS, ids=[f"{r.entry}-{r.shown}" for r in REFUSALS])
def test_the_error_names_what_is_wrong(refusal: Refusal) -> None:
    """One sample, one derivative, as a user would ask for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cases(refusal.entry, ENTRIES[refusal.entry], refusal.dtype)
        case = next(c for c in found if c.index == refusal.sample)
        with pytest.raises(Exception, match=refusal.message) as caught:
            ours.derivative(refusal.example, case)
    assert type(caught.value).__name__ == refusal.error


def test_page_is_up_to_date() -> None:
    """After a change of the table, run tests/coverage/report.py --write."""
    assert PAGE.read_text(encoding="utf-8") == render()
