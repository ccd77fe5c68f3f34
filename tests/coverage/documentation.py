"""docs/reference/coverage.md, from the table of exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checking import DIFFERENCE_TOLERANCE, TOLERANCE, limits
from exceptions import BLACK_BOXES, REFUSALS, UNDEFINED
from variants import LOW_PRECISION

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "coverage.md"

_HEAD = """# Which operators are covered

Generated from tests/coverage/exceptions.py by `python tests/coverage/report.py --write`; a test compares the two.

The measure is `op_db`, PyTorch's own database of operators. For every entry that supports autograd on the CPU, all
samples are differentiated, in float64 and where the operator has it in complex128: `jvp`, `vjp`, `jacfwd`, `jacrev`,
`jacobian`, second derivatives of a random projection in all four nestings of `jacfwd` and `jacrev`, and a batch of two
under `torch.func.vmap`. They are compared with rows by `torch.autograd` and its double backward, or with central
differences; never with one another. `make coverage` prints how many entries go by rules of our own, by PyTorch's
derivative of one operator (a black box), and how many are refused, beside `torch.func.jacfwd` on the same samples.
"""


def render() -> str:
    """Return the text of the page."""
    return "\n".join([_HEAD, *_limits(), *_refusals(), *_undefined(), *_black_boxes()]) + "\n"


def _limits() -> Iterator[str]:
    yield "## Limits and tolerances\n"
    yield f"{limits()}\n"
    yield "Errors are relative to the largest entry of the reference, or to 1.\n"
    yield "| Against | Tolerance |\n| --- | --- |"
    yield f"| rows by torch.autograd, float64 | {TOLERANCE_OF_DOUBLE:g} |"
    yield f"| central differences | {DIFFERENCE_TOLERANCE:g} |"
    for dtype, tolerance in LOW_PRECISION.items():
        yield f"| {str(dtype).removeprefix('torch.')}, against float64 | {tolerance:g} |"
    yield ""


def _refusals() -> Iterator[str]:
    yield "## Exceptions\n"
    if not REFUSALS:
        yield "Nothing raises.\n"
        return
    yield "What raises, and why; each has a test that shows the error.\n"
    yield "| Entry | Derivatives | Error | Reason |\n| --- | --- | --- | --- |"
    for refusal in sorted(REFUSALS, key=lambda r: (r.entry, r.derivatives)):
        yield (f"| `{refusal.entry}` | {refusal.shown} | {refusal.error} | {refusal.reason} |")
    yield ""


def _undefined() -> Iterator[str]:
    yield "Not compared, as they do not exist at the samples' points:\n"
    yield "| Entry | Derivatives | Reason |\n| --- | --- | --- |"
    for undefined in UNDEFINED:
        yield f"| `{undefined.entry}` | {undefined.shown} | {undefined.reason} |"
    yield ""


def _black_boxes() -> Iterator[str]:
    yield "## By PyTorch's derivative of one operator\n"
    if not BLACK_BOXES:
        yield "None."
        return
    yield "| Entry | Nodes |\n| --- | --- |"
    for entry, operators in sorted(BLACK_BOXES.items()):
        yield f"| `{entry}` | {', '.join(f'`{o}`' for o in operators)} |"


TOLERANCE_OF_DOUBLE = max(t for dtype, t in TOLERANCE.items() if dtype.itemsize == 8)
