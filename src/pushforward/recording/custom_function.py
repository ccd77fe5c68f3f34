"""torch.autograd.Function on tracers: its own ``jvp`` or ``backward`` is honoured, never differentiated through.

PyTorch offers no hook for this: ``Function.apply`` runs ``forward`` under ``no_grad`` on whatever it is given, so that
the derivative would be lost without a word. `install` therefore wraps ``Function.apply`` once, when pushforward is
imported; a call without tracers goes straight on.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import MissingRuleError
from pushforward.linear.kinds.general import General
from pushforward.linear.transposition import per_seed, transposed
from pushforward.recording import aliasing
from pushforward.recording.tracer import Tracer, top_recorder
from pushforward.rules.registry import Rule


class Context:
    """What a Function's methods find as ``ctx``, kept outside autograd."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        """Start with nothing saved."""
        self.needs_input_grad = needs_input_grad
        self.materialize_grads = True
        self.non_differentiable: tuple[Any, ...] = ()
        self.dirty: tuple[Any, ...] = ()
        self._saved: tuple[Any, ...] = ()
        self._saved_forward: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors for ``backward``, and for ``jvp`` if nothing is saved for that."""
        self._saved = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """Keep tensors for ``jvp``."""
        self._saved_forward = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Remember outputs without derivative."""
        self.non_differentiable = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """Remember arguments written in place."""
        self.dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Choose between zeros and None for missing cotangents."""
        self.materialize_grads = value

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What was saved."""
        return self._saved or self._saved_forward

    def replace(self, old: Any, new: Any) -> None:
        """Put outputs that know their derivative into the place of those that do not."""
        swap = {id(o): n for o, n in zip(_as_tuple(old), _as_tuple(new), strict=True)}
        self._saved = tuple(swap.get(id(t), t) for t in self._saved)
        self._saved_forward = tuple(swap.get(id(t), t) for t in self._saved_forward)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor) and id(value) in swap:
                setattr(self, name, swap[id(value)])


def install() -> None:
    """Wrap ``torch.autograd.Function.apply``, once."""
    function_class: Any = torch.autograd.Function
    original = function_class.__dict__["apply"].__func__
    if getattr(original, "wraps_tracers", False):
        return

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, Tracer) for a in args) or any(
            isinstance(a, Tracer) for a in kwargs.values()
        ):
            return apply_to_tracers(cls, args, kwargs)
        return original(cls, *args, **kwargs)

    apply.wraps_tracers = True  # type: ignore[attr-defined]
    apply.__doc__ = original.__doc__
    function_class.apply = classmethod(apply)


