"""One picture of all workloads: times relative to `torch.func`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_cases.report import COMPILED, EAGER, OURS, OURS_COMPILED, seconds

MARKS = {
    OURS: ("o", "tab:blue", "ours, eager"),
    OURS_COMPILED: ("D", "tab:green", "ours, compiled"),
    "torch.compile": ("s", "tab:orange", "torch.compile over torch.func"),
    "JAX": ("^", "tab:red", "JAX, jitted"),
    "CasADi": ("v", "tab:purple", "CasADi"),
    "functional": ("|", "0.5", "torch.autograd.functional"),
    "functional, vectorized": ("x", "0.5", "torch.autograd.functional, vectorized"),
}
assert set(MARKS) | {"torch.func"} == {OURS, OURS_COMPILED, *EAGER, *COMPILED}


def draw(raw: dict[str, Any], order: Sequence[str], path: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    dense = {name: raw["dense"][name]["sides"] for name in order if name in raw["dense"]}
    dense = {n: s for n, s in dense.items() if not math.isnan(seconds(s, "torch.func"))}
    names = sorted(dense, key=lambda n: seconds(dense[n], OURS) / seconds(dense[n], "torch.func"))
    rows = range(len(names))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * len(names)), layout="constrained")
    for side, (marker, color, label) in MARKS.items():
        xs = [seconds(dense[n], side) / seconds(dense[n], "torch.func") for n in names]
        axes.scatter(xs, rows, s=22, marker=marker, color=color, label=label, zorder=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(list(rows), names, fontsize=7)
    axes.set_ylim(-1, len(names))
    axes.grid(axis="both", linewidth=0.3)
    axes.set_xlabel("time of a call / torch.func's (left is faster)")
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
