"""What must hold for the linear maps of one call of an operator."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from rules.samples import Sample, map_tensors
from torch import Tensor

from pushforward.linear.axes import Part
from pushforward.linear.block import Block, complex_identity, identity
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import pull_blocks, push_blocks
from pushforward.rules.registry import Rule, lookup
from pushforward.tape.calls import functional
from pushforward.tape.equivalents import BY_RULE
from pushforward.tape.lowering import maps_by_rule
from pushforward.tape.node_types import RULED, NodeType, node_type
from pushforward.tape.ruled import call_ruled

STEP = 6e-6  # balances truncation (h²) against rounding (eps/h)
TOLERANCE = 1e-5  # of central differences, relative to the largest entry or 1
EXACT = 1e-9  # between two ways of applying the same map
MAX_ENTRIES = 900  # of a Jacobian that is written out

Slot = tuple[int | str, int | None]  # argument, and place in it where it is a list
Primals = dict[Slot, Tensor]

UNFOLLOWED = "an output without a derivative"

# Operators that read one triangle of a symmetric argument: PyTorch differentiates along symmetric directions.
SYMMETRIC = {
    "aten::_linalg_eigh",
    "aten::linalg_cholesky_ex",
    "aten::linalg_matrix_sqrth",
    "aten::cholesky",
    "aten::linalg_eigh",
    "aten::linalg_ldl_factor_ex",
}
# Operators that read one triangle of a triangular argument: directions stay in it.
TRIANGULAR = {"aten::cholesky_inverse", "aten::cholesky_solve"}
# Compared with PyTorch's derivative, not with differences: outputs fixed up to a phase only, or an argument that
# is a function of another one and that the kernel reads in its place.
BY_TORCH = {
    "aten::_linalg_eigh",
    "aten::_linalg_svd",
    "aten::linalg_eig",
    "aten::linalg_qr",
    "aten::log_sigmoid_backward",
    "aten::_standard_gamma",
    "aten::fake_quantize_per_tensor_affine_cachemask",
    "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "aten::fake_quantize_per_channel_affine_cachemask",
}
# An argument that is overwritten with random numbers, and is an output too.
CONSTANT_ARGUMENTS = {
    ("aten::rrelu_with_noise_functional", 1),
    # Saved likelihoods: their share is in that of the log-probabilities.
    ("aten::_ctc_loss_backward", 5),
    ("aten::_ctc_loss_backward", 6),
}
# Second derivatives that PyTorch refuses, for reasons of its own.
REFUSED = (
    "is not differentiable with respect to",
    "are specified up to multiplication",
    "the derivative for 'geqrf' is not implemented",
    "when mode='r'",
    "the derivative for '_standard_gamma_grad' is not implemented",
)


def failures(rule: Rule, sample: Sample) -> Iterator[str]:
    """Yield a line for everything that does not hold."""
    every = differentiated(rule, sample)
    for slot in every:
        for active in (every, [slot]) if len(every) > 1 else (every,):
            where = f"{sample}, argument {slot[0]}" + ("" if slot[1] is None else f"[{slot[1]}]")
            where += " alone" if active is not every else ""
            try:
                yield from (f"{where}: {line}" for line in _failures_of(sample, slot, active))
            except Exception as error:
                yield f"{where}: raised {type(error).__name__}: {str(error)[:400]}"


def differentiated(rule: Rule, sample: Sample) -> list[Slot]:
    """Return those of the arguments that autograd differentiates by one node of the operator itself."""
    found = []
    for slot in slots(rule, sample):
        outs = []
        with torch.enable_grad(), contextlib.suppress(RuntimeError):  # which refuses the argument
            leaf = _followed(_argument(sample, slot))
            outs = [o for o in _outputs(sample, {slot: leaf}) if isinstance(o, Tensor)]
        kinds = [node_type(o.grad_fn) for o in outs if o.grad_fn is not None]
        if kinds and _is_of(kinds[0], sample):
            found.append(slot)
    return found


def _is_of(kind: NodeType, sample: Sample) -> bool:
    if kind is RULED:
        return lookup(functional(sample.op)).operator in BY_RULE
    return kind.op is not None and functional(kind.op) == functional(sample.op)


def slots(rule: Rule, sample: Sample) -> list[Slot]:
    """Return the tensor arguments that may be differentiated and for which the rule has a partial."""
    found: list[Slot] = []
    for key, value in itertools.chain(enumerate(sample.args), sample.kwargs.items()):
        if rule.partial(key) is None or (_name(sample), key) in CONSTANT_ARGUMENTS:
            continue
        if isinstance(value, (list, tuple)):
            found += [(key, place) for place, v in enumerate(value) if _is_differentiable(v)]
        elif _is_differentiable(value):
            found.append((key, None))
    return found


def _failures_of(sample: Sample, slot: Slot, active: Sequence[Slot]) -> Iterator[str]:
    x = _argument(sample, slot)
    outs = _outputs(sample, {})
    maps = _maps(sample, slot, active, {})
    outs = [None if m is UNFOLLOWED else o for m, o in zip(maps, outs, strict=True)]
    seeds = _seeds(sample, x)
    references = [_reference(sample, slot, seed) for seed in seeds]
    if all(m is None or m is UNFOLLOWED for m in maps):
        yield from _is_constant(outs, references[0])
        return
    for index, (linear_map, out) in enumerate(zip(maps, outs, strict=True)):
        which = f"output {index}: " if len(outs) > 1 else ""
        if linear_map is None or linear_map is UNFOLLOWED:
            continue
        if not _is_differentiable(
            out
        ):  # the recorder drops maps of integers; lower precision is not compared
            continue
        lines = itertools.chain(
            _shapes(linear_map, x, out),
            _pushes(linear_map, x, out, seeds, [r[index] for r in references]),
            _adjoint(linear_map, x, out, seeds),
            _structure(linear_map, x, out),
            _second_order(sample, slot, index, seeds, active),
        )
        yield from (which + line for line in lines)


# ----- The single checks -----


def _is_constant(outs: list[Any], references: list[Any]) -> Iterator[str]:
    for i, out in enumerate(outs):
        if _is_differentiable(out):
            reference, trusted = references[i]
            zeros = torch.zeros_like(reference[trusted])
            yield from _compare(f"output {i} has no map", zeros, reference[trusted], TOLERANCE)


def _shapes(linear_map: AbstractLinearMap, x: Tensor, out: Tensor) -> Iterator[str]:
    if linear_map.in_shape != tuple(x.shape) or type(linear_map.in_shape) is not tuple:
        yield f"in_shape is {linear_map.in_shape!r}, the argument's {tuple(x.shape)}"
    if linear_map.out_shape != tuple(out.shape) or type(linear_map.out_shape) is not tuple:
        yield f"out_shape is {linear_map.out_shape!r}, the output's {tuple(out.shape)}"


def _pushes(
    linear_map: AbstractLinearMap, x: Tensor, out: Tensor, seeds: Tensor, references: list[Any]
) -> Iterator[str]:
    both = _push(linear_map, seeds, x, out)
    for k, (seed, (reference, trusted)) in enumerate(zip(seeds, references, strict=True)):
        kind = "push against differences" + (
            " (imaginary direction)" if k and x.is_complex() else ""
        )
        yield from _compare(kind, both[k][trusted], reference[trusted], TOLERANCE)
        alone = _push(linear_map, seed.unsqueeze(0), x, out)[0]
        yield from _compare("two seeds at once against one at a time", both[k], alone, EXACT)


def _adjoint(linear_map: AbstractLinearMap, x: Tensor, out: Tensor, seeds: Tensor) -> Iterator[str]:
    cotangents = torch.stack([_random(out), _random(out)])
    pulled = _pull(linear_map, cotangents, x, out)
    pushed = _push(linear_map, seeds, x, out)
    for k, m in itertools.product(range(2), range(2)):
        left, right = _inner(pushed[k], cotangents[m]), _inner(seeds[k], pulled[m])
        scale = float((pushed[k].abs() * cotangents[m].abs()).sum()) if out.numel() else 0.0
        if not abs(left - right) <= EXACT * max(1.0, scale):
            if left != left and right != right:  # both nan
                continue
            yield f"adjoint: <Jv, w> = {left:.9g}, <v, Jᵀw> = {right:.9g}"
            return
    for m, cotangent in enumerate(cotangents):
        alone = _pull(linear_map, cotangent.unsqueeze(0), x, out)[0]
        yield from _compare("pull of two against one at a time", pulled[m], alone, EXACT)


def _structure(linear_map: AbstractLinearMap, x: Tensor, out: Tensor) -> Iterator[str]:
    if x.numel() * out.numel() > MAX_ENTRIES:
        return
    basis, back = _basis(x), _basis(out)
    dense = _push(linear_map, basis, x, out)  # (inputs, *out)
    rows = _pull(linear_map, back, x, out)  # (outputs, *in)
    for block in _tied_blocks(x):
        expected = _push(linear_map, _dense_seeds(block), x, out)
        (pushed,) = push_blocks((block,), linear_map, out.dtype)
        actual = _dense_seeds(pushed)
        yield from _compare(
            f"pushing {block!r} against pushing dense seeds", actual, expected, EXACT
        )
    for block in _tied_blocks(out):
        expected = _pull(linear_map, _dense_seeds(block), x, out)
        (pulled,) = pull_blocks((block,), linear_map, x.dtype)
        actual = _dense_seeds(pulled)
        yield from _compare(
            f"pulling {block!r} against pulling dense seeds", actual, expected, EXACT
        )
    yield from _pattern(linear_map, x, out, dense, rows)


def _pattern(
    linear_map: AbstractLinearMap, x: Tensor, out: Tensor, dense: Tensor, rows: Tensor
) -> Iterator[str]:
    where_rows, where_cols = linear_map.pattern()
    inside = torch.zeros(out.numel(), x.numel(), dtype=torch.bool)
    try:
        inside[where_rows, where_cols] = True
    except IndexError as error:
        yield f"pattern: {error}"
        return
    if int(inside.sum()) != len(where_rows):
        yield f"pattern: {len(where_rows)} positions, {int(inside.sum())} distinct"
    parts = 2 if x.is_complex() else 1
    forward = (dense.abs() > 0).reshape(parts, x.numel(), out.numel()).any(0).t()
    parts = 2 if out.is_complex() else 1
    reverse = (rows.abs() > 0).reshape(parts, out.numel(), x.numel()).any(0)
    for name, nonzero in (("push", forward), ("pull", reverse)):
        missing = nonzero & ~inside
        if missing.any():
            yield f"pattern lacks {int(missing.sum())} entries that {name} gives: {missing.nonzero()[:3].tolist()}"


def _second_order(
    sample: Sample, slot: Slot, index: int, seeds: Tensor, active: Sequence[Slot]
) -> Iterator[str]:
    """The map's values are differentiable functions of the primals: autograd's slope against differences."""
    point = {s: _argument(sample, s) for s in active}
    directions = {s: _direction(sample, p) for s, p in point.items()}
    weights: list[Tensor] = []

    def value(primals: dict[Slot, Tensor]) -> Tensor:
        (linear_map, out) = (
            _maps(sample, slot, active, primals)[index],
            _outputs(sample, primals)[index],
        )
        pushed = _push(linear_map, seeds, primals[slot], out)
        if not weights:
            weights.append(_random(pushed))
        return _real_dot(pushed, weights[0])

    def at(step: float) -> float:
        return float(value({s: p + step * directions[s] for s, p in point.items()}).detach())

    middle = at(0.0)
    slopes = [(at(h) - at(-h)) / (2 * h) for h in (STEP, STEP / 2)]
    one_sided = (at(STEP) - middle) / STEP
    scale = max(1.0, abs(middle), abs(slopes[0]))
    smooth = (
        abs(slopes[0] - slopes[1]) <= 3e-5 * scale and abs(one_sided - slopes[0]) <= 1e-2 * scale
    )
    if not smooth:  # a kink, a jump, or not a number
        return
    leaves = {s: p.clone().requires_grad_() for s, p in point.items()}
    if not _torch_differentiates(sample, slot):
        return
    try:
        gradients = _gradients(value, leaves)
    except RuntimeError as error:
        if any(reason in str(error) for reason in REFUSED):
            return
        raise
    slope = sum(
        _inner(g, directions[s]) for s, g in zip(leaves, gradients, strict=True) if g is not None
    )
    if not abs(slope - slopes[0]) <= 1e-4 * scale:
        yield f"order 2: slope of the map's values is {slopes[0]:.9g} by differences, {slope:.9g} by autograd"


def _gradients(
    value: Callable[[dict[Slot, Tensor]], Tensor], leaves: dict[Slot, Tensor]
) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        result = value(leaves)
        if not result.requires_grad:
            return [None] * len(leaves)
        return torch.autograd.grad(result, list(leaves.values()), allow_unused=True)


# ----- References -----


def _reference(sample: Sample, slot: Slot, seed: Tensor) -> list[Any]:
    """Return for each output its derivative along ``seed`` and where it can be trusted.

    Central differences where they agree at two steps and with one-sided ones (else a kink or a jump is near);
    elsewhere PyTorch's own derivative of the operator, if it has one.
    """
    x = _argument(sample, slot)

    def at(step: float) -> list[Any]:
        return _outputs(sample, {slot: x + step * seed})

    middle, results = at(0.0), []
    there, back, near, behind = at(STEP), at(-STEP), at(STEP / 2), at(-STEP / 2)
    own: list[Any] | None = None
    for i, out in enumerate(middle):
        if not _is_differentiable(out):
            results.append(None)
            continue
        if there[i].shape != out.shape or back[i].shape != out.shape:
            results.append((torch.zeros_like(out), torch.zeros(out.shape, dtype=torch.bool)))
            continue
        wide, narrow = (there[i] - back[i]) / (2 * STEP), (near[i] - behind[i]) / STEP
        one_sided = (there[i] - out) / STEP
        finite = wide.abs()[wide.isfinite()]
        scale = max(1.0, float(finite.max()) if finite.numel() else 1.0)
        trusted = (wide - narrow).abs() <= 3e-6 * scale
        trusted &= (one_sided - wide).abs() <= 1e-2 * scale
        if _name(sample) in BY_TORCH:
            trusted &= False
        defined = out.isfinite()
        if not trusted.all():
            own = own if own is not None else _torch_derivative(sample, slot, seed)
            if own:
                wide = torch.where(trusted, wide, own[i])
                trusted = trusted | wide.isfinite()
        results.append((wide, trusted & defined))
    return results


def _torch_derivative(sample: Sample, slot: Slot, seed: Tensor) -> list[Any]:
    """PyTorch's forward derivative, else the transpose of its backward, else an empty list."""
    x = _argument(sample, slot)

    def function(value: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            o if isinstance(o, Tensor) else torch.zeros(()) for o in _outputs(sample, {slot: value})
        )

    try:
        return list(torch.func.jvp(function, (x,), (seed,))[1])
    except Exception:
        pass
    try:
        leaf = x.clone().requires_grad_()
        results: list[Any] = []
        with torch.enable_grad():
            for out in function(leaf):
                if not out.requires_grad:
                    results.append(torch.zeros_like(out))
                    continue
                cotangent = torch.zeros_like(out).requires_grad_()
                (gradient,) = torch.autograd.grad(out, leaf, cotangent, create_graph=True)
                results.append(torch.autograd.grad(gradient, cotangent, seed)[0])
        return results
    except Exception:
        return []


