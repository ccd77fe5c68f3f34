"""Fixtures of the tests of compiled calls."""

import pytest

from pushforward.compiling import backends


@pytest.fixture
def without_inductor(monkeypatch):
    """Fail where a program is left to Inductor."""

    def refuse(*args):
        raise AssertionError("the program was not taken apart")

    monkeypatch.setattr(backends, "inductor", refuse)
