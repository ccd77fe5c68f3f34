"""compile: a transform and the function in it as one graph for each signature of the arguments."""

from __future__ import annotations

import collections
import dataclasses
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.compiling.backends import BACKENDS, Backend, Compute
from pushforward.compiling.captured import Captured, Guard
from pushforward.compiling.explained import GraphExplanation, fastest, steps_of
from pushforward.compiling.repeated import Arranged, Recognized, arranger, recognizer
from pushforward.compiling.signature import ForeignError, replaced, signature, without_sizes
from pushforward.compiling.stage import Captures, Stage
from pushforward.errors import ArgumentTypeError, ArgumentValueError, message
from pushforward.linear.differentiated import has_duals
from pushforward.planning.plans import PLANS
from pushforward.tape.depth import thread
from pushforward.tape.private_compiler import compile_lock
from pushforward.tape.private_functorch import functorch_level
from pushforward.tape.private_torch import (
    is_autocasting,
    left_alone_by_dynamo,
    num_dispatch_modes,
    num_function_modes,
)
from pushforward.transforms.arguments import P, R, named_after
from pushforward.transforms.unbuilt import Unbuilt, put_off
from pushforward.trees import flatten

NAME = "compile"
MAX_SIGNATURES = 64  # of the arguments, of one function
MAX_STATES = 8  # of what it has captured, for each

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))  # symbols are none of them


@dataclasses.dataclass(slots=True)
class Program:
    """The graph for one signature of the arguments, and one state of what the function has captured."""

    stage: Stage
    guard: Guard
    arranged: Arranged  # of outputs, the result
    num_outputs: int  # of the result
    known: list[Tensor]  # index tensors, which are the last outputs, as they were
    seconds: float  # that it took

    def holds(self, outputs: Sequence[Tensor]) -> bool:
        """Tell whether the index tensors are those that sparse results were laid out for."""
        met = outputs[self.num_outputs :]
        return all(torch.equal(new, old) for new, old in zip(met, self.known, strict=True))


