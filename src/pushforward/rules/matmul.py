"""Matrix products, and all else that is a contraction with the other arguments constant."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from pushforward.linear.axes import Shape, kept_axes
from pushforward.linear.kinds.composed import compose
from pushforward.linear.kinds.contract import Contract
from pushforward.linear.kinds.expand import broadcast_first
from pushforward.linear.kinds.gather import Gather
from pushforward.linear.kinds.general import General
from pushforward.linear.kinds.permute import Permute
from pushforward.linear.kinds.reshape import Reshape
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.kinds.sum import Sum
from pushforward.linear.map import AbstractLinearMap, positions
from pushforward.rules.registry import rule, with_output
from pushforward.rules.sparse_products import scaled_summand, sparse_contraction

aten = torch.ops.aten

Number = float | complex


def contraction(x: Tensor, equation: str, const: Tensor, scale: Number = 1) -> AbstractLinearMap:
    """Return the map ẋ ↦ einsum(equation, ẋ, scale·const). The equation is ``"in,const->out"``."""
    in_letters, const_letters, out_letters, places = _parsed(equation)
    x_shape = tuple(x.shape)
    if const.layout is not torch.strided:
        const = const * scale
        return sparse_contraction(
            x_shape, in_letters, const, const_letters, out_letters
        ) or contraction(x, equation, const.to_dense())
    shapes = x_shape + const.shape
    if type(scale) is not int or scale != 1:
        const = const * scale
    out_shape = tuple([shapes[i] for i in places])
    return Contract(x_shape, out_shape, in_letters, const_letters, out_letters, const)


@functools.cache
def _parsed(equation: str) -> tuple[str, str, str, tuple[int, ...]]:
    """Return the three terms, and where the output's sizes stand in the input's and the constant's."""
    terms, out_letters = equation.split("->")
    in_letters, const_letters = terms.split(",")
    places = tuple((in_letters + const_letters).index(c) for c in out_letters)
    return in_letters, const_letters, out_letters, places


def broadcast_contraction(
    x_shape: Shape, x_letters: str, const: Tensor, const_letters: str, out_letters: str
) -> AbstractLinearMap:
    """Return a `Contract` whose operands may have axes of size 1 that broadcast.

    An axis of size 1 that stands for more is dropped from its operand, which costs no tie;
    where the sum runs over it, its size is a factor.
    """
    if const.layout is not torch.strided:
        product = sparse_contraction(x_shape, x_letters, const, const_letters, out_letters)
        if product is not None:
            return product
        const = const.to_dense()
    if (
        1 not in x_shape
        and 1 not in const.shape
        and set(x_letters) <= {*const_letters, *out_letters}
    ):
        places = _parsed(f"{x_letters},{const_letters}->{out_letters}")[3]
        shapes = x_shape + const.shape
        out_shape = tuple([shapes[i] for i in places])
        return Contract(x_shape, out_shape, x_letters, const_letters, out_letters, const)
    sizes: dict[str, int] = {}
    for letters, shape in ((x_letters, x_shape), (const_letters, tuple(const.shape))):
        for c, n in zip(letters, shape, strict=True):
            sizes[c] = n if sizes.get(c, 1) == 1 else sizes[c]
    out_shape = tuple(sizes[c] for c in out_letters)

    def is_repeated(c: str, n: int) -> bool:
        return n != sizes[c]

    kept_const = [
        (c, n) for c, n in zip(const_letters, const.shape, strict=True) if not is_repeated(c, n)
    ]
    maps: list[AbstractLinearMap] = []
    if len(kept_const) != len(const_letters):
        const = const.reshape([n for _, n in kept_const])
        const_letters = "".join(c for c, _ in kept_const)
    kept_x = [(c, n) for c, n in zip(x_letters, x_shape, strict=True) if not is_repeated(c, n)]
    if len(kept_x) != len(x_letters):
        dropped = [c for c, n in zip(x_letters, x_shape, strict=True) if is_repeated(c, n)]
        shape = tuple(n for _, n in kept_x)
        maps.append(Reshape(x_shape, shape))
        x_letters, x_shape = "".join(c for c, _ in kept_x), shape
        lost = [c for c in dropped if c not in const_letters and c not in out_letters]
        const = const * math.prod(sizes[c] for c in lost) if lost else const
    alone = [i for i, c in enumerate(x_letters) if c not in const_letters and c not in out_letters]
    if alone:
        shape = tuple(n for i, n in enumerate(x_shape) if i not in alone)
        maps.append(Sum(x_shape, shape, tuple(alone)))
        x_letters = "".join(c for i, c in enumerate(x_letters) if i not in alone)
        x_shape = shape
    maps.append(Contract(x_shape, out_shape, x_letters, const_letters, out_letters, const))
    return compose(*maps)


