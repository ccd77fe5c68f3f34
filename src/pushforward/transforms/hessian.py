"""hessian and hvp: second derivatives, forward over reverse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pushforward.planning.kernels import Replay, Rows, noted
from pushforward.recording.taping import TapingRecorder
from pushforward.recording.tracer import map_tensors
from pushforward.transforms.arguments import (
    Argnums,
    Selected,
    check_function,
    check_outputs,
    named_after,
    normalize_argnums,
)
from pushforward.transforms.grad import grad_and_value
from pushforward.transforms.jacfwd import pushed_columns
from pushforward.transforms.jacobian import jacobian
from pushforward.transforms.jacrev import arranged, jacrev, pulled_rows
from pushforward.transforms.jvp import check_primals, jvp
from pushforward.transforms.record import Tape
from pushforward.trees import flatten, unflatten

NAME = "hessian"


def hessian(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Return a function that computes the Hessian of ``func``, forward mode over reverse mode.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree).
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        has_aux: Whether ``func`` returns ``(output, aux)``.
        chunk_size: At most so many columns are carried at once through the gradient; None for all.

    Returns:
        A function with ``func``'s arguments. For output ``(*out)`` and argument ``(*in)`` it gives
        ``(*out, *in, *in)``; nested as ``jacfwd(jacrev(func, argnums), argnums)`` nests. With ``has_aux``,
        ``(hessian, aux)``.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty.

    Example:
        >>> hessian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 5 (second derivatives).
    """
    rows = jacrev(func, argnums, has_aux=has_aux)
    nested = jacobian(
        rows, argnums, mode="forward", has_aux=has_aux, randomness="same", chunk_size=chunk_size
    )

    def compute(*args: Any, **kwargs: Any) -> Any:
        check_function(NAME, func)
        below = TapingRecorder("same", NAME, is_kept=False)
        if chunk_size is not None or not below.defers:
            return nested(*args, **kwargs)
        selected = Selected(NAME, args, normalize_argnums(NAME, argnums, len(args)))
        result, aux = _Second(func, selected, argnums, kwargs, has_aux, below).result()
        return (result, aux) if has_aux else result

    return named_after(func, compute)


class _Second:
    """One call: the function on a tape, and below it, as soon as there is need of it, the gradient on another.

    As long as the function calls nothing off the fast path, there is one tape, and what follows from it may have been
    worked out before. Else the recording below begins, and all is as in ``jacfwd(jacrev(func))``.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        selected: Selected,
        argnums: Argnums,
        kwargs: dict[str, Any],
        has_aux: bool,
        below: TapingRecorder,
    ) -> None:
        self._selected, self._argnums = selected, argnums
        self._below, self._has_aux = below, has_aux
        self._recorder = TapingRecorder("same", NAME, is_kept=False, below=below)
        try:
            self._tape = Tape(
                NAME, func, selected, kwargs, has_aux=has_aux, recorder=self._recorder
            )
        except BaseException:
            self._end()
            raise

    def result(self) -> tuple[Any, Any]:
        """Return the Hessian and aux, in the caller's structure."""
        tape, below, recorder = self._tape, self._below, self._recorder
        try:
            if recorder.is_lifted or recorder.is_mixed:
                rows = self._columns()
            else:
                rows = tape.swept(NAME, self._columns, write=self._written)
            aux = tape.aux
            if self._has_aux and recorder.is_lifted:
                leaves, spec = flatten(aux)
                aux = unflatten([below.read(leaf)[0] for leaf in leaves], spec)
        finally:
            self._recorder.write_back()
            self._end()
        places: Any = [[0] * len(tape.inputs) for _ in tape.outputs]
        _, spec = flatten(arranged(places, tape, self._selected, self._argnums))
        trees = [self._selected.arranged(row) for row in rows]
        is_one = isinstance(self._argnums, int)
        return unflatten([t[0] for t in trees] if is_one else trees, spec), aux

    def _end(self) -> None:
        """Carry out the writes to the caller's tensors."""
        self._below.finish()
        self._below.write_back()

    def _columns(self) -> Rows:
        """Push through the recording of the gradient."""
        tape, below = self._tape, self._below
        tape.lift()
        rows = tape.swept("jacrev", functools.partial(pulled_rows, tape))
        self._recorder.write_back()
        if below.has_captured:
            rows = map_tensors(rows, below.captured.lookup)
        below.finish()
        gradient = self._gradient(rows)
        return gradient.swept("jacobian", functools.partial(pushed_columns, gradient))

    def _gradient(self, rows: Rows) -> Tape:
        tree = arranged(rows, self._tape, self._selected, self._argnums)
        leaves, spec = flatten(tree)
        check_outputs(NAME, tree, leaves)
        return Tape.around(self._below, self._tape.inputs, leaves, spec)

    def _written(self) -> Replay | None:
        """Put the kernels of both sweeps together: those of the second start from results of the first."""
        tape, below = self._tape, self._below
        pull = functools.partial(pulled_rows, tape)
        first = noted(tape.values, functools.partial(tape.anew, pull))
        tape.lift()
        if first is None:
            return None
        rows, refs = first.run(tape.values)
        gradient = self._gradient(rows)
        if not gradient.is_signed:
            return None
        push = functools.partial(pushed_columns, gradient)
        second = noted(below.values, functools.partial(gradient.anew, push))
        if second is None:
            return None
        return first.followed_by(second, [refs.get(id(v)) for v in below.values])


def hvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    vectors: tuple[Any, ...],
    *,
    has_aux: bool = False,
) -> Any:
    """Compute a scalar ``func`` and the product of its Hessian with ``vectors``, without the Hessian.

    Args:
        func: Returns one real tensor without axes.
        primals: The arguments, as a tuple.
        vectors: The direction: the same structure and shapes; converted to the primals' dtypes.
        has_aux: Whether ``func`` returns ``(output, aux)``.

    Returns:
        ``(output, product)``, the product in the structure of ``primals``, as ``torch.autograd.functional.hvp`` has it;
        with ``has_aux`` ``(output, product, aux)``. About the cost of a gradient and a `jvp` of it.

    Raises:
        TypeError: As `grad` and `jvp`.
        ValueError: As `grad` and `jvp`.

    Example:
        >>> hvp(lambda x: (x**3).sum(), (torch.tensor([1.0, 2.0]),), (torch.ones(2),))
        (tensor(9.), (tensor([ 6., 12.]),))

    References:
        Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """
    check_function("hvp", func)
    check_primals("hvp", primals)
    argnums = tuple(range(len(primals)))

    def gradient(*args: Any) -> Any:
        gradients, value = grad_and_value(func, argnums, has_aux)(*args)
        return gradients, value

    _, product, value = jvp(gradient, primals, vectors, has_aux=True)
    return (value[0], product, value[1]) if has_aux else (value, product)
