"""Fixtures of the tests of transforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import pushforward as pf
from pushforward.transforms import repeat


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Return a list of what came of calls that were made by heart: an answer, a tape, or what was begun."""
    pf.clear_plans()
    found: list[Any] = []
    written = repeat.written

    def noting(*args: Any) -> Any:
        call = written(*args)

        def noted(*args: Any) -> Any:
            answer = call(*args)
            if answer is not None:
                found.append(answer)
            return answer

        return noted

    monkeypatch.setattr(repeat, "written", noting)
    yield found
    pf.clear_plans()