# Products of vectors


def _conjugated(x: Tensor, linear_map: AbstractLinearMap) -> AbstractLinearMap:
    """Return the map applied to conj ẋ."""
    if not x.is_complex():
        return linear_map
    shape = tuple(x.shape)
    return compose(Scale(shape, shape, 1, conjugate=True), linear_map)


rule(
    aten.dot,
    lambda self, tensor: contraction(self, "i,i->", tensor),
    lambda self, tensor: contraction(tensor, "i,i->", self),
)
rule(
    aten.vdot,
    lambda self, other: _conjugated(self, contraction(self, "i,i->", other)),
    lambda self, other: contraction(other, "i,i->", self.conj().resolve_conj()),
)

# Products of matrices

rule(
    aten.mv,
    lambda self, vec: contraction(self, "ij,j->i", vec),
    lambda self, vec: contraction(vec, "j,ij->i", self),
)
rule(
    aten.mm.default,
    lambda self, mat2: contraction(self, "ij,jk->ik", mat2),
    lambda self, mat2: contraction(mat2, "jk,ij->ik", self),
)
rule(
    aten.bmm.default,
    lambda self, mat2: contraction(self, "bij,bjk->bik", mat2),
    lambda self, mat2: contraction(mat2, "bjk,bij->bik", self),
)


# Products added to something: beta · self + alpha · (x @ y)

rule(
    aten.addmm.default,
    scaled_summand,
    lambda self, mat1, mat2, *, beta=1, alpha=1: contraction(mat1, "ij,jk->ik", mat2, alpha),
    lambda self, mat1, mat2, *, beta=1, alpha=1: contraction(mat2, "jk,ij->ik", mat1, alpha),
)
rule(
    aten.addmv,
    scaled_summand,
    lambda self, mat, vec, *, beta=1, alpha=1: contraction(mat, "ij,j->i", vec, alpha),
    lambda self, mat, vec, *, beta=1, alpha=1: contraction(vec, "j,ij->i", mat, alpha),
)
rule(
    aten.addr,
    scaled_summand,
    lambda self, vec1, vec2, *, beta=1, alpha=1: contraction(vec1, "i,j->ij", vec2, alpha),
    lambda self, vec1, vec2, *, beta=1, alpha=1: contraction(vec2, "j,i->ij", vec1, alpha),
)
rule(
    aten.addbmm,
    scaled_summand,
    lambda self, batch1, batch2, *, beta=1, alpha=1: contraction(
        batch1, "bij,bjk->ik", batch2, alpha
    ),
    lambda self, batch1, batch2, *, beta=1, alpha=1: contraction(
        batch2, "bjk,bij->ik", batch1, alpha
    ),
)
rule(
    aten.baddbmm.default,
    scaled_summand,
    lambda self, batch1, batch2, *, beta=1, alpha=1: contraction(
        batch1, "bij,bjk->bik", batch2, alpha
    ),
    lambda self, batch1, batch2, *, beta=1, alpha=1: contraction(
        batch2, "bjk,bij->bik", batch1, alpha
    ),
)

# General contractions


def _diagonal(shape: Shape, letters: str) -> tuple[AbstractLinearMap, str]:
    """Return the map to the diagonal of axes that share a letter, and the letters that remain."""
    repeated = [c for c in dict.fromkeys(letters) if letters.count(c) > 1]
    mixed_in = tuple(i for i, c in enumerate(letters) if c in repeated)
    result = "".join(dict.fromkeys(letters))
    mixed_out = tuple(i for i, c in enumerate(result) if c in repeated)
    within = "".join(letters[i] for i in mixed_in)
    places = positions(tuple(shape[i] for i in mixed_in))
    index = torch.einsum(f"{within}->{''.join(result[i] for i in mixed_out)}", places).flatten()
    sizes = dict(zip(letters, shape, strict=True))
    return Gather(shape, tuple(sizes[c] for c in result), index, mixed_in, mixed_out), result


