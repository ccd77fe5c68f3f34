"""The table of operators against the installed PyTorch's own."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pushforward.tape.operators import OPERATORS

TABLE_OF = "2.13"  # the version that the checked-in table is of


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The tool that makes the table."""
    path = Path(__file__).parents[2] / "tools" / "operators_table.py"
    spec = importlib.util.spec_from_file_location("operators_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_that_of_the_installed_torch(table: ModuleType) -> None:
    """Of another version, a node may be new (and is called as a black box), but none may have other edges."""
    rows = table.rows()
    if torch.__version__.startswith(f"{TABLE_OF}."):
        assert table.TARGET.read_text(encoding="utf-8") == table.text()
    changed = {
        name: (OPERATORS[name], row)
        for name, row in rows.items()
        if name in OPERATORS and row[:2] != OPERATORS[name][:2]
    }
    assert not changed, "tools/operators_table.py --write, and look at the rules of these"
