"""In-place, ``out=`` and other special forms of operators, made from the functional ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import UnsupportedError
from pushforward.linear.kinds.reshape import Reshape
from pushforward.recording import aliasing
from pushforward.recording.dispatch import change_metadata
from pushforward.recording.tracer import Tracer, current, make_tracer, map_tensors

aten = torch.ops.aten

# Operators that overwrite their first argument with random numbers or constants, with no functional twin needed.
_OVERWRITE = {
    aten.normal_, aten.uniform_, aten.random_, aten.bernoulli_, aten.cauchy_, aten.exponential_, aten.geometric_,
    aten.log_normal_, aten.zero_,
}  # fmt: skip


# New tensors like a given one. Random ones are not among them.
FACTORIES = {
    aten.new_empty, aten.new_empty_strided, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_like,
    aten.zeros_like, aten.ones_like, aten.full_like, aten._new_zeros_with_same_feature_meta, aten._efficientzerotensor,
}  # fmt: skip

# In-place operators that change the shape, and the views that they amount to.
_RESHAPING = {
    aten.squeeze_: aten.squeeze, aten.unsqueeze_: aten.unsqueeze, aten.t_: aten.t, aten.transpose_: aten.transpose,
    aten.swapaxes_: aten.transpose, aten.swapdims_: aten.transpose, aten.as_strided_: aten.as_strided,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Traits:
    """What the recorder has to know of an operator, worked out once."""

    is_random: bool
    views: frozenset[int]  # the outputs that are views of the first argument


@functools.cache
def traits(op: Any) -> Traits:
    """Return the traits of an operator."""
    is_random = torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())
    return Traits(is_random, view_outputs(op))


@functools.cache
def view_outputs(op: Any) -> frozenset[int]:
    """Return which outputs of ``op`` are views of its first argument."""
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
        return frozenset()
    returns = op._schema.returns
    if len(returns) == 1 and str(returns[0].type) == "List[Tensor]":
        return frozenset(range(10_000)) if returns[0].alias_info is not None else frozenset()
    return frozenset(i for i, r in enumerate(returns) if r.alias_info is not None)


# Composite functions whose C++ code adds a traced value into a product of plain arguments, out of our sight: there all
# arguments become tracers.
WRITE_TEMPORARIES = {
    "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lstm", "gru", "rnn_tanh", "rnn_relu",
}  # fmt: skip


def is_to_meta(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether ``op`` keeps a tensor's shape only, as PyTorch does to multiply by a zero tangent."""
    if op.overloadpacket not in (aten._to_copy, aten.to) or args[0].device.type == "meta":
        return False
    device = kwargs.get("device", args[1] if len(args) > 1 else None)
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "meta"


def writes_statistics(op: Any, args: tuple[Any, ...]) -> bool:
    """Tell whether this is batch norm that updates running statistics, which its schema does not say."""
    return op is aten.native_batch_norm.default and bool(args[5]) and args[3] is not None


def train_batch_norm(recorder: Any, args: tuple[Any, ...]) -> Any:
    """Normalize by the batch, and write the running statistics with their derivative.

    Math: running ← (1 − momentum) · running + momentum · statistic of the batch (variance unbiased).
    """
    x, weight, bias, running_mean, running_var, _, momentum, eps = args
    result = recorder.on_primitive(
        aten.native_batch_norm.default, (x, weight, bias, None, None, True, momentum, eps), {}
    )
    axes = [axis for axis in range(x.dim()) if axis != 1]
    mean = recorder.on_primitive(aten.mean.dim, (x, axes), {})
    var = recorder.on_primitive(aten.var.correction, (x, axes), {"correction": 1})
    with recorder.entry.restored():
        exact = [recorder.unwrap(t).clone() for t in (running_mean, running_var)]
        aten.native_batch_norm.default(recorder.unwrap(x), None, None, *exact, True, momentum, eps)
    for running, statistic, value in zip(
        (running_mean, running_var), (mean, var), exact, strict=True
    ):
        old = recorder.captured.lookup(running)
        share = recorder.on_primitive(aten.mul.Tensor, (statistic, momentum), {})
        if recorder.is_mine(old):
            kept = recorder.on_primitive(aten.mul.Tensor, (old, 1 - momentum), {})
            share = recorder.on_primitive(aten.add.Tensor, (kept, share), {})
        if recorder.is_mine(share):
            share = make_tracer(value, share._payload, recorder)
        store(recorder, running, share if recorder.is_mine(share) else value)
    return result


