"""One thread and one printed seed: repeat a failing test with PUSHFORWARD_TEST_SEED=<seed>."""

import gc
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from device import DEVICE

SEED = int(os.environ.get("PUSHFORWARD_TEST_SEED", "20260921"))

torch.set_num_threads(1)
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)

# numba looks for the package of this name, and would take the folder tests/coverage for it.
sys.modules.setdefault("coverage", None)  # type: ignore[arg-type]


def pytest_report_header() -> str:
    return f"pushforward: seed {SEED} (PUSHFORWARD_TEST_SEED), torch {torch.__version__}, 1 thread, {DEVICE}"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Start every test from the same random numbers, whatever ran before it."""
    torch.manual_seed(SEED)
    print(f"torch.manual_seed({SEED})")


@pytest.fixture(autouse=True)
def _small_heap() -> Iterator[None]:
    """Let collections look at what the test itself makes: of all that others left they take a second each."""
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the coverage tests counted, whichever process ran them."""
    from summary import Figures, lines

    reports = [r for found in terminalreporter.stats.values() for r in found]
    texts = [v for r in reports for k, v in getattr(r, "user_properties", ()) if k == "op_db"]
    figures = {f.entry: f for f in (Figures(**json.loads(text)) for text in texts)}
    if figures:
        terminalreporter.section("operators of PyTorch's database")
        for line in lines(list(figures.values())):
            terminalreporter.write_line(line)
