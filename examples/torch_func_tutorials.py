"""The jobs of PyTorch's tutorials on ``torch.func``, with theirs and with ours: the same code, two imports.

Jacobians, Hessians and products of them; gradients per sample; ensembles of models; neural tangent kernels.
The tutorials are "Jacobians, Hessians, hvp, vhp, and more", "Per-sample-gradients", "Model ensembling" and
"Neural Tangent Kernels" on docs.pytorch.org; the code here is our own.
Run it by ``.venv/bin/python examples/torch_func_tutorials.py`` (under a minute).
It prints how far results lie apart, and times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from reporting import best_of, in_units, print_table
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

import pushforward

Job = tuple[str, str, Callable[[ModuleType], Callable[[], Any]]]


def main() -> None:
    """Print one row for each job."""
    torch.set_num_threads(1)
    rows = []
    for tutorial, name, made_with in jobs():
        ours, theirs = made_with(pushforward), made_with(torch.func)
        seconds, their_seconds = best_of(20, ours), best_of(20, theirs)
        rows.append(
            (tutorial, name, f"{furthest(ours(), theirs()):.0e}", in_units(their_seconds), in_units(seconds),
             f"{seconds / their_seconds:.2f}")
        )  # fmt: skip
    print(
        f"PyTorch {torch.__version__}, float32, one thread; the best of 20 calls, processor time\n"
    )
    print_table(("tutorial", "job", "apart by", "torch.func", "ours", "ratio"), rows)


def furthest(one: Any, other: Any) -> float:
    """Return the largest difference of the numbers in two results, over the largest number."""
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=True))
    scale = max(float(theirs.detach().abs().max()) for _, theirs in pairs)
    return max(float((ours - theirs).detach().abs().max()) for ours, theirs in pairs) / scale


def jobs() -> Iterator[Job]:
    """Yield the tutorial, the job, and what makes a call of it with a module that has the transforms."""
    torch.manual_seed(0)
    yield from _jacobians_and_hessians()
    yield from _gradients_per_sample()
    yield from _ensembles()
    yield from _tangent_kernels()


def _jacobians_and_hessians() -> Iterator[Job]:
    tutorial = "Jacobians, Hessians"
    layer = nn.Linear(16, 16)

    def predict(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias).tanh()

    x, batch, v = torch.randn(16), torch.randn(64, 16), torch.randn(16)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    of_input = partial(predict, weight, bias)

    def by_parameters(m: ModuleType) -> Callable[[], Any]:
        return lambda: m.jacfwd(predict, argnums=(0, 1))(weight, bias, x)

    yield tutorial, "jacrev by the input", lambda m: lambda: m.jacrev(of_input)(x)
    yield tutorial, "jacfwd by the input", lambda m: lambda: m.jacfwd(of_input)(x)
    yield tutorial, "jacfwd by weight and bias", by_parameters
    yield tutorial, "jacrev of 64 samples, vmap", lambda m: lambda: vmap(m.jacrev(of_input))(batch)
    yield tutorial, "hessian by the input", lambda m: lambda: m.hessian(of_input)(x)
    yield tutorial, "jacfwd(jacfwd)", lambda m: lambda: m.jacfwd(m.jacfwd(of_input))(x)
    yield (
        tutorial,
        "hessians of 64 samples, vmap",
        lambda m: lambda: vmap(m.hessian(of_input))(batch),
    )

    def energy(x: Tensor) -> Tensor:
        return x.sin().sum()

    def forward_over_reverse(m: ModuleType) -> Callable[[], Any]:
        return lambda: m.jvp(m.grad(energy), (x,), (v,))[1]

    def reverse_over_reverse(m: ModuleType) -> Callable[[], Any]:
        return lambda: m.vjp(m.grad(energy), x)[1](v)

    yield tutorial, "hvp, forward over reverse", forward_over_reverse
    yield tutorial, "vhp, reverse over reverse", reverse_over_reverse


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _gradients_per_sample() -> Iterator[Job]:
    tutorial = "Per-sample gradients"
    model = _convolutions()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    images, labels = torch.randn(32, 1, 12, 12), torch.randint(10, (32,))

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        scores = functional_call(model, parameters, (image[None],))
        return cross_entropy(scores, label[None])

    def by_vmap(m: ModuleType) -> Callable[[], Any]:
        return lambda: vmap(m.grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)

    yield tutorial, "32 images, vmap(grad)", by_vmap


def _ensembles() -> Iterator[Job]:
    tutorial = "Ensembling"
    models = [nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in range(10)]
    stacked, buffers = stack_module_state(models)
    parameters = {name: value.detach() for name, value in stacked.items()}
    batch = torch.randn(32, 64)

    def scores(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,))

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return scores(parameters, buffers, x).square().mean()

    def gradients(m: ModuleType) -> Callable[[], Any]:
        return lambda: vmap(m.grad(loss), in_dims=(0, 0, None))(parameters, buffers, batch)

    def jacobians(m: ModuleType) -> Callable[[], Any]:
        by_input = vmap(m.jacrev(scores, argnums=2), in_dims=(0, 0, None))
        return lambda: by_input(parameters, buffers, batch[0])

    yield tutorial, "10 models, gradients of each", gradients
    yield tutorial, "10 models, jacrev by the input", jacobians


def _tangent_kernels() -> Iterator[Job]:
    tutorial = "Neural tangent kernels"
    model = _convolutions()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    ones, others = torch.randn(10, 1, 12, 12), torch.randn(4, 1, 12, 12)

    def scores(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],)).squeeze(0)

    def by_jacobians(m: ModuleType) -> Callable[[], Tensor]:
        jacobians = vmap(m.jacrev(scores), in_dims=(None, 0))

        def kernel() -> Tensor:
            left, right = jacobians(parameters, ones), jacobians(parameters, others)
            blocks = [
                torch.einsum("naf,mbf->nmab", left[name].flatten(2), right[name].flatten(2))
                for name in parameters
            ]
            return torch.stack(blocks).sum(0)

        return kernel

    def by_products(m: ModuleType) -> Callable[[], Tensor]:
        def of_pair(one: Tensor, other: Tensor) -> Tensor:
            _, pull = m.vjp(lambda p: scores(p, one), parameters)

            def column(cotangent: Tensor) -> Tensor:
                (direction,) = pull(cotangent)
                product: Tensor = m.jvp(lambda p: scores(p, other), (parameters,), (direction,))[1]
                return product

            return vmap(column)(torch.eye(10)).T

        return lambda: vmap(vmap(of_pair, (None, 0)), (0, None))(ones, others)

    yield tutorial, "10 by 4 images, Jacobians contracted", by_jacobians
    yield tutorial, "10 by 4 images, products J (Jᵀ e)", by_products


if __name__ == "__main__":
    main()