def mutate(recorder: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operator that writes to some of its arguments: its functional twin, then the writes."""
    if op is aten.copy_.default:
        return _copy(recorder, args[0], args[1])
    if op.overloadpacket in _OVERWRITE:
        return _overwrite(recorder, op, args, kwargs)
    if op.overloadpacket in _RESHAPING:
        return _reshape_in_place(recorder, op, args, kwargs)
    written = [
        (i, argument.name)
        for i, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if op in _IN_PLACE_ONLY:
        return store(recorder, args[0], _IN_PLACE_ONLY[op](recorder, *args, **kwargs))
    if op is aten._native_batch_norm_legit.default and not args[5]:  # reads its statistics only
        fixed = aten._native_batch_norm_legit_no_training.default
        return recorder.on_primitive(fixed, (*args[:5], *args[6:]), kwargs)
    twin = functional_twin(op)
    if twin is None:
        raise UnsupportedError(
            f"{recorder.name}: {op} writes to its arguments and has no form that does not: expected an operator with "
            "a functional form. Write it without the in-place operator."
        )
    destinations = [args[i] if i < len(args) else kwargs[name] for i, name in written]
    names = {name for _, name in written}
    if op._schema.name.endswith("_") and not op._schema.arguments[-1].is_out:
        functional_args, functional_kwargs = args, kwargs
    else:
        functional_kwargs = {k: v for k, v in kwargs.items() if k not in names}
        # The twin keeps what it is given, and the caller's tensor is written to when the recording ends.
        functional_args = tuple(
            _copied(recorder, a) if any(a is d for d in destinations) else a for a in args
        )
    result = recorder.on_primitive(twin, functional_args, functional_kwargs)
    results = result if isinstance(result, (tuple, list)) else (result,)
    outs = [
        store(recorder, destination, value)
        for destination, value in zip(destinations, results[-len(destinations) :], strict=True)
    ]
    if len(op._schema.returns) == 0:
        return None
    extra = list(results[: len(results) - len(destinations)])
    # Not every operator returns what it writes; one result too many and PyTorch's boxing crashes.
    combined = (extra + outs)[: len(op._schema.returns)]
    return combined[0] if len(combined) == 1 else tuple(combined)


def _copied(recorder: Any, destination: Any) -> Any:
    if not isinstance(destination, Tensor) or recorder.is_mine(destination):
        return destination
    with recorder.entry.restored():
        return destination.clone()


@functools.cache
def functional_twin(op: Any) -> Any:
    """Return the overload that computes what ``op`` writes, None if there is none."""
    schema = op._schema
    is_out = any(argument.is_out for argument in schema.arguments)
    name = schema.name.split("::")[1]
    inputs = [a for a in schema.arguments if not a.is_out]
    packet_name = name if is_out else name.removesuffix("_")
    if not is_out and packet_name == name:
        packet_name = f"{name}_functional"
    namespace = getattr(torch.ops, op.namespace)
    packet = getattr(namespace, packet_name, None)
    if packet is None:
        return None
    wanted = [(a.name, str(a.type)) for a in inputs]
    for overload_name in packet.overloads():
        overload = getattr(packet, overload_name)
        if overload._schema.is_mutable:
            continue
        if [(a.name, str(a.type)) for a in overload._schema.arguments] == wanted:
            return overload
    return None


def store(recorder: Any, destination: Any, value: Any) -> Any:
    """Write ``value`` into ``destination`` (a tracer or a plain tensor), and return the destination."""
    if not isinstance(destination, Tensor):
        return value
    tracer: Any = destination if recorder.is_mine(destination) else None
    if tracer is None:
        found = recorder.captured.lookup(destination)
        if recorder.is_mine(found):
            tracer = found
        elif recorder.is_mine(value):
            if not recorder.depth or not aliasing.shares_memory(destination, recorder.given):
                raise UnsupportedError(
                    f"{recorder.name}: inside torch.func, a backward pass or C++ code, a traced value is written "
                    f"into a plain tensor of shape {tuple(destination.shape)}, where later reads cannot be seen: "
                    "expected a tensor made from a traced one. Use x.new_zeros(...) instead of torch.zeros(...), or "
                    "pushforward's transforms inside."
                )
            if tuple(destination.shape) != tuple(value.shape):
                destination.resize_(value.shape)
            tracer = recorder.captured.adopt(destination)
        else:
            with recorder.entry.restored():
                destination.copy_(value)
            return destination
    with recorder.entry.restored():
        primal = current(value) if recorder.is_mine(value) else value
        payload = value._payload if recorder.is_mine(value) else None
        if tuple(primal.shape) != tuple(tracer.shape) and tracer._primal.numel():
            raise UnsupportedError(
                f"{recorder.name}: an in-place operator changes the shape of its argument: got "
                f"{tuple(primal.shape)}, expected {tuple(tracer.shape)}. Use the form that returns a new tensor."
            )
        if primal.dtype != tracer._primal.dtype:
            primal, payload = _converted(recorder, primal, payload, tracer._primal.dtype)
        keep = recorder.cut
        aliasing.write(recorder, tracer, primal, payload, keep_payload=keep)
    return destination


def _converted(
    recorder: Any, primal: Tensor, payload: Any, dtype: torch.dtype
) -> tuple[Tensor, Any]:
    converted = primal.to(dtype)
    if payload is None:
        return converted, None
    from_tracer = Reshape(tuple(primal.shape), tuple(primal.shape))
    return converted, recorder.combine([(payload, from_tracer, primal.dtype)], converted)


def _copy(recorder: Any, destination: Tensor, source: Tensor) -> Any:
    """Broadcast, convert, store."""
    converted = source
    if source.dtype != destination.dtype or source.device != destination.device:
        converted = recorder.on_primitive(
            aten._to_copy.default,
            (source,),
            {"dtype": destination.dtype, "device": destination.device},
        )
    if converted.shape != destination.shape:
        converted = recorder.on_primitive(
            aten.expand.default, (converted, list(destination.shape)), {}
        )
    if recorder.is_mine(converted) and converted is not destination:
        fresh = recorder.on_primitive(aten.clone.default, (converted,), {})
        return store(recorder, destination, fresh)
    return store(recorder, destination, converted)


def _overwrite(recorder: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the operator in place on a fresh copy of the primal, which has no derivative afterwards."""
    if recorder.randomness == "error" and torch.Tag.nondeterministic_seeded in op.tags:
        recorder._refuse_random(op, args, kwargs)
    with recorder.entry.restored():
        primal = current(args[0]).detach().clone()
        rest = map_tensors(args[1:], lambda t: recorder.unwrap(t))
        op(primal, *rest, **recorder.unwrap(kwargs))
    return store(recorder, args[0], primal)


def _reshape_in_place(recorder: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turn the tracer into the view of what it was, under its own name."""
    tracer = args[0]
    former = make_tracer(current(tracer), tracer._payload, recorder)
    former._alias, former._writes = tracer._alias, tracer._writes
    packet = _RESHAPING[op.overloadpacket]
    twin = packet.int if packet is aten.transpose else getattr(packet, op._overloadname)
    view = recorder.on_primitive(twin, (former, *args[1:]), kwargs)
    tracer._primal, tracer._payload, tracer._alias = view._primal, view._payload, view._alias
    change_metadata(tracer, view._primal)
    return tracer


def adopt_written(
    recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Adopt the plain tensors that a call is about to write to: ``buffer.add_(x)``, ``out=buffer``."""
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_METHODS
    if not (in_place and args) or recorder.is_mine(args[0]):
        return args, kwargs
    if type(args[0]) in (Tensor, Tracer) and not needs_resize(args[0]):
        args = (recorder.captured.adopt(args[0]), *args[1:])
    return args, kwargs


def needs_resize(tensor: Tensor) -> bool:
    """Tell whether a tensor is empty, so that a write gives it its shape."""
    return tensor.numel() == 0


_IN_PLACE_METHODS = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor", "matmul")
}  # fmt: skip


def _setitem(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Adopt a plain tensor that is assigned to before it is sliced, so that its aliases are known."""
    target, index, value = args
    if not recorder.is_mine(target) and recorder.is_mine(value):
        target = recorder.captured.adopt(target)
        getattr(torch.Tensor, "__setitem__")(target, index, value)  # noqa: B009
        return None
    return NotImplemented


def _instance_norm(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write the running statistics here: PyTorch's C++ code writes copies of them, where we cannot see it.

    Math: running ← (1 − momentum) · running + momentum · the batch's mean of every instance's statistic.
    """
    given = {**dict(zip(_INSTANCE_NORM_ARGUMENTS[func], args, strict=False)), **kwargs}
    mean, var = given.get("running_mean"), given.get("running_var")
    if mean is None or var is None or not given.get("use_input_stats", True):
        return NotImplemented
    x, momentum = given["input"], given.get("momentum", 0.1)
    result = func(**given | {"running_mean": None, "running_var": None})
    axes = list(range(2, x.dim()))
    batch_mean, batch_var = x.mean(axes).mean(0), x.var(axes, correction=1).mean(0)
    for running, statistic in ((mean, batch_mean), (var, batch_var)):
        running.copy_((1 - momentum) * running + momentum * statistic)
    return result


_INSTANCE_NORM_ARGUMENTS = {
    torch.instance_norm: (
        *("input", "weight", "bias", "running_mean", "running_var"),
        *("use_input_stats", "momentum", "eps", "cudnn_enabled"),
    ),
    torch.nn.functional.instance_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
}


def _requires_grad(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let autograd record on the tracers themselves from here on."""
    recorder.uses_autograd = True
    recorder.has_fast_path = False
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _detach(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut the derivative; the result still shares its values with the argument."""
    return cut_alias(recorder, args[0])


def cut_alias(recorder: Any, viewed: Tracer) -> Tensor:
    """Return an alias without derivative."""
    with recorder.entry.restored():
        primal = current(viewed).detach()
    tracer = recorder.constant(primal)
    shape = tuple(primal.shape)
    aliasing.attach(
        tracer, viewed, lambda t: t.detach(), lambda: Reshape(shape, shape), is_cut=True
    )
    return tracer  # type: ignore[no-any-return]


def _fill_diagonal(recorder: Any, x: Tensor, value: complex, wrap: bool = False) -> Tensor:
    mask = torch.zeros(x.shape, dtype=torch.bool, device=x.device).fill_diagonal_(True, wrap)
    result: Tensor = recorder.on_primitive(aten.masked_fill.Scalar, (x, mask, value), {})
    return result


# In-place operators that have no functional form in PyTorch.
_IN_PLACE_ONLY: dict[Any, Callable[..., Tensor]] = {aten.fill_diagonal_.default: _fill_diagonal}


def _differentiate_inside(
    recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run autograd inside the function if it records on tracers, else say how to make it."""
    if recorder.uses_autograd:
        return NotImplemented
    raise UnsupportedError(
        f"{recorder.name}: torch.autograd.{func.__name__} inside the function: got tensors on which autograd did not "
        "record, expected x.requires_grad_() to be called inside the function, before x is used. Call it there, or "
        "use jacfwd, jvp or torch.func.grad inside."
    )


Special = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]

SPECIAL: dict[Any, Special] = {
    torch.Tensor.__setitem__: _setitem,
    torch.Tensor.requires_grad_: _requires_grad,
    torch.instance_norm: _instance_norm,
    torch.nn.functional.instance_norm: _instance_norm,
    torch.Tensor.detach: _detach,
    torch.detach: _detach,
    torch.autograd.grad: _differentiate_inside,
    torch.autograd.backward: _differentiate_inside,
    torch.Tensor.backward: _differentiate_inside,
    torch.Tensor.data.__get__: _detach,  # type: ignore[attr-defined]
}
