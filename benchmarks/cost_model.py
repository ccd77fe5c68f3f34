"""How well predicted costs rank measured times: ``python benchmarks/cost_model.py``.

Every program below is run forward, in reverse and cross-country; what the model predicts for the passes and what they
take when they are repeated (planning/replay.py; the call of the function is left out, as it is the same for all) are
compared by Spearman's rank correlation.
"""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from pushforward.planning.costs import Cost
from pushforward.planning.kernels import Rows, written
from pushforward.transforms.arguments import Selected
from pushforward.transforms.forward import pushed_columns
from pushforward.transforms.jacobian import _eliminated, planned
from pushforward.transforms.jacrev import pulled_rows
from pushforward.transforms.record import Tape


def mlp(*widths: int) -> nn.Sequential:
    """Return a network of tanh layers."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers).requires_grad_(False)


def programs() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Return functions at points, from microseconds to tens of milliseconds."""
    torch.manual_seed(0)
    a = torch.randn(200, 200) / 20
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 10))
    return {
        "sin 10": (torch.sin, torch.randn(10)),
        "sin 1000": (torch.sin, torch.randn(1000)),
        "chain of 20 sines": (lambda x: _repeat(torch.sin, 20, x), torch.randn(100)),
        "MLP 64-128-128-10": (mlp(64, 128, 128, 10), torch.randn(64)),
        "MLP 10-128-128-64": (mlp(10, 128, 128, 64), torch.randn(10)),
        "MLP 512x4": (mlp(512, 512, 512, 512), torch.randn(512)),
        "MLP 1000-256-256-10": (mlp(1000, 256, 256, 10), torch.randn(1000)),
        "MLP 10-256-256-1000": (mlp(10, 256, 256, 1000), torch.randn(10)),
        "bottleneck 1000-256-10-256-1000": (mlp(1000, 256, 10, 256, 1000), torch.randn(1000)),
        "bottleneck 300-5-300": (mlp(300, 5, 300), torch.randn(300)),
        "batch 32 x 64-64-10": (mlp(64, 64, 10), torch.randn(32, 64)),
        "softmax 300": (lambda x: x.softmax(0), torch.randn(300)),
        "cumsum, mean, product 200": (lambda x: x.cumsum(0) * x - x.mean(), torch.randn(200)),
        "outer 40": (lambda x: torch.outer(x.sin(), x.cos()), torch.randn(40)),
        "matrix power": (lambda x: _repeat(lambda y: torch.tanh(a @ y), 4, x), torch.randn(200)),
        "convolution": (lambda x: conv(x), torch.randn(1, 1, 12, 12)),
    }


def _repeat(function: Callable[[Tensor], Tensor], times: int, x: Tensor) -> Tensor:
    for _ in range(times):
        x = function(x)
    return x


def repeated(tape: Tape, sweep: Callable[[], Rows]) -> Callable[[], object]:
    """Return the kernels of a sweep, as the calls after the second run them."""
    values = list(tape.values)
    replay = written(values, sweep)
    if replay is None:
        raise RuntimeError(
            "cost_model: a sweep depends on elements: expected one that can be repeated."
        )
    return lambda: replay(values)


def measure(function: Callable[[], object]) -> float:
    """Return the best time of one call in seconds."""
    function()
    timer = timeit.Timer(function)
    count, total = timer.autorange()
    count = max(1, int(count * 0.05 / total))
    return min(timer.repeat(5, count)) / count


def main() -> None:
    """Print predictions beside measurements, and the rank correlations."""
    torch.set_num_threads(1)
    predicted: list[float] = []
    measured: list[float] = []
    agree = 0
    print(f"{'program':34} {'order':8} {'predicted':>11} {'measured':>11}")
    for name, (func, x) in programs().items():
        tape = Tape("bench", func, Selected("bench", (x,), (0,)), {})
        plan = planned(tape, "auto", search_now=True)
        runs: dict[str, Callable[[], Rows]] = {
            "forward": lambda tape=tape: pushed_columns(tape),
            "reverse": lambda tape=tape: pulled_rows(tape),
        }
        if "cross" in plan.predictions:
            plan.mode = "cross"
            runs["cross"] = lambda tape=tape, plan=plan: _eliminated(tape, plan)
        times = {}
        for mode, run in runs.items():
            cost: Cost = plan.predictions[mode].cost
            times[mode] = measure(repeated(tape, lambda run=run, tape=tape: tape.anew(run)))
            predicted.append(cost.seconds)
            measured.append(times[mode])
            print(f"{name:34} {mode:8} {cost.seconds * 1e6:8.0f} µs {times[mode] * 1e6:8.0f} µs")
        plan.choose()
        agree += times[plan.mode] <= 1.15 * min(times.values())
    result = spearmanr(predicted, measured)
    print(f"rank correlation (Spearman) {result.statistic:.3f} over {len(predicted)} passes")
    print(
        f"the chosen order is within 1.15 of the fastest for {agree} of {len(programs())} programs"
    )


if __name__ == "__main__":
    main()
