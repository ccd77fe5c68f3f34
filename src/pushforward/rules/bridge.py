"""The bridge: PyTorch's own derivative of a single operator, for those without a rule. Its uses are counted.

The backward formula is used, and transposed for forward mode: unlike PyTorch's forward formulas it is right at
second order (see the baselines), and safe in threads. Where a backward formula cannot be differentiated, the
forward formula is used if there is one, else the rows of the Jacobian.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS

from pushforward.errors import MissingRuleError, UnsupportedError
from pushforward.linear.kinds.general import General
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.transposition import per_seed, transposed

COUNTS: collections.Counter[str] = collections.Counter()  # uses of the bridge by operator

_OWN = (
    "aten",
    "prims",
)  # PyTorch's namespaces: their operators have derivatives without being asked

Position = tuple[int | str, int | None]


def maps(
    name: str,
    op: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
    positions: Sequence[Position],
) -> list[Any]:
    """Return for each argument in ``positions`` its linear map, a tuple of them if there are several outputs.

    Raises:
        MissingRuleError: PyTorch cannot differentiate the operator either.
    """
    COUNTS[str(op)] += 1
    outs = out if isinstance(out, (tuple, list)) else (out,)
    _check_differentiable(name, op)
    _check_layouts(name, op, [*outs, *(_argument(args, kwargs, p) for p in positions)])
    result = []
    for position in positions:
        x = _argument(args, kwargs, position)
        shares = tuple(
            _map(
                name,
                op,
                functools.partial(_call, op, args, kwargs, position, i),
                x,
                o,
                _registered_pull(op, args, kwargs, outs, position, i),
            )
            for i, o in enumerate(outs)
        )
        result.append(shares if isinstance(out, (tuple, list)) else shares[0])
    return result


def _map(
    name: str,
    op: Any,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    out: Any,
    registered: Callable[[Tensor], Tensor] | None,
) -> AbstractLinearMap | None:
    if not isinstance(out, Tensor) or not (out.is_floating_point() or out.is_complex()):
        return None
    in_shape, out_shape = tuple(x.shape), tuple(out.shape)
    is_custom = isinstance(op, torch._ops.OpOverload) and op.namespace not in _OWN
    plain = not torch._C._functorch.is_functorch_wrapped_tensor(x)
    pull_one = registered
    if pull_one is None:
        derive = _autograd_pull if is_custom and plain else _functional_pull
        pull_one = derive(name, op, function, x)
    if pull_one is None:
        return None
    push_one = transposed(pull_one, out_shape, out)
    if registered is not None or (is_custom and plain):
        push_one = _by_rows(pull_one, x, out)
    elif not _is_twice_differentiable(pull_one, out):
        push_one = _forward_or_rows(function, pull_one, x, out)
    return General(in_shape, out_shape, per_seed(push_one), per_seed(pull_one))


def _functional_pull(
    name: str, op: Any, function: Callable[[Tensor], Tensor], x: Tensor
) -> Callable[[Tensor], Tensor] | None:
    connected = []

    def watched(value: Tensor) -> Tensor:
        result = function(value)
        connected.append(result.requires_grad)
        return result

    try:
        pull = torch.func.vjp(watched, x)[1]
    except (RuntimeError, NotImplementedError) as error:
        raise _missing(name, op) from error
    if not connected[-1] and isinstance(op, torch._ops.OpOverload) and len(op._schema.returns) == 1:
        raise _missing(name, op)  # autograd takes its output for a constant without a word

    def pull_one(cotangent: Tensor) -> Tensor:
        try:
            result: Tensor = pull(cotangent)[0]
        except (RuntimeError, NotImplementedError) as error:
            if "is not implemented" in str(error):
                raise _missing(name, op) from error
            raise
        return result

    return pull_one


class _Context:
    """What a formula of ``torch.library.register_autograd`` finds as ``ctx``, kept outside autograd."""

    def __init__(self, needs_input_grad: tuple[Any, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Do nothing: missing cotangents are zeros in any case."""

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Do nothing: outputs without derivative get zero cotangents."""


def _registered_pull(
    op: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outs: Sequence[Any],
    position: Position,
    index: int,
) -> Callable[[Tensor], Tensor] | None:
    """Return the formula of a ``torch.library.custom_op`` itself: it may run on tracers and in ``torch.func``."""
    definition = OPDEFS.get(op._name) if isinstance(op, torch._ops.OpOverload) else None
    if definition is None or definition._backward_fn is None:
        return None
    if any("List" in str(r.type) for r in op._schema.returns):
        return None
    arguments = op._schema.arguments
    names = [a.name for a in arguments if not a.kwarg_only]
    given = {**dict(zip([a.name for a in arguments], args, strict=False)), **kwargs}
    values = {a.name: given.get(a.name, a.default_value) for a in arguments}
    key, place = position
    name = arguments[key].name if isinstance(key, int) else key
    if name not in names:
        return None
    inputs = tuple(values[n] for n in names)
    ctx = _Context(tuple(_needs_grad(a) for a in inputs))
    if definition._setup_context_fn is not None:
        only_kwargs = {n: v for n, v in values.items() if n not in names}
        extra = {"keyword_only_inputs": only_kwargs} if only_kwargs else {}
        output = outs[0] if len(outs) == 1 else tuple(outs)
        definition._setup_context_fn(ctx=ctx, inputs=inputs, output=output, **extra)
    x = _argument(args, kwargs, position)

    def pull_one(cotangent: Tensor) -> Tensor:
        cotangents = [
            cotangent if i == index else torch.zeros_like(o) if isinstance(o, Tensor) else None
            for i, o in enumerate(outs)
        ]
        grads = definition._backward_fn(ctx, *cotangents)
        grad = grads[names.index(name)] if isinstance(grads, (tuple, list)) else grads
        if place is not None and grad is not None:
            grad = grad[place]
        return torch.zeros_like(x) if grad is None else grad

    return pull_one


def _needs_grad(argument: Any) -> Any:
    if isinstance(argument, (tuple, list)):
        return [isinstance(item, Tensor) for item in argument]
    return isinstance(argument, Tensor)


def _autograd_pull(
    name: str, op: Any, function: Callable[[Tensor], Tensor], x: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """Pull by ``torch.autograd``: operators of ``torch.library`` refuse functorch's transforms."""

    def pull_one(cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            value = function(leaf)
            if not value.requires_grad:
                raise _missing(name, op)
            try:
                (result,) = torch.autograd.grad(
                    value, leaf, cotangent, create_graph=True, allow_unused=True
                )
            except (RuntimeError, NotImplementedError) as error:
                raise _missing(name, op) from error
        return torch.zeros_like(x) if result is None else result

    return pull_one


def _is_twice_differentiable(pull_one: Callable[[Tensor], Tensor], out: Tensor) -> bool:
    try:
        pull = torch.func.vjp(pull_one, torch.zeros_like(out))[1]
        pull(pull_one(torch.zeros_like(out)))
    except MissingRuleError:
        raise
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _forward_or_rows(
    function: Callable[[Tensor], Tensor],
    pull_one: Callable[[Tensor], Tensor],
    x: Tensor,
    out: Tensor,
) -> Callable[[Tensor], Tensor]:
    try:
        torch.func.jvp(function, (x,), (torch.zeros_like(x),))
    except (RuntimeError, NotImplementedError):
        return _by_rows(pull_one, x, out)

    def push_one(tangent: Tensor) -> Tensor:
        result: Tensor = torch.func.jvp(function, (x,), (tangent,))[1]
        return result

    return push_one


def _by_rows(
    pull_one: Callable[[Tensor], Tensor], x: Tensor, out: Tensor
) -> Callable[[Tensor], Tensor]:
    """Push by the rows of the Jacobian, made once."""

    @functools.cache
    def rows() -> list[Tensor]:
        basis = torch.eye(out.numel(), dtype=out.dtype, device=out.device)
        bases = [basis, 1j * basis] if out.is_complex() else [basis]
        return [
            torch.stack([pull_one(row.reshape(out.shape)) for row in b])
            if len(b)
            else x.new_zeros((0, *x.shape))
            for b in bases
        ]

    def push_one(tangent: Tensor) -> Tensor:
        products = [
            torch.real((row.conj() * tangent).reshape(row.shape[0], x.numel()).sum(1))
            for row in rows()
        ]
        flat = torch.complex(*products) if len(products) == 2 else products[0]
        return flat.reshape(out.shape)

    return push_one


def _check_differentiable(name: str, op: Any) -> None:
    """Refuse an operator of ``torch.library`` for which nobody registered a derivative."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace in _OWN:
        return
    keys = (
        torch._C.DispatchKey.Autograd,
        torch._C.DispatchKey.AutogradCPU,
        torch._C.DispatchKey.AutogradCUDA,
        torch._C.DispatchKey.CompositeImplicitAutograd,
    )
    if not any(op.has_kernel_for_dispatch_key(key) for key in keys):
        raise _missing(name, op)


def _check_layouts(name: str, op: Any, values: Sequence[Any]) -> None:
    """Refuse sparse and nested tensors: PyTorch's derivatives of them do not take dense seeds."""
    layouts = {v.layout for v in values if isinstance(v, Tensor)} - {torch.strided}
    if layouts:
        raise UnsupportedError(
            f"{name}: no rule for {op} on a tensor that depends on the inputs: got layout "
            f"{', '.join(map(str, layouts))}, expected a dense tensor. Use .to_dense() before, or convert afterwards."
        )


def _missing(name: str, op: Any) -> MissingRuleError:
    return MissingRuleError(
        f"{name}: no rule for {op}, and PyTorch has no derivative of it: expected an operator that one of the two "
        "can differentiate. Declare its linear maps with pushforward.rule or pushforward.elementwise "
        "(docs/how-to/add-a-rule.md)."
    )


def _call(
    op: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    position: Position,
    index: int,
    x: Tensor,
) -> Tensor:
    key, place = position
    new_args, new_kwargs = list(args), dict(kwargs)
    holder: Any = new_args if isinstance(key, int) else new_kwargs
    if place is None:
        holder[key] = x
    else:
        items = list(holder[key])
        items[place] = x
        holder[key] = items
    out = op(*new_args, **new_kwargs)
    result: Tensor = out[index] if isinstance(out, (tuple, list)) else out
    return result


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: Position) -> Tensor:
    key, place = position
    value = args[key] if isinstance(key, int) else kwargs[key]
    tensor: Tensor = value if place is None else value[place]
    return tensor


def is_composite(op: Any) -> bool:
    """Tell whether ``op`` is made of other operators and has no backward formula of its own."""
    return bool(
        isinstance(op, torch._ops.OpOverload)
        and op._can_decompose()
        and torch._C._dispatch_has_kernel_for_dispatch_key(
            op.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        )
    )
