"""Two jobs on real input, each checked against another way to the same answer.

a. How do a network's class scores depend on every pixel of a handwritten digit? The Jacobians of
   a few hundred images, by ``vmap(jacfwd(f))`` and by one call on the whole batch.
b. Robertson's stiff chemical kinetics up to t = 1e11, solved by SciPy with our Jacobian.

Run it by ``make demo``. It prints tables and saves out/demo.png.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from reporting import print_table, save, timed
from scipy.integrate import solve_ivp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pushforward import jacfwd, vmap

NUM_TRAIN = 1400  # of the 1797 images; the others are for testing, and their Jacobians are taken
NUM_IMAGES = 256
NUM_SHOWN = 8

# Reference values of the Test Set for IVP Solvers (Mazzia and Magherini), problem ROBER.
ROBERTSON_END = 1e11
ROBERTSON_REFERENCE = np.array([0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050])
# The second species stays below 4e-5 and ends near 1e-13: the absolute tolerance must be smaller.
TOLERANCES = {"rtol": 1e-8, "atol": 1e-16}
TIGHT_TOLERANCES = {"rtol": 1e-10, "atol": 1e-19}


def main() -> None:
    """Run both parts and save the picture."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # the tensors are small: a second thread only waits
    torch.manual_seed(0)
    digits = digits_part()
    kinetics = robertson_part()
    path = save(picture(digits, kinetics), "demo.png")
    print(f"\nPicture: {path}. Whole demo: {time.perf_counter() - start:.1f} s.")


# ---- (a) Digits ----


@dataclass(frozen=True)
class Digits:
    """Images (n, 64), labels (n,), class scores (n, 10) and per-image Jacobians (n, 10, 64)."""

    images: Tensor
    labels: Tensor
    scores: Tensor
    jacobians: Tensor


def digits_part() -> Digits:
    """Train a network, take its per-image Jacobians in three ways and compare them."""
    print("(a) Handwritten digits: class scores with respect to pixels\n")
    pixels, classes = load_digits(return_X_y=True)
    x, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes)
    net, seconds = timed(lambda: train(x[:NUM_TRAIN], labels[:NUM_TRAIN]))
    images, labels = x[NUM_TRAIN:][:NUM_IMAGES], labels[NUM_TRAIN:][:NUM_IMAGES]
    with torch.no_grad():
        scores = net(images)
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    print(f"Network 64-64-32-10 (tanh), trained on {NUM_TRAIN} images in {seconds:.1f} s.")
    print(f"{accuracy:.1%} of {len(images)} other images classified correctly.\n")

    net.requires_grad_(False)
    jacobians = print_jacobians(net, images)
    return Digits(images, labels, scores, jacobians)


def train(x: Tensor, labels: Tensor, *, steps: int = 300) -> nn.Module:
    """Fit a small tanh network to all images at once."""
    net = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net


def print_jacobians(net: nn.Module, images: Tensor) -> Tensor:
    """Take the per-image Jacobians in three ways, print times and differences, and return them."""

    def reference() -> Tensor:
        with warnings.catch_warnings():
            # torch.func.jacfwd compiles its formulas with torch.jit.script, which is deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.func.vmap(torch.func.jacfwd(net))(images)

    expected, reference_seconds = timed_twice(reference)
    by_vmap, vmap_seconds = timed_twice(lambda: vmap(jacfwd(net))(images))
    # The Jacobian of the whole batch, (n, 10, n, 64): image i has no part in the scores of image j.
    whole, whole_seconds = timed_twice(lambda: jacfwd(net)(images))
    blocks = whole.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (n, 10, 64)
    off_diagonal = whole.count_nonzero() - blocks.count_nonzero()

    def differences(jacobians: Tensor) -> list[str]:
        return [f"{(jacobians - other).abs().max():.1e}" for other in (expected, by_vmap)]

    print_table(
        ["Jacobians by", "shape", "first call", "second", "diff to torch", "to vmap"],
        [
            ["torch.func.vmap(jacfwd(f))", shape(expected), *reference_seconds, "-", "-"],
            ["pushforward.vmap(jacfwd(f))", shape(by_vmap), *vmap_seconds, *differences(by_vmap)],
            ["pushforward.jacfwd(batched f)", shape(whole), *whole_seconds, *differences(blocks)],
        ],
    )
    print("\ndiff: largest difference of an entry; of the batched call, in its diagonal blocks.")
    print(f"Largest entry of a Jacobian: {expected.abs().max():.2f}.")
    print(f"Entries off the diagonal blocks that are not zero: {int(off_diagonal)}.")
    torch.testing.assert_close(by_vmap, expected)
    torch.testing.assert_close(blocks, expected)
    if off_diagonal:
        raise AssertionError("the scores of one image depend on another image")
    return blocks.clone()


# ---- (b) Robertson's kinetics ----


def robertson(y: Tensor) -> Tensor:
    """Return the rates of change of the three concentrations ``y``, shape (3,)."""
    slow, fast, catalysed = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return torch.stack([fast - slow, slow - fast - catalysed, catalysed])


class CountedRates:
    """The rates as SciPy wants them, and how often they were asked for.

    SciPy's own ``nfev`` leaves out the calls that its finite differences make.
    """

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        self.num_calls += 1
        return robertson(torch.from_numpy(y)).numpy()


