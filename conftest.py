"""The examples in docstrings of src/ take ``import torch`` for granted."""

from typing import Any

import pytest
import torch

# Modules that no test imports by itself: processes run the first, type checkers read the others.
collect_ignore_glob = ["tests/distributed/checks_*.py", "tests/types/*"]


@pytest.fixture(autouse=True)
def _torch_in_doctests(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