class Compiled:
    """A function that runs as graphs; see `compile`."""

    def __init__(
        self, func: Callable[..., Any], backend: Backend, is_dynamic: bool = False
    ) -> None:
        """Compile nothing yet."""
        self.func, self.backend, self.is_dynamic = func, backend, is_dynamic
        self._programs: dict[Hashable, list[Program]] = {}
        self._dynamic: dict[Hashable, list[Program]] = {}  # by signatures without sizes
        self._last: tuple[Recognized, Program, Compute] | None = None
        self._times: collections.Counter[Hashable] = collections.Counter()  # compiled, by tensors
        self._is_warned = False

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return ``func(*args, **kwargs)``."""
        if _is_within():
            return self.func(*args, **kwargs)
        if self._last is not None:  # a call like the one before is the usual one
            recognized, program, compute = self._last
            tensors = recognized(args, kwargs)
            if tensors is not None and (captured := program.guard()) is not None:
                return program.arranged(compute(tensors + captured))
        return self._searched(args, kwargs)

    def _searched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors: list[Tensor] = []
        try:
            program, captured = self._found(args, kwargs, tensors)
        except ForeignError:
            return self.func(*args, **kwargs)
        given, stage = tensors + captured, program.stage
        is_followed = any(t.requires_grad for t in given)
        if stage.writes and (self.backend != "eager" or (is_followed and torch.is_grad_enabled())):
            return self.func(*args, **kwargs)  # what was overwritten cannot be computed anew
        outputs = stage(given)
        if program.known and not program.holds(outputs):
            for programs in self._programs.values():
                programs[:] = [p for p in programs if p is not program]
            return self._searched(args, kwargs)
        if not (stage.writes or program.known) and (found := recognizer(args, kwargs)) is not None:
            self._last = found, program, stage if is_followed else stage.compute
        return program.arranged(outputs)

    def _found(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> tuple[Program, list[Tensor]]:
        """Return the program for a call, and captured tensors as they are now; collect those of the arguments."""
        key: Hashable = (
            torch.get_default_dtype(),
            *[signature(a, tensors) for a in args],
            signature(kwargs, tensors) if kwargs else None,
        )
        found = self._known(key)
        if found is not None:
            return found
        with compile_lock():
            found = self._known(key)  # another thread may have been first
            if found is not None:
                return found
            found = self._fitting(key, tensors)
            if found is None:
                program = self._made(tensors, args, kwargs)
                found = program, program.stage.captures.tensors
            self._keep(key, found[0], tensors)
            return found

    def _known(self, key: Hashable) -> tuple[Program, list[Tensor]] | None:
        for program in self._programs.get(key, ()):
            captured = program.guard()
            if captured is not None:
                return program, captured
        return None

    def explained(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GraphExplanation:
        """Return what a call with these arguments runs."""
        tensors: list[Tensor] = []
        try:
            program, captured = self._found(args, kwargs, tensors)
        except ForeignError:
            raise ArgumentTypeError(
                message(
                    "explain",
                    "an argument",
                    "a tensor of a class of its own",
                    "plain tensors",
                    "Such calls are not compiled.",
                )
            ) from None
        given = [*tensors, *captured]
        steps = steps_of(program.stage, given)
        with torch.no_grad():
            call = fastest(lambda: program.stage.compute([t.detach().clone() for t in given]))
        return GraphExplanation(
            steps, self.backend, len(captured), program.seconds, call, fastest(program.guard)
        )

    def programs(self) -> list[Program]:
        """Return the graphs that there are."""
        return [p for programs in self._programs.values() for p in programs]

    def _fitting(self, key: Hashable, tensors: list[Tensor]) -> tuple[Program, list[Tensor]] | None:
        """Return a program for other sizes that is right for these, too, and captured tensors as they are now."""
        for program in self._dynamic.get(without_sizes(key), ()):
            fits = program.stage.fits
            if fits is not None and fits(tensors):
                captured = program.guard()
                if captured is not None:
                    return program, captured
        return None

    def _keep(self, key: Hashable, program: Program, tensors: list[Tensor]) -> None:
        if key not in self._programs and len(self._programs) >= MAX_SIGNATURES:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = [program, *self._programs.get(key, [])[: MAX_STATES - 1]]
        if program.stage.fits is not None:
            alike = self._dynamic.setdefault(without_sizes(key), [])
            if program in alike:
                return
            alike[:] = [program, *alike[: MAX_STATES - 1]]
        looks = tuple(signature(t, []) for t in tensors)
        self._times[looks] += 1
        if self._times[looks] > MAX_STATES and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"{NAME}: {getattr(self.func, '__name__', 'the function')} was compiled {MAX_STATES} times for "
                "arguments of the same shapes, as numbers changed that it was given or has captured. Pass what "
                "changes as tensors: torch.tensor(0.1) in place of 0.1.",
                stacklevel=5,
            )

    def _made(
        self, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Program:
        start = time.perf_counter()
        found: list[Any] = []

        def function(*given: Tensor) -> list[Tensor]:
            rest = iter(given)
            new_args = [replaced(a, rest) for a in args]
            with put_off() as checked:
                result = self.func(*new_args, **replaced(kwargs, rest))
            leaves, spec = flatten(result)
            builds = {i: y.build for i, y in enumerate(leaves) if isinstance(y, Unbuilt)}
            leaves = [y.entries if isinstance(y, Unbuilt) else y for y in leaves]
            found[:] = [leaves, spec, builds, checked.known]
            return [*(y for y in leaves if isinstance(y, Tensor)), *checked.indices]

        captured = Captured(self.func)
        given = [t for _, t in captured.tensors]
        stage = self._dynamic_stage(function, tensors, given, found) if self.is_dynamic else None
        if stage is None:
            stage = Stage(function, tensors, Captures(given), self.backend)
        leaves, spec, builds, known = found
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arranged = arranger(others, spec, {i: builds.get(i) for i in places})
        guard = captured.without_changed().guard(stage.captures.tensors)
        stage.captures.look = guard
        seconds = time.perf_counter() - start
        return Program(stage, guard, arranged, len(places), known, seconds)

    def _dynamic_stage(
        self,
        function: Callable[..., list[Tensor]],
        tensors: list[Tensor],
        captured: list[Tensor],
        found: list[Any],
    ) -> Stage | None:
        """Return a stage whose sizes are symbols; None where a step needs numbers, whatever it says of that."""
        try:
            with PLANS.forgetting():
                stage = Stage(function, tensors, Captures(captured), self.backend, is_dynamic=True)
        except Exception:
            return None
        leaves, _, builds, known = found
        is_whole = all(isinstance(y, (Tensor, *_CONSTANTS)) for y in leaves)
        return stage if is_whole and not builds and not known else None


def _is_within() -> bool:
    """Tell whether this is a part of something that wants to see the function itself."""
    return bool(
        thread.depth
        or functorch_level() is not None
        or num_function_modes()
        or num_dispatch_modes()
        or has_duals()
        or is_autocasting()
    )


@left_alone_by_dynamo
def compile(
    func: Callable[P, R], *, backend: Backend = "inductor", dynamic: bool = False
) -> Callable[P, R]:
    """Return ``func``, a transform of a function for example, as one graph for each signature of its arguments.

    The first call with arguments of new shapes, strides, dtypes or devices, or with other values that are no tensors,
    traces ``func`` and everything in it: the function that is differentiated, its tape and its derivatives. Later calls
    run the graph, and no Python of ``func``'s. The contract is that of ``jax.jit``, with fewer surprises:

    - Tensors that ``func`` has captured (by its closure, globals, defaults, attributes; parameters and buffers of
      modules) are inputs of the graph: written to in place, or replaced by others, they change the result.
    - Numbers among the arguments are a part of the graph: another number is another trace. Pass as tensors, of no axes
      for example, what changes from call to call; a warning says so after 8 traces for the same shapes.
    - Numbers, strings, flags such as ``module.training``, and functions that it has captured, also by classes and
      modules of Python, are compared at each call; if one changed, ``func`` is traced anew. What is reached only
      through C extensions, attributes of tensors, generators or names put together while it runs is not, nor flags and
      functions of PyTorch's own, items of lists with more than 64, or arrays of more than 4096 bytes.
    - What depends on the elements of a tensor, as a branch does, raises with its line.
    - Printing, counting and the like happen while tracing, once. Writes to tensors happen at each call; with
      ``'inductor'``, or where autograd follows, such a function runs as it is.
    - Random numbers are drawn anew at each call, as without ``compile``.
    - Autograd follows the result. A pass back computes it anew from the arguments, by a graph of its own.
    - Sparse results are put together behind the graph; another index tensor means another trace.
    - Any thread may call; one compiles at a time, of ours and of ``torch.compile``'s.
    - Under other transforms, ours and ``torch.func``'s, under autocast, modes, and for arguments that are sparse or of
      a subclass of tensors, ``func`` runs as it is. Compile the outermost: ``compile(vmap(jacfwd(f)))``.

    Args:
        func: Any function of tensors (any pytrees) and of values that hash. Best made once: compiled graphs belong to
            what this returns.
        backend: ``'inductor'`` fuses operators into loops of C++ or Triton, which takes seconds and needs a compiler.
            ``'eager'`` calls PyTorch's functions one after the other, without what is repeated or unused.
        dynamic: Whether sizes of arguments are symbols, so that one graph serves others: those for which every
            decision that a size took while tracing comes out the same, ours among them (which mode is cheaper, say).
            Others are traced anew. Where a step needs numbers, sparse results for example, there is a graph for each
            size as without. Calls take longer: half as long again with ``'inductor'``, twice as long with ``'eager'``.

    Returns:
        A function with ``func``'s arguments and results. At most 64 signatures are kept, of each at most 8 states of
        what was captured; those made first are forgotten first. `explain` shows the graph.

    Raises:
        TypeError: ``func`` cannot be called, or, when called, an argument neither is a tensor nor hashes.
        ValueError: ``backend`` is unknown.
        UnsupportedError: When called: a step of ``func`` depends on elements, or Inductor fails.

    Example:
        >>> from pushforward import jacfwd
        >>> jacobian = compile(jacfwd(torch.sin), backend="eager")
        >>> jacobian(torch.zeros(2))
        tensor([[1., 0.],
                [0., 1.]])

    References:
        Bradbury et al., JAX: composable transformations of Python+NumPy programs (2018), for the contract of ``jit``.
        Ansel et al., PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
        Compilation, ASPLOS (2024), for Inductor.
    """
    if not callable(func):
        raise ArgumentTypeError(
            message(
                NAME, "func", type(func).__name__, "a function", "Pass a transform of yours, say."
            )
        )
    if backend not in BACKENDS:
        raise ArgumentValueError(
            message(
                NAME, "backend", repr(backend), f"one of {BACKENDS}", "Leave it out for 'inductor'."
            )
        )
    compiled = Compiled(func, backend, dynamic)

    @left_alone_by_dynamo
    def run(*args: Any, **kwargs: Any) -> Any:
        return compiled.call(args, kwargs)

    wrapped = named_after(func, run)
    # Functions take attributes, which their types do not say.
    wrapped.compiled = compiled  # type: ignore[attr-defined]
    wrapped.explained = compiled.explained  # type: ignore[attr-defined]
    return wrapped
