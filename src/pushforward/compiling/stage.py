"""Stage: a function of tensors as one compiled graph. Autograd may differentiate it: its pullback is another stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling import graphs
from pushforward.compiling.backends import MAKE, Compute, dynamic
from pushforward.compiling.garbage import garbage_kept
from pushforward.compiling.tracing import traced
from pushforward.errors import UnsupportedError, message
from pushforward.tape.private_compiler import compile_lock
from pushforward.trees import is_differentiable

Function = Callable[..., Sequence[Tensor]]


class Captures:
    """The captured tensors that a function meets: inputs of its graph, and of the graphs of its pullbacks."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Begin with what is there now."""
        self.tensors = list(tensors)
        self.look: Callable[[], list[Tensor] | None] | None = None

    def renew(self) -> None:
        """Look what stands in their places; raise if the function would do something else by now."""
        found = self.tensors if self.look is None else self.look()
        if found is None:
            raise UnsupportedError(
                message(
                    "compile",
                    "a first pass back through a result",
                    "a function that has captured other values since",
                    "the function as it was when it was called",
                    "Pass back once before they change; later passes are compiled by then.",
                )
            )
        self.tensors = found


class Stage:
    """A compiled graph.

    Its inputs are those of ``func``, and then the captured tensors that it uses.
    """

    def __init__(
        self,
        func: Function,
        inputs: Sequence[Tensor],
        captures: Captures,
        backend: str,
        start: int | None = None,
        is_dynamic: bool = False,
    ) -> None:
        """Trace and compile. From input ``start`` on, inputs stand for the captured tensors, one by one."""
        with compile_lock(), garbage_kept():
            self._make(func, inputs, captures, backend, start, is_dynamic)

    def _make(
        self,
        func: Function,
        inputs: Sequence[Tensor],
        captures: Captures,
        backend: str,
        start: int | None,
        is_dynamic: bool,
    ) -> None:
        self.func, self.backend, self.is_pullback = func, backend, start is not None
        written = [t for t in captures.tensors if not t.requires_grad]
        self.graph = traced(func, inputs, written, is_dynamic=is_dynamic)
        self.fits: Callable[[Sequence[Tensor]], bool] | None = self.graph.meta.get("fits")
        graphs.prepared(self.graph)
        self.captures = captures
        if start is None:
            captures.tensors = graphs.used(self.graph, captures.tensors)
        captured = captures.tensors
        graphs.make_inputs(self.graph, captured, start)
        self.num_inputs = len(inputs) if start is None else start
        self.is_random = graphs.is_random(self.graph)
        self.writes = graphs.writes_to_inputs(self.graph)
        given = [*inputs, *(captured if start is None else ())]
        # A compiler knows no numbers that are negated or conjugated when they are read.
        places = [i for i, x in enumerate(given) if backend != "eager" and not _is_as_it_lies(x)]
        with torch.no_grad():
            if is_dynamic:
                compute = dynamic(self.graph, captured, backend)
            else:
                plain = map(_resolved, given) if places else given
                compute = MAKE[backend](self.graph, [x.detach() for x in plain])
        self.compute = _resolving(compute, places) if places else compute
        self._pullbacks: dict[Any, tuple[Stage, list[int]]] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs, which autograd follows if it follows an input."""
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            followed: Sequence[Tensor] = _Followed.apply(self, *tensors)  # type: ignore[no-untyped-call]
            return followed
        return self.compute(tensors)

    def pulled(
        self, tensors: Sequence[Tensor], cotangents: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the cotangents of the ``wanted`` inputs, None where no output depends on one."""
        cotangents = [_resolved(c) for c in cotangents]
        looked = [*(tensors if self.fits is not None else ()), *cotangents]  # else of fixed shapes
        key = (tuple(wanted), *[(x.shape, x.stride(), x.dtype) for x in looked])
        if key not in self._pullbacks:
            self._pullbacks[key] = self._pullback(tensors, cotangents, wanted)
        stage, places = self._pullbacks[key]
        results: list[Tensor | None] = [None] * len(tensors)
        outputs = stage([*tensors, *cotangents])
        for place, result in zip(places, outputs, strict=True):
            results[place] = result
        return results

    def _pullback(
        self, tensors: Sequence[Tensor], cotangents: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Stage, list[int]]:
        places: list[int] = []
        count, num_all = self.num_inputs, len(tensors)

        def pull(*given: Tensor) -> list[Tensor]:
            is_followed = torch.is_grad_enabled()
            captured = self.captures.tensors
            starts = [*given[:count], *captured, *given[count + len(captured) : num_all]]
            with torch.enable_grad():
                for i, x in enumerate(starts):
                    if wanted[i] and not x.requires_grad:
                        starts[i] = x.detach().requires_grad_()
                outputs = self._outputs(starts)
                pairs = [
                    (y, c) for y, c in zip(outputs, given[num_all:], strict=True) if y.requires_grad
                ]
            places[:] = [i for i, is_wanted in enumerate(wanted) if is_wanted]
            if not pairs:
                places.clear()
                return []
            with _apart(captured):
                found = torch.autograd.grad(
                    [y for y, _ in pairs],
                    [starts[i] for i in places],
                    [c for _, c in pairs],
                    retain_graph=True,  # that of captured tensors is the caller's
                    create_graph=is_followed,
                    allow_unused=True,
                )
            places[:] = [i for i, g in zip(places, found, strict=True) if g is not None]
            return [g for g in found if g is not None]

        self.captures.renew()
        given = [*tensors, *cotangents]
        return Stage(pull, given, self.captures, self.backend, count), places

    def _outputs(self, starts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs of the function itself, which knows the captured tensors."""
        return self.func(*(starts if self.is_pullback else starts[: self.num_inputs]))


def _is_as_it_lies(tensor: Tensor) -> bool:
    """Tell whether the elements are those in memory: not negated or conjugated when they are read."""
    return not (tensor.is_neg() or tensor.is_conj())


def _resolved(tensor: Tensor) -> Tensor:
    """Return a tensor whose elements are those in memory."""
    return tensor.resolve_conj().resolve_neg()


def _resolving(compute: Compute, places: Sequence[int]) -> Compute:
    """Return what takes inputs at these places as they are read."""

    def computed(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        given = list(tensors)
        for place in places:
            given[place] = _resolved(given[place])
        return compute(given)

    return computed


class _Followed(torch.autograd.Function):
    """A stage that autograd follows. Its pullback computes all anew, from the inputs."""

    @staticmethod
    def forward(ctx: Any, stage: Stage, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stage = stage
        ctx.state = _random_state(tensors) if stage.is_random else None
        ctx.save_for_backward(*tensors)
        outputs = tuple(stage.compute(tensors))
        ctx.mark_non_differentiable(*[y for y in outputs if not is_differentiable(y)])
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with _drawing_from(ctx.state):
            pulled = ctx.stage.pulled(ctx.saved_tensors, cotangents, ctx.needs_input_grad[1:])
        return (None, *pulled)


@contextlib.contextmanager
def _apart(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let no gradient go from one of these tensors to others that it was made of: each is an input by itself."""
    hooks: list[Any] = []
    try:
        hooks.extend(
            x.grad_fn.register_prehook(_without(x.output_nr)) for x in tensors if x.grad_fn
        )
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without(number: int) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    return lambda cotangents: tuple(None if i == number else c for i, c in enumerate(cotangents))


def _random_state(tensors: Sequence[Tensor]) -> Any:
    is_cuda = any(t.is_cuda for t in tensors)
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if is_cuda else None


@contextlib.contextmanager
def _drawing_from(state: Any) -> Iterator[None]:
    """Draw the same random numbers as before, and leave the generators as they are."""
    if state is None:
        yield
        return
    host, devices = state
    with torch.random.fork_rng(range(len(devices or ()))):
        torch.set_rng_state(host)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
        yield