def _einsum_operand(
    i: int, operands: list[str], out_letters: str, tensors: Sequence[Tensor]
) -> AbstractLinearMap:
    letters, shape = operands[i], tuple(tensors[i].shape)
    maps: list[AbstractLinearMap] = []
    if len(set(letters)) != len(letters):
        diagonal, letters = _diagonal(shape, letters)
        maps.append(diagonal)
        shape = diagonal.out_shape
    others: list[tuple[Tensor, str]] = [
        _simple_operand(t, c) for t, c in zip(tensors, operands, strict=True)
    ]
    following = others[i + 1 :]
    if i:
        needed = set(letters) | set(out_letters) | {c for _, cs in following for c in cs}
        before = "".join(dict.fromkeys(c for _, cs in others[:i] for c in cs if c in needed))
        terms = ",".join(cs for _, cs in others[:i])
        const = torch.einsum(f"{terms}->{before}", *(t for t, _ in others[:i]))
        following = [(const, before), *following]
    for place, (const, const_letters) in enumerate(following):
        needed = set(out_letters) | {c for _, cs in following[place + 1 :] for c in cs}
        result = "".join(dict.fromkeys(c for c in letters + const_letters if c in needed))
        if place == len(following) - 1:
            result = out_letters
        alone = [c for c in const_letters if c not in letters and c not in result]
        if alone:
            const = const.sum([const_letters.index(c) for c in alone])
            const_letters = "".join(c for c in const_letters if c not in alone)
        step = broadcast_contraction(shape, letters, const, const_letters, result)
        maps.append(step)
        letters, shape = result, step.out_shape
    summed = tuple(k for k, c in enumerate(letters) if c not in out_letters)
    if summed:
        rest = tuple(n for k, n in enumerate(shape) if k not in summed)
        maps.append(Sum(shape, rest, summed))
        letters, shape = "".join(c for c in letters if c in out_letters), rest
    if letters != out_letters or not maps:
        dims = tuple(letters.index(c) for c in out_letters)
        maps.append(Permute(shape, tuple(shape[d] for d in dims), dims))
    return compose(*maps)


def _simple_operand(tensor: Tensor, letters: str) -> tuple[Tensor, str]:
    distinct = "".join(dict.fromkeys(letters))
    if distinct == letters:
        return tensor, letters
    return torch.einsum(f"{letters}->{distinct}", tensor), distinct


def _trilinear(
    which: int,
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> AbstractLinearMap:
    """Return the map of one factor of Σ_sumdim i1·i2·i3, each with new axes at its ``expand``."""
    tensors = [i1, i2, i3]
    ndim = i1.ndim + len(expand1)
    letters = [
        "".join(string.ascii_lowercase[d] for d in range(ndim) if d not in expanded)
        for expanded in (expand1, expand2, expand3)
    ]
    out = "".join(string.ascii_lowercase[d] for d in range(ndim) if d not in sumdim)
    return _einsum_operand(which, letters, out, tensors)


rule(
    aten._trilinear,
    lambda *args, **kwargs: _trilinear(0, *args, **kwargs),
    lambda *args, **kwargs: _trilinear(1, *args, **kwargs),
    lambda *args, **kwargs: _trilinear(2, *args, **kwargs),
)

# Cross product. t · (y × c) = c · (t × y), which gives the adjoints.


def _cross(x: Tensor, const: Tensor, dim: int, out: Tensor, *, is_left: bool) -> AbstractLinearMap:
    shape = tuple(out.shape)
    axis = dim % out.ndim
    const = const.expand(shape)
    adjoint = const.conj()
    kept = kept_axes(out.ndim, axis)

    def times(seeds: Tensor, other: Tensor, *, seeds_first: bool) -> Tensor:
        other = other.expand(seeds.shape)
        pair = (seeds, other) if seeds_first else (other, seeds)
        product: Tensor = torch.linalg.cross(*pair, dim=axis + 1)
        return product

    cross = General(
        shape,
        shape,
        lambda seeds: times(seeds, const, seeds_first=is_left),
        lambda seeds: times(seeds, adjoint, seeds_first=not is_left),
        kept,
    )
    return broadcast_first(tuple(x.shape), cross)


rule(
    aten.linalg_cross,
    with_output(lambda self, other, *, dim=-1, out: _cross(self, other, dim, out, is_left=True)),
    with_output(lambda self, other, *, dim=-1, out: _cross(other, self, dim, out, is_left=False)),
)
