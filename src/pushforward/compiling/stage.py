"""Stage: a function of tensors as one compiled graph. Autograd may differentiate it: its pullback is another stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling import graphs
from pushforward.compiling.backends import MAKE, dynamic
from pushforward.compiling.garbage import garbage_kept
from pushforward.compiling.tracing import traced

Function = Callable[..., Sequence[Tensor]]


class Stage:
    """A compiled graph.

    Its inputs are those of ``func``, and then the captured tensors that it uses.
    """

    def __init__(
        self,
        func: Function,
        inputs: Sequence[Tensor],
        captured: Sequence[Tensor],
        backend: str,
        start: int | None = None,
        is_dynamic: bool = False,
    ) -> None:
        """Trace and compile. From input ``start`` on, inputs stand for the ``captured`` tensors, one by one."""
        with garbage_kept():
            self._make(func, inputs, captured, backend, start, is_dynamic)

    def _make(
        self,
        func: Function,
        inputs: Sequence[Tensor],
        captured: Sequence[Tensor],
        backend: str,
        start: int | None,
        is_dynamic: bool,
    ) -> None:
        self.func, self.backend, self.is_pullback = func, backend, start is not None
        written = [t for t in captured if not t.requires_grad]
        self.graph = traced(func, inputs, written, is_dynamic=is_dynamic)
        self.fits: Callable[[Sequence[Tensor]], bool] | None = self.graph.meta.get("fits")
        graphs.prepared(self.graph)
        self.captured = list(captured) if start is not None else graphs.used(self.graph, captured)
        graphs.make_inputs(self.graph, self.captured, start)
        self.num_inputs = len(inputs) if start is None else start
        self.is_random = graphs.is_random(self.graph)
        self.writes = graphs.writes_to_inputs(self.graph)
        given = [*inputs, *(self.captured if start is None else ())]
        with torch.no_grad():
            if is_dynamic:
                self.compute = dynamic(self.graph, self.captured, backend)
            else:
                self.compute = MAKE[backend](self.graph, [x.detach() for x in given])
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
            starts = (
                list(given[:count])
                + self.captured
                + list(given[count + len(self.captured) : num_all])
            )
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
            found = torch.autograd.grad(
                [y for y, _ in pairs],
                [starts[i] for i in places],
                [c for _, c in pairs],
                create_graph=is_followed,
                allow_unused=True,
            )
            places[:] = [i for i, g in zip(places, found, strict=True) if g is not None]
            return [g for g in found if g is not None]

        stage = Stage(pull, [*tensors, *cotangents], self.captured, self.backend, count)
        return stage, places

    def _outputs(self, starts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs of the function itself, which knows the captured tensors."""
        return self.func(*(starts if self.is_pullback else starts[: self.num_inputs]))


class _Followed(torch.autograd.Function):
    """A stage that autograd follows. Its pullback computes all anew, from the inputs."""

    @staticmethod
    def forward(ctx: Any, stage: Stage, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stage = stage
        ctx.state = _random_state(tensors) if stage.is_random else None
        ctx.save_for_backward(*tensors)
        outputs = tuple(stage.compute(tensors))
        ctx.mark_non_differentiable(
            *[y for y in outputs if not (y.is_floating_point() or y.is_complex())]
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with _drawing_from(ctx.state):
            pulled = ctx.stage.pulled(ctx.saved_tensors, cotangents, ctx.needs_input_grad[1:])
        return (None, *pulled)


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
