"""What was measured, as a page of Markdown: aims and whether they are met, tables, losses with their reasons."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from peer_cases.reasons import REASONS

EAGER = ("torch.func", "functional", "functional, vectorized")
COMPILED = ("torch.compile", "JAX", "CasADi")
OURS, OURS_GRAPH, OURS_COMPILED = "ours", "ours compiled, eager", "ours compiled"
SIDES = (*EAGER, *COMPILED, OURS, OURS_GRAPH, OURS_COMPILED)
_VERSIONS = (
    "import importlib.metadata as m\n"
    "for n in ('torch', 'numpy', 'jax', 'jaxlib', 'asdex', 'casadi'):\n"
    "    try: print(n, m.version(n))\n"
    "    except m.PackageNotFoundError: pass"
)
Sides = dict[str, dict[str, Any]]


def versions(clock: str) -> dict[str, Any]:
    """Return machine and versions."""
    found: dict[str, str] = {}
    for python in {sys.executable, os.environ.get("PEERS", sys.executable)}:
        printed = subprocess.run(
            [python, "-c", _VERSIONS], capture_output=True, text=True, check=True
        )
        found |= {line.split()[0]: line.split()[1] for line in printed.stdout.splitlines()}
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "clock": clock,
        "machine": f"{names[0]}, {len(names)} cores, {platform.system()}, Python {platform.python_version()}",
        "versions": found,
    }


def seconds(sides: Sides, side: str) -> float:
    """Return the time of a call; NaN where there is none, or its numbers are wrong."""
    found = sides.get(side, {})
    return found["seconds"] if found.get("seconds") and not found["error"] else math.nan


def ratio(sides: Sides, ours: str, peers: Iterable[str]) -> float:
    """Return our time as a multiple of the fastest peer's."""
    times = [t for t in (seconds(sides, p) for p in peers) if not math.isnan(t)]
    return seconds(sides, ours) / min(times) if times else math.nan


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the mean of those that are numbers."""
    logs = [math.log(r) for r in ratios if not math.isnan(r)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def break_even(sides: Sides, of: str) -> str:
    """Return from how many calls on compiling has cost less than calling ``of``."""
    ours, other = sides.get(OURS_COMPILED, {}), sides.get(of, {})
    gain = seconds(sides, of) - seconds(sides, OURS_COMPILED)
    if math.isnan(gain):
        return ""
    if gain <= 0:
        return "never"
    return f"{max(1, math.ceil((ours['first'] - other['first']) / gain)):,}"


def report(raw: dict[str, Any], order: Sequence[str]) -> str:
    """Return the page."""
    dense = {name: raw["dense"][name]["sides"] for name in order if name in raw["dense"]}
    dates = sorted(r["date"] for group in ("dense", "sparse") for r in raw[group].values())
    about = raw["about"]
    missing = [name for name in order if name not in dense]
    parts = [
        "# Results",
        "Written by `make peers`; change nothing here by hand. "
        f"Measured from {dates[0]} to {dates[-1]} UTC; what stands in one row was measured in turns.",
        f"- Machine: {about['machine']}; one thread, pinned to one core.\n"
        f"- Versions: {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.\n"
        f"- Times: {'processor' if about['clock'] == 'cpu' else 'wall'} time of a call, the fastest of several "
        "bursts, each library in a process of its own. Grad mode is on, parameters are frozen.\n"
        "- First calls: tracing and compiling (compilers' own processes included), not imports, nor headers that are "
        "compiled once for all.\n"
        "- Again: `make peers`, or `make peers ARGS='--only NAME'` for single rows; "
        "`PEERS=python` names an interpreter that has JAX, CasADi and asdex, else one is made in `.venv-peers`.",
        "![Times relative to torch.func](RESULTS.png)",
        f"Not measured here: {', '.join(missing)}." if missing else "All workloads were measured.",
        "## Aims",
        _aims(dense, raw["sparse"]),
        "## Times of a call, in µs",
        "`functional` is `torch.autograd.functional`, row by row and vectorized; `compile` is `torch.compile` over "
        "`torch.func`; `graph` is `pushforward.compile(..., backend='eager')`, `fused` is `pushforward.compile(...)`. "
        "The last two columns are ratios to the best peer: eager to eager ones, fused to compiled ones. "
        "An empty cell: there is no such function; ✗: it fails or its numbers are wrong, see below.",
        _times(dense),
        "## First calls and break-even",
        "Seconds of the first call; calls from which on `fused` has cost less in all than our eager call, and than "
        "`torch.func`.",
        _first_calls(dense),
        "## Peak memory of a repeated call, in MiB",
        "How far the resident set rises above what is there before the call, the result included.",
        _memory(dense),
        "## Sparse Jacobians and Hessians",
        "CSR here, BCOO in asdex; milliseconds of a call, and seconds of the first one with detection, colouring and "
        "compilation. Products with a vector agree to 1e-9.",
        _sparse(raw["sparse"]),
        "## Where a peer is faster",
        _losses(dense),
        "## What fails",
        _failures(dense),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return ""
    if value >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"**{value:.2f}**" if value > 1 else f"{value:.2f}"


def _aims(dense: dict[str, Sides], sparse: dict[str, Any]) -> str:
    def of(ours: str, *peers: str) -> dict[str, float]:
        found = {n: ratio(s, ours, peers) for n, s in dense.items()}
        return {n: r for n, r in found.items() if not math.isnan(r)}

    rows = []

    def add(aim: str, found: str, is_met: bool) -> None:
        rows.append([aim, found, "met" if is_met else "**missed**"])

    def ahead(aim: str, found: dict[str, float], share: float = 1.0) -> None:
        won = sum(r <= 1 for r in found.values())
        worst = max(found, key=lambda n: found[n])
        add(
            aim,
            f"{won} of {len(found)}; worst {found[worst]:.2f} ({worst})",
            won >= share * len(found),
        )

    def mean(aim: str, found: dict[str, float], most: float) -> None:
        value = geometric_mean(found.values())
        add(aim, f"{value:.3f} over {len(found)}", value <= most)

    ahead("eager ahead of every eager peer everywhere", of(OURS, *EAGER))
    mean("eager / `torch.func`, geometric mean at most 0.2", of(OURS, "torch.func"), 0.2)
    to_compile = of(OURS_COMPILED, "torch.compile")
    if to_compile:
        ahead("fused ahead of `torch.compile` over `torch.func` everywhere", to_compile)
        mean("fused / `torch.compile`, geometric mean below 1", to_compile, 1.0)
    if to_jax := of(OURS_COMPILED, "JAX"):
        mean("fused / jitted JAX, geometric mean at most 1.0", to_jax, 1.0)
        ahead("fused at most jitted JAX on 70 % of the workloads", to_jax, 0.7)
    firsts = {
        n: s[OURS_COMPILED]["first"] / s["torch.compile"]["first"]
        for n, s in dense.items()
        if n in to_compile
    }
    if firsts:
        ahead("compile time at most `torch.compile`'s", firsts)
        mean("compile time / `torch.compile`'s, geometric mean below 1", firsts, 1.0)
    found = {
        n: r["compiled"]["matrix"] / r["asdex"]["matrix"]
        for n, r in sparse.items()
        if n.startswith("brusselator")
    }
    if found:
        largest = max((n for n in found if "roll" in n), key=lambda n: int(n.split(", ")[1]))
        texts = "; ".join(f"{n} {r:.3f}" for n, r in found.items())
        add(
            "sparse Brusselator, fused at most 0.2 of asdex's call (judged at the largest)",
            texts,
            found[largest] <= 0.2,
        )
    return _table(("aim", "found", ""), rows)


def _cell(sides: Sides, side: str) -> str:
    if side not in sides:
        return ""
    return "✗" if sides[side]["error"] else _number(1e6 * seconds(sides, side))


def _times(dense: dict[str, Sides]) -> str:
    head = ["workload", "torch.func", "functional", "vectorized", "compile", "JAX", "CasADi"]
    head += ["ours", "graph", "fused", "eager / best", "fused / best"]
    rows = [
        [
            name,
            *(_cell(sides, side) for side in SIDES),
            _ratio(ratio(sides, OURS, EAGER)),
            _ratio(ratio(sides, OURS_COMPILED, COMPILED)),
        ]
        for name, sides in dense.items()
    ]
    means = [
        geometric_mean(ratio(s, ours, peers) for s in dense.values())
        for ours, peers in ((OURS, EAGER), (OURS_COMPILED, COMPILED))
    ]
    rows.append(["geometric mean", *[""] * len(SIDES), *(_ratio(m) for m in means)])
    return _table(head, rows)


def _first_calls(dense: dict[str, Sides]) -> str:
    sides_shown = ("torch.func", OURS, "torch.compile", "JAX", OURS_GRAPH, OURS_COMPILED)
    head = ["workload", "torch.func", "ours", "compile", "JAX", "graph", "fused", "fused / compile"]
    head += ["break-even: ours", "torch.func"]

    def first(sides: Sides, side: str) -> float:
        return (sides.get(side) or {}).get("first") or math.nan

    rows = [
        [
            name,
            *(_number(first(sides, side), 2) for side in sides_shown),
            _ratio(first(sides, OURS_COMPILED) / first(sides, "torch.compile")),
            break_even(sides, OURS),
            break_even(sides, "torch.func"),
        ]
        for name, sides in dense.items()
    ]
    return _table(head, rows)


def _memory(dense: dict[str, Sides]) -> str:
    head = ["workload", "torch.func", "functional", "vectorized", "compile", "JAX", "CasADi"]
    head += ["ours", "graph", "fused"]
    rows = []
    for name, sides in dense.items():
        found = [sides.get(side, {}).get("mib") for side in SIDES]
        if max((m for m in found if m is not None), default=0) >= 0.5:
            rows.append([name, *("" if m is None else f"{m:.1f}" for m in found)])
    return _table(head, rows) + (
        "\n\nThe other workloads stay below half a MiB with every library." if rows else ""
    )


def _sparse(sparse: dict[str, Any]) -> str:
    head = [
        "problem, size",
        "f",
        "ours",
        "fused",
        "asdex",
        "CasADi",
        "ours / asdex",
        "fused / asdex",
    ]
    head += ["first: ours", "fused", "asdex", "CasADi"]
    rows = []
    for name, sides in sparse.items():

        def of(side: str, what: str, scale: float = 1.0, sides: Any = sides) -> float:
            return scale * sides[side][what] if side in sides else math.nan

        rows.append(
            [
                name,
                _number(of("ours", "value", 1e3)),
                *(_number(of(s, "matrix", 1e3)) for s in ("ours", "compiled", "asdex", "casadi")),
                *(_ratio(of(s, "matrix") / of("asdex", "matrix")) for s in ("ours", "compiled")),
                *(_number(of(s, "seconds"), 2) for s in ("ours", "compiled", "asdex", "casadi")),
            ]
        )
    return _table(head, rows)


def _losses(dense: dict[str, Sides]) -> str:
    lines = []
    for name, sides in dense.items():
        for ours, label, peers in ((OURS, "eager", EAGER), (OURS_COMPILED, "fused", COMPILED)):
            lost = {p: ratio(sides, ours, [p]) for p in peers}
            lost = {p: r for p, r in lost.items() if r > 1}
            if lost:
                shown = ", ".join(f"{r:.2f} of {p}" for p, r in lost.items())
                reason = REASONS.get((name, label)) or REASONS.get((name, ""), "not explained yet")
                lines.append(f"- {name}, {label}: {shown}. {reason[:1].upper()}{reason[1:]}.")
    return "\n".join(lines) or "Nowhere."


def _failures(dense: dict[str, Sides]) -> str:
    lines = [
        f"- {name}: {side}: {found['error']}"
        for name, sides in dense.items()
        for side, found in sides.items()
        if found["error"]
    ]
    return "\n".join(lines) or "Nothing."