def _torch_differentiates(sample: Sample, slot: Slot) -> bool:
    """Tell whether autograd sees the operator at all: where not, its second derivative is nested recordings'."""
    leaf = _argument(sample, slot).clone().requires_grad_()
    try:
        with torch.enable_grad():
            return any(
                isinstance(o, Tensor) and o.requires_grad for o in _outputs(sample, {slot: leaf})
            )
    except RuntimeError:
        return False


# ----- Small pieces -----


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float64, torch.complex128)


def _argument(sample: Sample, slot: Slot) -> Tensor:
    key, place = slot
    value = sample.args[key] if isinstance(key, int) else sample.kwargs[key]
    tensor: Tensor = value if place is None else value[place]
    return tensor


def _replaced(
    sample: Sample, primals: dict[Slot, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = list(sample.args), dict(sample.kwargs)
    for (key, place), value in primals.items():
        holder: Any = args if isinstance(key, int) else kwargs
        if place is None:
            holder[key] = value
        else:
            holder[key] = [value if i == place else v for i, v in enumerate(holder[key])]
    return tuple(args), kwargs


def _call(sample: Sample, primals: dict[Slot, Tensor], is_kept: bool = True) -> Any:
    """Call the operator; unless the arguments are to be kept, one that writes may write to them."""
    args, kwargs = _replaced(sample, primals)
    if sample.op._schema.is_mutable and is_kept:
        args, kwargs = map_tensors((args, kwargs), torch.clone)
    torch.manual_seed(0)
    operator = (lookup(sample.op) or lookup(functional(sample.op))).operator
    if operator in BY_RULE:
        return call_ruled(operator, sample.op, args, kwargs)
    return sample.op(*args, **kwargs)


def _outputs(sample: Sample, primals: dict[Slot, Tensor]) -> list[Any]:
    out = _call(sample, primals)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _maps(sample: Sample, slot: Slot, active: Iterable[Slot], primals: Primals) -> list[Any]:
    """Return the map of each output, made from the node that autograd leaves where ``active`` are differentiated."""
    return recorded(sample, active, primals).get(slot, [])


def recorded(
    sample: Sample, active: Iterable[Slot], primals: Primals | None = None
) -> dict[Slot, list[Any]]:
    """Return for each active argument that the operator's node has an edge for the maps to all outputs."""
    primals = primals or {}
    with torch.enable_grad():
        inner = {s: _followed(primals.get(s, _argument(sample, s))) for s in active}
        numbers = {x.grad_fn: i for i, x in enumerate(inner.values())}
        out = _call(sample, {**primals, **inner}, is_kept=False)
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
    (node,) = {o.grad_fn for o in outs if isinstance(o, Tensor) and o.requires_grad}
    kind = node_type(node)
    assert _is_of(kind, sample), f"{sample.op} leaves {kind}"
    edges = [(numbers.get(target, -1), nr) for target, nr in node.next_functions]
    saved: list[Any] = []
    kind.read(node, [], saved)
    wanted = [o.output_nr for o in outs if isinstance(o, Tensor) and o.grad_fn is node]
    is_cut = any(number < 0 for number, _ in edges)
    joined = kind.joined(node) if kind.joined is not None and is_cut else None
    found = maps_by_rule(kind, node, edges, saved, wanted, joined)
    assert found is not None, "a black box"
    names = list(inner)
    by_slot = {names[i]: maps for (i, _), _, maps in found}
    return {
        slot: [_map_of(o, node, by_slot.get(slot, {})) for o in outs]
        for i, slot in enumerate(names)
        if any(i == number for number, _ in edges)
    }


def _followed(x: Tensor) -> Tensor:
    return (x if x.requires_grad else x.detach().requires_grad_()).clone()


def _map_of(out: Any, node: Any, maps: dict[int, Any]) -> Any:
    if not isinstance(out, Tensor) or out.grad_fn is not node:
        return UNFOLLOWED
    return maps.get(out.output_nr)


def _push(linear_map: AbstractLinearMap, seeds: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """Push dense seeds ``(n, *in)``; returns ``(n, *out)``."""
    (block,) = push_blocks((_free(seeds),), linear_map, out.dtype)
    assert block.shape == tuple(out.shape), f"pushed to shape {block.shape}, not {tuple(out.shape)}"
    return block.expanded_values()


def _pull(linear_map: AbstractLinearMap, cotangents: Tensor, x: Tensor, out: Tensor) -> Tensor:
    (block,) = pull_blocks((_free(cotangents),), linear_map, x.dtype)
    assert block.shape == tuple(x.shape), f"pulled to shape {block.shape}, not {tuple(x.shape)}"
    return block.expanded_values()


def _free(seeds: Tensor) -> Block:
    return Block(seeds, tuple(seeds.shape[1:]), (len(seeds),), (None,))


def _dense_seeds(block: Block) -> Tensor:
    """Write a block out as ``(seeds, *near)``."""
    dense = block.to_dense()
    ndim = len(block.shape)
    dense = dense.permute((*range(ndim, dense.ndim), *range(ndim)))
    return dense.reshape(math.prod(block.seed_shape), *block.shape)


def _tied_blocks(like: Tensor) -> list[Block]:
    """Identities, diagonals with values that vary along all axes, or along the even ones only, and samples.

    Samples are along one axis alone, or a part of one.
    """
    eye = complex_identity(like, 0) if like.is_complex() else identity(like, 0)
    lead = eye.values.shape[: eye.num_free]
    sizes = [n if i % 2 == 0 else 1 for i, n in enumerate(like.shape)]
    full = torch.randn((*lead, *like.shape), dtype=like.dtype)
    partly = torch.randn((*lead, *sizes), dtype=like.dtype)
    blocks = [eye, eye.with_values(full), eye.with_values(partly)]
    shape = tuple(like.shape)
    values = torch.randn(shape, dtype=like.dtype)
    ties = [(n, axis) for axis, n in enumerate(shape) if n > 1][:1]
    blocks += [Block(values, shape, (n,), (axis,)) for n, axis in ties]
    parts = [(n, axis) for axis, n in enumerate(shape) if n > 2 and n % 2 == 0][:1]
    for n, axis in parts:
        blocks.append(Block(values, shape, (n // 2,), (Part(axis, 2),)))
        blocks.append(Block(values, shape, (2,), (Part(axis, 1),)))
    return blocks


def _basis(like: Tensor) -> Tensor:
    eye = torch.eye(like.numel(), dtype=like.dtype)
    both = torch.cat([eye, 1j * eye]) if like.is_complex() else eye
    return both.reshape(len(both), *like.shape)


def _seeds(sample: Sample, x: Tensor) -> Tensor:
    """Two directions; for a complex argument a real and an imaginary one."""
    torch.manual_seed(1)
    first, second = (
        torch.randn(x.shape, dtype=torch.float64),
        torch.randn(x.shape, dtype=torch.float64),
    )
    pair = torch.stack([first, second]).to(x.dtype)
    if x.is_complex():
        pair = torch.stack([pair[0], 1j * pair[1]])
    return torch.stack([_allowed(sample, x, d) for d in pair])


def _direction(sample: Sample, x: Tensor) -> Tensor:
    return _allowed(sample, x, torch.randn(x.shape, dtype=x.dtype))


def _allowed(sample: Sample, x: Tensor, direction: Tensor) -> Tensor:
    """Project a direction onto those along which PyTorch defines the derivative."""
    name = _name(sample)
    if name in SYMMETRIC:
        return (direction + direction.mH) / 2
    if name in TRIANGULAR:
        return direction * (x != 0)
    return direction


def _name(sample: Sample) -> str:
    name: str = (
        sample.op._schema.name if isinstance(sample.op, torch._ops.OpOverload) else str(sample.op)
    )
    return name


def _random(like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype)


def _inner(a: Tensor, b: Tensor) -> float:
    return float(_real_dot(a.detach(), b.detach()))


def _real_dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b.conj()).real.sum() if a.is_complex() else (a * b).sum()


def _compare(kind: str, actual: Tensor, expected: Tensor, tolerance: float) -> Iterator[str]:
    actual, expected = actual.detach(), expected.detach()
    if actual.shape != expected.shape:
        yield f"{kind}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        return
    finite = expected.isfinite()
    bad = (actual.isfinite() != finite) & finite
    if bad.any():
        yield f"{kind}: {int(bad.sum())} values are not finite where {expected[bad][:2].tolist()} is expected"
        return
    difference = (actual - expected).abs()[finite]
    scale = max(1.0, float(expected.abs()[finite].max())) if difference.numel() else 1.0
    if difference.numel() and float(difference.max()) > tolerance * scale:
        at, wrong = int(difference.argmax()), int((difference > tolerance * scale).sum())
        got, want = actual[finite][at].item(), expected[finite][at].item()
        yield f"{kind}: got {got:.6g}, expected {want:.6g} ({wrong} of {difference.numel()} differ)"
