"""One thread and one printed seed: repeat a failing test with PUSHFORWARD_TEST_SEED=<seed>."""

import os

import pytest
import torch

SEED = int(os.environ.get("PUSHFORWARD_TEST_SEED", "20260921"))

torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"pushforward: seed {SEED} (PUSHFORWARD_TEST_SEED), torch {torch.__version__}, 1 thread"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Start every test from the same random numbers, whatever ran before it."""
    torch.manual_seed(SEED)
    print(f"torch.manual_seed({SEED})")