def robertson_jacobian(t: float, y: np.ndarray) -> np.ndarray:
    """Return the Jacobian of the rates, by pushforward."""
    return jacfwd(robertson)(torch.from_numpy(y)).numpy()


def solve(method: str, jac: Callable[..., Any] | None, tolerances: dict[str, float]) -> Any:
    """Solve to the end time; the result also has ``num_calls`` and ``seconds``."""
    rates = CountedRates()
    solution, seconds = timed(
        lambda: solve_ivp(
            rates, (0, ROBERTSON_END), [1.0, 0.0, 0.0], method=method, jac=jac, **tolerances
        )
    )
    if not solution.success:
        raise RuntimeError(f"{method} failed: {solution.message}")
    solution.num_calls, solution.seconds = rates.num_calls, seconds
    return solution


def robertson_part() -> Any:
    """Solve with both Jacobians and print the work and the errors; return one solution."""
    print("\n(b) Robertson's stiff kinetics to t = 1e11\n")
    y = torch.tensor([0.9, 2e-5, 0.1], dtype=torch.float64)
    print_table(
        ["Jacobian at y = (0.9, 2e-5, 0.1)", "by y1", "by y2", "by y3"],
        [
            [f"y{i + 1}'", *(f"{entry:.6g}" for entry in row)]
            for i, row in enumerate(jacfwd(robertson)(y).tolist())
        ],
    )

    solutions = {}
    for method in ("BDF", "Radau"):
        solutions[f"{method}, pushforward"] = solve(method, robertson_jacobian, TOLERANCES)
        solutions[f"{method}, finite differences"] = solve(method, None, TOLERANCES)
    tight = solve("Radau", robertson_jacobian, TIGHT_TOLERANCES)
    solutions["Radau, pushforward, tight"] = tight

    print("\nnfev, njev, nlu: SciPy's counts. calls: all calls of the rates by SciPy, its finite")
    print("differences included; each of our Jacobians runs the rates once more, recorded.")
    print("error: largest relative error of a concentration at the end, against the reference.\n")
    print_table(
        ["solver, Jacobian", "steps", "nfev", "calls", "njev", "nlu", "error", "time"],
        [
            [
                name,
                str(len(s.t) - 1),
                str(s.nfev),
                str(s.num_calls),
                str(s.njev),
                str(s.nlu),
                f"{relative_error(s):.1e}",
                f"{s.seconds:.2f} s",
            ]
            for name, s in solutions.items()
        ],
    )
    print()
    print_table(
        ["concentrations at t = 1e11", "y1", "y2", "y3"],
        [
            [name, *(f"{value:.15e}" for value in values)]
            for name, values in {
                "published reference": ROBERTSON_REFERENCE,
                "Radau, pushforward": solutions["Radau, pushforward"].y[:, -1],
                "Radau, pushforward, tight": tight.y[:, -1],
            }.items()
        ],
    )
    if relative_error(tight) > 1e-10:
        raise AssertionError("the tight solution does not meet the published reference")
    return tight


def relative_error(solution: Any) -> float:
    """Return the largest relative error of a concentration at the end time."""
    return float(np.abs(solution.y[:, -1] / ROBERTSON_REFERENCE - 1).max())


# ---- Picture, tables, times ----


def picture(digits: Digits, kinetics: Any) -> Figure:
    """Draw digits with the pixels that speak for their class, and the kinetics over log time."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    upper.suptitle(
        "Digits, and the Jacobian row of the class found (red speaks for it, blue against)"
    )
    axes = upper.subplots(2, NUM_SHOWN)
    for i in range(NUM_SHOWN):
        found = int(digits.scores[i].argmax())
        saliency = digits.jacobians[i, found].reshape(8, 8).numpy()
        limit = np.abs(saliency).max()
        axes[0, i].imshow(digits.images[i].reshape(8, 8).numpy(), cmap="gray_r")
        axes[0, i].set_title(f"label {int(digits.labels[i])}, found {found}", fontsize=9)
        axes[1, i].imshow(saliency, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for axis in axes.flat:
        axis.set_axis_off()

    axis = lower.subplots()
    for values, scale, label in zip(kinetics.y, (1, 1e4, 1), ("y1", "1e4 · y2", "y3"), strict=True):
        axis.semilogx(kinetics.t[1:], scale * values[1:], label=label)
    axis.set_xlim(1e-6, ROBERTSON_END)
    ends = np.full(2, ROBERTSON_END)
    axis.plot(ends, ROBERTSON_REFERENCE[[0, 2]], "ko", clip_on=False, label="published reference")
    axis.set_xlabel("t")
    axis.set_title("Robertson's kinetics, Radau with the Jacobian of pushforward")
    axis.legend()

    return figure


def timed_twice(work: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """Return the result of the first call, and the times of a first and a second call as text."""
    result, first = timed(work)
    _, again = timed(work)
    return result, [f"{1e3 * seconds:.1f} ms" for seconds in (first, again)]


def shape(x: Tensor) -> str:
    """Return the shape of ``x`` as 3×4."""
    return "×".join(map(str, x.shape))


if __name__ == "__main__":
    main()
