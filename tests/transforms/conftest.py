"""Fixtures of the tests of transforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import pushforward as pf
from pushforward.transforms import repeat


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Return a list of what came of calls that were made by heart: an answer, a tape, or None."""
    pf.clear_plans()
    found: list[Any] = []
    run = repeat._run

    def noting(*args: Any) -> Any:
        found.append(run(*args))
        return found[-1]

    monkeypatch.setattr(repeat, "_run", noting)
    yield found
    pf.clear_plans()
