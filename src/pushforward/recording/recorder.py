"""What both recorders share: one operator at a time, from arguments to outputs with derivatives."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pushforward.errors import MissingRuleError, RandomnessError, RuleError, UnsupportedError
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.recording import aliasing, functional, nested_tensors, sparse_tensors
from pushforward.recording.dispatch import (
    EntryState,
    bare,
    below_torch_function,
    needs_tracer,
    uncover,
)
from pushforward.recording.metadata import METADATA, VALUE_READERS
from pushforward.recording.tracer import (
    Tracer,
    current,
    make_tracer,
    make_view_tracer,
    map_tensors,
)
from pushforward.rules import bridge
from pushforward.rules.registry import Rule, is_nondifferentiable, lookup, maps_of

aten = torch.ops.aten

_levels = itertools.count(1)

Part = tuple[Any, AbstractLinearMap, torch.dtype]  # payload of an input, its map, its dtype


# An argument with a derivative: its position or name, its place if that is a list, its payload, its primal.
Active = tuple[int | str, int | None, Any, Tensor]


@dataclasses.dataclass(slots=True)
class Operation:
    """One operator applied to primals, with what its maps are made of."""

    rule: Rule | None
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    active: list[Active]

    @property
    def outs(self) -> Sequence[Any]:
        """The outputs."""
        return self.out if isinstance(self.out, (tuple, list)) else (self.out,)

    def parts(self, name: str) -> list[list[Part]]:
        """Make the maps, by rule or bridge: for each output (payload, map, dtype) of the inputs that it depends on."""
        outs = self.outs
        parts: list[list[Part]] = [[] for _ in outs]
        for (_, _, payload, primal), maps in zip(self.active, self._maps(name), strict=True):
            for i, linear_map in enumerate(maps if isinstance(maps, (tuple, list)) else (maps,)):
                if linear_map is not None:
                    fitted = _fitted(linear_map, self.op, primal, outs[i])
                    parts[i].append((payload, fitted, primal.dtype))
        return parts

    def _maps(self, name: str) -> Sequence[Any]:
        rule, active = self.rule, self.active
        if rule is None or any(rule.partial(key) is None for key, _, _, _ in active):
            if not isinstance(self.op, torch._ops.OpOverload):
                raise MissingRuleError(
                    f"{name}: the rule of {self.op} lacks an argument that is differentiated: "
                    f"got {[key for key, _, _, _ in active]}, expected only "
                    f"{sorted(map(str, rule.partials)) if rule else []}. Give it a partial for every argument."
                )
            positions = [(key, place) for key, place, _, _ in active]
            return bridge.maps(name, self.op, self.args, self.kwargs, self.out, positions)
        computed: dict[int | str, Any] = {}
        found = []
        for key, place, _, primal in active:
            if key not in computed:
                computed[key] = maps_of(rule, key, self.out, self.args, self.kwargs, primal)
            found.append(computed[key] if place is None else computed[key][place])
        return found


class Recorder(abc.ABC):
    """Records one call of one function. ``combine`` is all that the pushing and taping recorders differ in."""

    def __init__(self, randomness: str = "error", name: str = "jacfwd") -> None:
        """Remember the dispatcher as the caller has it."""
        self.level = next(_levels)
        self.name = name
        self.entry = EntryState()
        self.randomness = randomness
        self.uses_autograd = False  # requires_grad_() was called on a tracer inside the function
        # Else rules need the caller's grad mode set, or wrappers of the caller's levels taken off.
        self.has_fast_path = self.entry.grad_mode and self.entry.functorch_level is None
        self.is_pushing = False  # whether payloads are blocks
        self.defers = False  # whether maps may be made later than their operator is applied
        self.is_lifted = (
            True  # else a recording below it waits for the first call off the fast path
        )
        self.depth = 0  # calls being taken apart
        self.given: Any = ()  # the arguments of the innermost one
        self.keeps_constants = (
            False  # C++ code may write a traced value into a product of constants
        )
        self.cut = False  # under no_grad inside the function
        self._captured: aliasing.Captured | None = None
        self.has_written = False  # whether a finished recording wrote to tensors of the caller's
        self.roots: list[tuple[Tensor, Tracer]] = []  # the caller's inputs and their tracers
        self.puts_off_writes = (
            False  # until write_back() is called, as maps may hold the old values
        )
        self._unwritten: list[
            Callable[[], Any]
        ] = []  # writes that the caller's tensors have still to see

    @abc.abstractmethod
    def combine(self, parts: Sequence[Part], out: Tensor) -> Any:
        """Return the payload of an output: the sum of the maps of the inputs' payloads."""

    def lift(self) -> None:
        """Let the recording below this one begin."""
        raise NotImplementedError

    def note(self, tensor: Tensor) -> None:
        """Learn of one such tensor."""
        del tensor

    def note_arguments(self, arguments: Any) -> None:
        """Learn what tensors the maps of an operator may hold; by default nothing outlives the call."""
        del arguments

    # ----- Tracers -----

    def trace(self, primal: Tensor, payload: Any) -> Tracer:
        """Return a tracer of an input; writes to it reach ``primal`` when the recording ends."""
        tracer = make_tracer(self.own_copy(primal), payload, self)
        self.roots.append((primal, tracer))
        return tracer

    def own_copy(self, tensor: Tensor) -> Tensor:
        """Return what to trace for a caller's tensor; by default itself, as nothing outlives the call."""
        return tensor

    def constant(self, tensor: Tensor) -> Tracer:
        """Return a tracer without derivative, so that operators on ``tensor`` run in the caller's state."""
        return make_tracer(tensor, None, self)

    def refresh(self, tracer: Tracer) -> None:
        """Bring a view up to date with what was written to its base."""
        aliasing.refresh(self, tracer)

    def is_mine(self, value: Any) -> TypeGuard[Tracer]:
        """Tell whether ``value`` is a tracer of this very recording."""
        return isinstance(value, Tracer) and value._recorder is self

    def unwrap(self, tree: Any) -> Any:
        """Replace this recording's tracers by their primals."""
        return map_tensors(tree, lambda t: current(t) if self.is_mine(t) else t)

    def _unwrap_arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Unwrap; for the flat arguments of most operators, in a third of the time."""
        primals = []
        for value in args:
            if type(value) is Tracer and value._recorder is self:
                primals.append(value._primal if value._alias is None else current(value))
            elif isinstance(value, (tuple, list, dict)):
                primals.append(self.unwrap(value))
            else:
                primals.append(value)
        return tuple(primals)

    def read(self, output: Any) -> tuple[Any, Any]:
        """Return the primal and payload of what the function returned."""
        traced = self._adopted(self._uncover(output)) if isinstance(output, Tensor) else output
        if self.is_mine(traced):
            primal = current(traced)
            return primal, traced._payload
        return output, None

    # ----- Calls -----

    def on_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take apart a call that came through ``__torch_function__``."""
        if self.entry.functorch_level is not None:
            args, kwargs = map_tensors((args, kwargs), self._uncover)
        reader = METADATA.get(func)
        if reader is not None:
            return func(*self.unwrap(args), **self.unwrap(kwargs))
        if func in VALUE_READERS:
            return func(*self.unwrap(args), **self.unwrap(kwargs))
        if not self.is_lifted:
            self.lift()
        special = functional.SPECIAL.get(func)
        if special is not None:
            result = special(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        if not self._records():
            return self._without_derivative(func, args, kwargs)
        if self.entry.is_inside_functorch():
            # torch.func must see the call first: to it a tracer is an ordinary tensor of a lower level.
            args, kwargs = map_tensors((args, kwargs), self._adopted)
            with below_torch_function():
                return func(*args, **kwargs)
        own = lookup(func)
        if own is not None:
            return self.apply(own, func, args, kwargs)
        args, kwargs = functional.adopt_written(self, func, args, kwargs)
        guard = below_torch_function if self.uses_autograd else bare
        args, kwargs = map_tensors((args, kwargs), self._visible)
        kept = self.keeps_constants
        if getattr(func, "__name__", "") in functional.WRITE_TEMPORARIES:
            self.keeps_constants = True
            args, kwargs = map_tensors(
                (args, kwargs), lambda t: t if self.is_mine(t) else self.constant(t)
            )
        outer, self.given = self.given, (args, kwargs)
        self.depth += 1
        try:
            with guard():
                result = func(*args, **kwargs)
        finally:
            self.depth -= 1
            self.given = outer
            self.keeps_constants = kept
        return map_tensors(result, self._hide_constant)

    def _records(self) -> bool:
        """Tell whether derivatives are on: ``no_grad`` and ``inference_mode`` inside the function cut them."""
        return torch.is_grad_enabled() and (
            self.entry.is_inference or not torch.is_inference_mode_enabled()
        )

    def _adopted(self, tensor: Tensor) -> Tensor:
        """Return the tracer that stands for a plain tensor which was written to, else the tensor."""
        if self._captured is None:
            return tensor
        found: Tensor = self._captured.lookup(tensor)
        return found

    def _uncover(self, tensor: Tensor) -> Tensor:
        if self.entry.functorch_level is None or self.is_mine(tensor):
            return tensor
        inner = uncover(tensor, self.entry)
        return inner if self.is_mine(inner) else tensor

    def _visible(self, tensor: Tensor) -> Tensor:
        if self.is_mine(tensor):
            return tensor
        adopted = self._adopted(tensor)
        if adopted is not tensor:
            return adopted
        if isinstance(tensor, Tracer) or needs_tracer(tensor):
            return self.constant(tensor)
        return tensor

    def _hide_constant(self, tensor: Tensor) -> Tensor:
        if (
            self.is_mine(tensor)
            and tensor._payload is None
            and tensor._alias is None
            and not tensor._writes
            and not tensor._is_buffer
            and not self._is_root(tensor)
        ):
            return tensor._primal
        return tensor

    def _is_root(self, tracer: Tracer) -> bool:
        return any(root is tracer for _, root in self.roots) or (
            self._captured is not None and self._captured.owns(tracer)
        )

    def _without_derivative(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call under ``no_grad``: values as ever, derivative cut, aliases still followed."""
        args, kwargs = map_tensors((args, kwargs), self._visible)
        was_cut, outer = self.cut, self.given
        self.given = (args, kwargs)
        self.depth += 1
        self.cut = True
        try:
            with bare():
                result = func(*args, **kwargs)
        finally:
            self.depth -= 1
            self.cut, self.given = was_cut, outer
        return map_tensors(result, self._hide_constant)

    # ----- Primitives -----

    def on_primitive(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply one ATen operator that came through ``__torch_dispatch__``."""
        if not self.is_lifted:
            self.lift()
        if self.entry.functorch_level is not None:
            args, kwargs = map_tensors((args, kwargs), self._uncover)
        if op is aten._local_scalar_dense.default and not self.depth:
            raise UnsupportedError(
                f"{self.name}: a value that is being differentiated leaves PyTorch unseen (torch.tensor([...]) of "
                "it, or an iteration that reads it): expected tensors to be put together by torch.stack or "
                "torch.cat. Use those, or .item() where a constant is meant."
            )
        if functional.is_to_meta(op, args, kwargs):
            with self.entry.restored():
                return op(*self.unwrap(args), **self.unwrap(kwargs))
        if op is aten._has_same_storage_numel.default and not self.is_mine(args[0]):
            return False  # a plain tangent of a tracer: torch.func copies it into a buffer, which is a tracer
        if op in sparse_tensors.PRIMITIVES:
            return sparse_tensors.PRIMITIVES[op](self, args, kwargs)
        if op.overloadpacket in functional.FACTORIES:
            return self._buffer(op, args, kwargs)
        if functional.writes_statistics(op, args):
            return functional.train_batch_norm(self, args)
        if op._schema.is_mutable:
            return functional.mutate(self, op, args, kwargs)
        if op is aten.detach.default:
            if self.uses_autograd or nested_tensors.is_reading_values():
                # Autograd's own, of an output that it saves: no cut of ours.
                return self.on_primitive(aten.alias.default, args, kwargs)
            return functional.cut_alias(self, args[0])
        if op is aten._nested_view_from_jagged.default:
            return nested_tensors.from_jagged(self, args, kwargs)
        if lookup(op) is None and not is_nondifferentiable(op):
            if op.namespace == "prims":
                with bare():
                    return op.impl_aten(*args, **kwargs)
            if op.has_kernel_for_dispatch_key(
                torch._C.DispatchKey.CompositeImplicitAutograd
            ) or bridge.is_composite(op):
                with bare():
                    result = op.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        with self.entry.restored(self.cut):
            return self.apply(lookup(op), op, args, kwargs)

    def _buffer(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tracer:
        """Make a new tensor like a tracer. It is a tracer too: C++ code may write to it out of our sight."""
        with self.entry.restored():
            tracer = self.constant(op(*self.unwrap(args), **self.unwrap(kwargs)))
        tracer._is_buffer = True
        return tracer

    def apply(
        self,
        rule: Rule | None,
        op: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Evaluate ``op`` on the primals and give its outputs their derivatives, by rule or bridge."""
        if not self.is_lifted:
            self.lift()
        traits = functional.traits(op)
        if self.randomness == "error" and traits.is_random:
            self._refuse_random(op, args, kwargs)
        primal_args = self._unwrap_arguments(args)
        primal_kwargs = self.unwrap(kwargs) if kwargs else kwargs
        out = op(*primal_args, **primal_kwargs)
        if is_nondifferentiable(op):
            # Under an outer vmap a mask made in C++ is batched too: what reads it next must reach us.
            wrap = self.depth and self.entry.functorch_level is not None
            return map_tensors(out, self._visible) if wrap else out
        outs = out if isinstance(out, (tuple, list)) else (out,)
        active = [] if self.cut else self._active(args, kwargs)
        payloads: list[Any] = [None] * len(outs)
        if active and any(map(_is_differentiable, outs)):
            operation = Operation(rule, op, primal_args, primal_kwargs, out, active)
            payloads = self.payloads_of(operation, args, kwargs)
        views = traits.views
        if type(out) is Tensor and 0 not in views:
            return self._wrap(out, payloads[0], op, args, primal_args, primal_kwargs, 0, None)
        wrapped = [
            self._wrap(o, p, op, args, primal_args, primal_kwargs, i, rule if i in views else None)
            if isinstance(o, Tensor)
            else o
            for i, (o, p) in enumerate(zip(outs, payloads, strict=True))
        ]
        if not isinstance(out, (tuple, list)):
            return wrapped[0]
        return type(out)(*wrapped) if hasattr(out, "_fields") else type(out)(wrapped)

    def _active(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Active]:
        """Return every tracer with a derivative among the arguments."""
        found: list[Active] = []
        given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for key, value in given:
            if isinstance(value, Tracer):
                if value._recorder is self and self._payload(value) is not None:
                    found.append((key, None, value._payload, value._primal))
            elif isinstance(value, (tuple, list)):
                for place, item in enumerate(value):
                    if self.is_mine(item) and self._payload(item) is not None:
                        found.append((key, place, item._payload, item._primal))
        return found

    def _payload(self, tracer: Tracer) -> Any:
        if tracer._alias is not None:
            self.refresh(tracer)
        return tracer._payload

    def payloads_of(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Return the payload of every output, None for one without derivative; ``args`` are those with tracers."""
        del args, kwargs
        self.note_arguments((operation.args, operation.kwargs))
        return [
            self.combine(parts, out) if parts and _is_differentiable(out) else None
            for parts, out in zip(operation.parts(self.name), operation.outs, strict=True)
        ]

    def _wrap(
        self,
        out: Tensor,
        payload: Any,
        op: Any,
        args: tuple[Any, ...],
        primal_args: tuple[Any, ...],
        primal_kwargs: dict[str, Any],
        index: int,
        view_rule: Rule | None,
    ) -> Tensor:
        viewed = args[0] if args and self.is_mine(args[0]) else None
        is_view = view_rule is not None and viewed is not None
        if payload is None and not is_view and not self.keeps_constants and not needs_tracer(out):
            return out
        if is_view and viewed is not None:
            tracer = make_view_tracer(out, payload, self, viewed)
            aliasing.make_view(self, tracer, viewed, op, primal_args, primal_kwargs, index)
            return tracer
        return make_tracer(out, payload, self)

    def _refuse_random(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise, unless the operator draws nothing because its dropout probability is 0."""
        names = [argument.name for argument in op._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        if "dropout_p" in names and not given.get("dropout_p", 0.0):
            return
        self.refuse_random(str(op))

    def refuse_random(self, operation: str) -> None:
        """Raise as ``vmap`` does at a random operator."""
        raise RandomnessError(
            f"{self.name}: vmap: called random operation {operation} while in randomness error mode. Use "
            "randomness='same' or randomness='different', or draw the numbers outside the function."
        )

    @property
    def captured(self) -> aliasing.Captured:
        """The plain tensors that the function wrote to."""
        if self._captured is None:
            self._captured = aliasing.Captured(self)
        return self._captured

    @property
    def has_captured(self) -> bool:
        """Tell whether the function wrote a traced value into a plain tensor."""
        return self._captured is not None and self._captured.is_used

    def make_mode(self) -> TorchFunctionMode:
        """Return the mode that watches operators on captured tensors."""
        return CapturedMode(self)

    def finish(self) -> None:
        """Hand the writes to the caller's tensors over to them."""
        captured, self._captured = self._captured, None
        roots, self.roots = self.roots, []  # a cycle otherwise, through the tracers' recorder
        for tensor, tracer in roots:
            if tracer._writes:
                self._unwritten.append(functools.partial(tensor.copy_, tracer._primal))
        if captured is not None:
            captured.leave()
            self._unwritten.append(captured.write_back)
        self.has_written = bool(self._unwritten)
        if not self.puts_off_writes:
            self.write_back()

    def write_back(self) -> None:
        """Carry out the writes to the caller's tensors."""
        unwritten, self._unwritten = self._unwritten, []
        for write in unwritten:
            write()


class CapturedMode(TorchFunctionMode):
    """Shows a recorder the operators on plain tensors into which a traced value was written."""

    def __init__(self, recorder: Recorder) -> None:
        """Serve ``recorder``."""
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace adopted tensors by their tracers."""
        kwargs = kwargs or {}
        if not self._recorder.entry.busy:
            args, kwargs = map_tensors((args, kwargs), self._recorder.captured.lookup)
        return func(*args, **kwargs)


def _fitted(linear_map: AbstractLinearMap, op: Any, x: Tensor, out: Tensor) -> AbstractLinearMap:
    """Check the map's shapes. Elementwise ones broadcast, also where their rule did not think of it."""
    out_shape = tuple(out.shape)
    coef = linear_map.coef if isinstance(linear_map, Scale) else None
    if isinstance(coef, Tensor) and coef.layout is not torch.strided:
        raise UnsupportedError(
            f"{op}: a traced tensor meets a constant of layout {coef.layout}: expected a dense one, as elementwise "
            "operators of sparse constants are not followed. Use .to_dense(), or torch.sparse.mm."
        )
    if linear_map.out_shape != out_shape and isinstance(linear_map, (Scale, Mask)):
        linear_map = dataclasses.replace(linear_map, out_shape=out_shape)
    if linear_map.out_shape != out_shape or linear_map.in_shape != tuple(x.shape):
        raise RuleError(
            f"the rule of {op} gave {linear_map!r}: expected a map {out_shape} ← {tuple(x.shape)}. "
            "Correct the rule (docs/how-to/add-a-rule.md)."
        )
    return linear_map


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
