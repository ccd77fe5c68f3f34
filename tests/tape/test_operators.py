"""The table of operators against the installed PyTorch's own."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pushforward.tape.operators import OPERATORS, Row

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


def is_read_as(row: Row) -> bool:
    """Tell whether the installed operator has arguments of the names that the row gives its edges."""
    packet, _, overload = row[0].partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return {a.name for a in operator._schema.arguments} >= set(row[1])


def test_table_is_that_of_the_installed_torch(table: ModuleType) -> None:
    """Of another version, a node may be new or have arguments of other names (and is called as a black box).

    None may have other edges.
    """
    rows = table.rows()
    if torch.__version__.startswith(f"{TABLE_OF}."):
        assert table.TARGET.read_text(encoding="utf-8") == table.text()
    changed = {
        name: (OPERATORS[name], row)
        for name, row in rows.items()
        if name in OPERATORS and row[:2] != OPERATORS[name][:2] and is_read_as(OPERATORS[name])
    }
    assert not changed, "tools/operators_table.py --write, and look at the rules of these"
