"""What PyTorch's own engine says about the models of the zoo, at a sequence of points.

Nothing from pushforward is in it: one forward call at each point, a backward pass for each row of the Jacobian,
and a backward pass of a backward pass for the Hessian along one direction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import torch
from models.zoo import build
from models.zoo.model import Model, Params
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Tree = tuple[Params, Tensor]

# A plan is made in the second or third call, and known by heart two calls later. The numbers are those of settings.
SEQUENCE = (0, 0, 0, 0, 0)
SWITCHED = (0, 0, 0, 1, 1, 0)
NUM_SINGLE = 3  # calls in single precision
BATCH = 2
MAX_VARIED = 24


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a model is called, and along which direction its second derivatives are compared."""

    params: Params
    xs: Tensor  # (BATCH, *x.shape)
    tangent: Tree  # of the parameters, those that a Hessian is taken of
    seed: int

    @property
    def x(self) -> Tensor:
        """The input of calls without a batch."""
        return self.xs[0]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The value and the derivatives at one of the inputs."""

    value: Tensor
    rows: Tree  # (*value.shape, *parameter.shape)
    weights: Tensor  # of the sum over the outputs that has a gradient and a Hessian
    gradient: Tree
    product: Tree  # the Hessian along the tangent, its rows those of the tangent
    product_x: Tensor  # the Hessian with respect to x alone, along the tangent's part


def _varied(params: Params) -> list[str]:
    """The first parameters, as many as make a Hessian of a size that is quickly computed."""
    sizes = itertools.accumulate(p.numel() for p in params.values())
    return [name for name, size in zip(params, sizes, strict=True) if size <= MAX_VARIED]


def points(model: Model) -> Iterator[Point]:
    """Go through the points at which a model is called, with its settings switched in between."""
    generator = torch.Generator().manual_seed(11)

    def noise(t: Tensor, *shape: int) -> Tensor:
        drawn = torch.randn((*shape, *t.shape), dtype=torch.float64, generator=generator)
        return drawn.to(t.dtype)

    def direction(t: Tensor) -> Tensor:
        return noise(t) / max(t.numel(), 1) ** 0.5

    sequence = SWITCHED if model.settings else SEQUENCE
    if model.x.dtype is torch.float32 and not model.settings:
        sequence = sequence[:NUM_SINGLE]
    for seed, setting in enumerate(sequence):
        if model.settings:
            model.settings[setting]()
        params = {k: v + 0.03 * noise(v) for k, v in model.params.items()}
        xs = model.x + 0.03 * noise(model.x, BATCH)
        tangent = {k: direction(params[k]) for k in _varied(params)}, direction(model.x)
        torch.manual_seed(seed)
        yield Point(params, xs, tangent, seed)


@contextlib.contextmanager
def without_fused_kernels() -> Iterator[None]:
    """oneDNN's recurrent layers and fused attention have no second derivative."""
    onednn = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
    with onednn, sdpa_kernel(SDPBackend.MATH):
        yield


@functools.cache
def answers(name: str, dtype: torch.dtype) -> list[list[Answer]]:
    """The derivatives of a fresh model at its points, for each input of the batch."""
    with torch.random.fork_rng(devices=[]), without_fused_kernels():
        model = build(name, dtype)
        return [_of_batch(model, point) for point in points(model)]


def _of_batch(model: Model, point: Point) -> list[Answer]:
    buffers = list(model.net.buffers()) if model.net is not None else []
    before = [b.clone() for b in buffers]
    found = []
    for x in point.xs.flip(0):  # the last call, which leaves its state, is that of point.x
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        torch.manual_seed(point.seed)
        found.append(_answer(model, point, x))
    return found[::-1]


def _answer(model: Model, point: Point, x: Tensor) -> Answer:
    leaves = [t.detach().clone().requires_grad_() for t in (*point.params.values(), x)]
    names = list(point.params)
    value = model.reference(dict(zip(names, leaves, strict=False)), leaves[-1] * 1)

    def tree(tensors: list[Tensor]) -> Tree:
        return dict(zip(names, tensors, strict=False)), tensors[-1]

    def backward(y: Tensor, inputs: list[Tensor], *seed: Tensor, **options: bool) -> list[Tensor]:
        if not y.requires_grad:
            return [torch.zeros_like(t) for t in inputs]
        return list(
            torch.autograd.grad(
                y, inputs, *seed, retain_graph=True, materialize_grads=True, **options
            )
        )

    units = torch.eye(value.numel(), dtype=value.dtype).reshape(-1, *value.shape)
    grads = [backward(value, leaves, unit) for unit in units]
    rows = [
        torch.stack(g).reshape(value.shape + t.shape)
        for g, t in zip(zip(*grads, strict=True), leaves, strict=True)
    ]
    generator = torch.Generator().manual_seed(value.numel())
    weights = torch.randn(value.shape, generator=generator).to(value.dtype)
    slopes = backward((weights * value).sum(), leaves, create_graph=model.order > 1)
    (slopes_p, slope_x), (tangent_p, tangent_x) = tree(slopes), point.tangent
    along_x = (slope_x * tangent_x).sum()
    along = sum(((slopes_p[k] * t).sum() for k, t in tangent_p.items()), along_x)
    product_p, product = tree(backward(along, leaves))
    product_x = backward(along_x, leaves)[-1]
    return Answer(
        value.detach(),
        tree(rows),
        weights,
        tree([s.detach() for s in slopes]),
        ({k: product_p[k] for k in tangent_p}, product),
        product_x,
    )
