"""Write src/pushforward/tape/operators.py: which operator an autograd node belongs to, and what it saves.

    .venv/bin/python tools/operators_table.py            # print the table of the installed PyTorch
    .venv/bin/python tools/operators_table.py --write    # and replace the checked-in one

The source is PyTorch's own ``derivatives.yaml``, which lies in the wheel.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torchgen
from torchgen.packaged.autograd.load_derivatives import load_derivatives

TARGET = Path(__file__).parents[1] / "src" / "pushforward" / "tape" / "operators.py"

HEAD = '''"""Which operator an autograd node belongs to. Written by tools/operators_table.py, not by hand.

A row: the operator's overload, its arguments with a derivative in the order of the node's edges, the position of each
saved output, and which outputs have a derivative (None: all).
"""

from __future__ import annotations

Row = tuple[str, tuple[str, ...], tuple[tuple[str, int], ...], tuple[bool, ...] | None]

# fmt: off
OPERATORS: dict[str, Row] = {
'''


def rows() -> dict[str, tuple[Any, ...]]:
    """Return node name -> row, from the ``derivatives.yaml`` of the installed PyTorch."""
    package = Path(torchgen.__file__).parent / "packaged"
    native = package / "ATen" / "native"
    infos, _ = load_derivatives(
        str(package / "autograd" / "derivatives.yaml"),
        str(native / "native_functions.yaml"),
        str(native / "tags.yaml"),
    )
    found: dict[str, tuple[Any, ...]] = {}
    for schema, by_key in infos.items():
        for info in by_key.values():
            name = str(schema.name)
            if info.op is None or name.startswith("_test_"):
                continue
            if info.op in found and _is_variant(name):
                continue
            found[info.op] = _row(schema, info)
    return dict(sorted(found.items()))


def _is_variant(name: str) -> bool:
    """Tell whether a function is the in-place, ``out=`` or copying form of another with the same node."""
    base = name.split(".")[0]
    return base.endswith(("_", "_copy")) or name.endswith("out")


def _row(schema: Any, info: Any) -> tuple[Any, ...]:
    differentiated = {name for d in info.derivatives for name in d.var_names}
    arguments = [a.name for a in schema.arguments.flat_all]
    returns = [r.name for r in schema.returns]
    saved_outputs = []
    for saved in info.all_saved_outputs:
        name = saved.nctype.name if isinstance(saved.nctype.name, str) else saved.nctype.name.name
        place = _output_place(name, returns)
        if place is not None:
            saved_outputs.append((name, place))
    mask = info.output_differentiability
    return (
        str(schema.name),
        tuple(a for a in arguments if a in differentiated),
        tuple(sorted(saved_outputs)),
        tuple(bool(m) for m in mask) if mask is not None and not all(mask) else None,
    )


def _output_place(name: str, returns: list[str | None]) -> int | None:
    if name in returns:
        return returns.index(name)
    numbered = re.fullmatch(r"result(\d*)", name)
    return int(numbered[1] or 0) if numbered else None


def text() -> str:
    """Return the module's source."""
    lines = (f"    {name!r}: {row!r},\n".replace("'", '"') for name, row in rows().items())
    return HEAD + "".join(lines) + "}\n"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description="Autograd nodes and their operators.")
    parser.add_argument("--write", action="store_true", help=f"write {TARGET}")
    if parser.parse_args().write:
        TARGET.write_text(text(), encoding="utf-8")
    else:
        print(text())


if __name__ == "__main__":
    main()