def apply_to_tracers(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Evaluate a Function on primals, and give its outputs the derivative it declares."""
    recorder = top_recorder((args, kwargs))
    if kwargs:
        args = (*args, *kwargs.values())
    if recorder.uses_autograd and any(
        isinstance(a, Tracer) and _wrapper_requires_grad(a) for a in args
    ):
        raise MissingRuleError(
            f"{recorder.name}: {cls.__name__} is an autograd.Function called inside a part that records for autograd "
            "on tracers (requires_grad_() was called inside): expected a function of PyTorch operators. "
            "Declare a rule for it (docs/how-to/add-a-rule.md)."
        )
    needed = {key for key, _, _, _ in recorder._active(args, {})}
    call = _Call(cls, recorder.name, tuple(i in needed for i in range(len(args))))
    rule = Rule(cls, {i: functools.partial(call.maps, i) for i in range(len(args))})
    result = recorder.apply(rule, call.evaluate, args, {})
    return _written(recorder, call, args, result) if call.may_write else result


def _written(recorder: Any, call: _Call, args: tuple[Any, ...], result: Any) -> Any:
    """Write the outputs that are arguments, changed in place, into the tracers of these arguments."""
    results = list(_as_tuple(result))
    for place, out in enumerate(call.outs):
        for argument, copy in zip(args, call.inputs, strict=True):
            if out is copy and recorder.is_mine(argument):
                value = results[place]
                primal, payload = recorder.read(value)
                with recorder.entry.restored():
                    aliasing.write(recorder, argument, primal, payload, keep_payload=recorder.cut)
                results[place] = argument
    if not isinstance(result, (tuple, list)):
        return results[0]
    return type(result)(results)


def _wrapper_requires_grad(tracer: Tracer) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return bool(tracer.requires_grad)


class _Call:
    """One call of a Function: how it is evaluated, and the maps of its arguments."""

    def __init__(self, cls: Any, name: str, needs_input_grad: tuple[bool, ...]) -> None:
        self._cls = cls
        self._name = name
        self._needs_input_grad = needs_input_grad
        codes = (getattr(m, "__code__", None) for m in (cls.forward, cls.setup_context))
        self.may_write = any("mark_dirty" in code.co_names for code in codes if code is not None)
        self.inputs: tuple[Any, ...] = ()
        self.outs: tuple[Any, ...] = ()

    def evaluate(self, *primals: Any) -> Any:
        """Call the Function, on copies if it writes to arguments: maps that were made before may hold them."""
        if self.may_write:
            primals = tuple(p.clone() if isinstance(p, Tensor) else p for p in primals)
        out = self._cls.apply(*primals)
        self.inputs, self.outs = primals, _as_tuple(out)
        return out

    def maps(self, position: int, out: Any, *args: Any) -> Any:
        """Return the map of one argument for every output."""
        if self.may_write:
            args = self.inputs
        ctx = _context(self._cls, args, self._needs_input_grad, out, self.may_write)
        outs = _as_tuple(out)
        shares = [
            _map(self._cls, ctx, args, outs, position, i, self._name) for i in range(len(outs))
        ]
        return tuple(shares) if isinstance(out, (tuple, list)) else shares[0]


def _context(
    cls: Any,
    args: tuple[Any, ...],
    needs_input_grad: tuple[bool, ...],
    out: Any,
    may_write: bool,
) -> Context:
    ctx: Any = Context(needs_input_grad)
    if cls.setup_context is not torch.autograd.Function.setup_context:
        cls.setup_context(ctx, args, out)
        return ctx  # type: ignore[no-any-return]
    if may_write:
        args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
    with torch.no_grad():
        again = cls.forward(ctx, *args)
    ctx.replace(again, out)
    return ctx  # type: ignore[no-any-return]


def _map(
    cls: Any,
    ctx: Context,
    args: tuple[Any, ...],
    outs: tuple[Any, ...],
    position: int,
    index: int,
    name: str,
) -> General | None:
    x, y = args[position], outs[index]
    if not isinstance(y, Tensor) or not (y.is_floating_point() or y.is_complex()):
        return None
    if any(y is t for t in ctx.non_differentiable):
        return None
    has_jvp = cls.jvp is not torch.autograd.Function.jvp
    has_backward = (
        cls.backward is not torch.autograd.Function.backward
        or cls.vjp is not torch.autograd.Function.vjp
    )
    if not has_jvp and not has_backward:
        raise MissingRuleError(
            f"{name}: {cls.__name__} (an autograd.Function) has neither jvp nor backward: expected one of them. "
            "Implement either staticmethod."
        )

    def missing(value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or not ctx.materialize_grads:
            return None
        return torch.zeros_like(value)

    def push_one(tangent: Tensor) -> Tensor:
        if ctx.dirty:
            tangent = tangent.clone()  # such a jvp writes its tangents in place
        tangents = [tangent if i == position else missing(a) for i, a in enumerate(args)]
        result = _as_tuple(cls.jvp(ctx, *tangents))[index]
        return torch.zeros_like(y) if result is None else result

    def pull_one(cotangent: Tensor) -> Tensor:
        if is_once and any(_is_tracked(t) for t in (*args, *ctx.saved_tensors)):
            raise MissingRuleError(
                f"{name}: the backward of {cls.__name__} (an autograd.Function) is marked once_differentiable, and is "
                "to be differentiated: got a second derivative, expected first ones only. Take the mark off, and write "
                "backward in differentiable operators."
            )
        cotangents = [cotangent if i == index else missing(o) for i, o in enumerate(outs)]
        result = _as_tuple(cls.backward(ctx, *cotangents))[position]
        return torch.zeros_like(x) if result is None else result

    is_once = getattr(cls.backward, "__code__", None) is _ONCE_DIFFERENTIABLE
    in_shape, out_shape = tuple(x.shape), tuple(y.shape)
    if has_jvp and not has_backward:
        return General(
            in_shape, out_shape, per_seed(push_one), per_seed(transposed(push_one, in_shape, x))
        )
    if not has_jvp:
        return General(
            in_shape, out_shape, per_seed(transposed(pull_one, out_shape, y)), per_seed(pull_one)
        )
    return General(in_shape, out_shape, per_seed(push_one), per_seed(pull_one))


_ONCE_DIFFERENTIABLE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__


def _is_tracked(value: Any) -> bool:
    """Tell whether an outer recording of ours follows the derivative of ``value``."""
    while isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return isinstance(value, Tracer) and value._payload is not None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


install()
