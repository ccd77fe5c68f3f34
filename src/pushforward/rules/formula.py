"""Maps of operators that are given as a formula of differentiable operators: differentiated, not stated.

For operators off the beaten track only: such a map knows no structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.general import General
from pushforward.linear.transposition import per_seed, transposed
from pushforward.rules.registry import no_map, rule, with_output

Formula = Callable[..., Any]


def formula_map(function: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> General:
    """Return the derivative of ``function`` at ``x``; ``out`` is what it gives there."""
    pull = torch.func.vjp(function, x)[1]

    def pull_one(cotangent: Tensor) -> Tensor:
        result: Tensor = pull(cotangent)[0]
        return result

    push_one = transposed(pull_one, tuple(out.shape), out)
    return General(tuple(x.shape), tuple(out.shape), per_seed(push_one), per_seed(pull_one))


def rule_by_formula(
    operator: Any, formula: Formula, names: Sequence[str], constants: Sequence[str] = ()
) -> None:
    """Declare the derivatives of ``operator`` in its arguments ``names`` from a formula for it.

    Args:
        operator: An overload.
        formula: Takes all of the operator's arguments in order, and returns its output or outputs.
        names: The arguments that may be differentiated.
        constants: Those that may be differentiated, and whose derivative is 0.
    """
    arguments = operator._schema.arguments

    def partial(name: str) -> Callable[..., Any]:
        place = [argument.name for argument in arguments].index(name)

        @with_output
        def maps(*args: Any, out: Any, **named: Any) -> Any:
            values = [
                args[i] if i < len(args) else named.get(a.name, a.default_value)
                for i, a in enumerate(arguments)
            ]

            def output(index: int | None) -> Callable[[Tensor], Tensor]:
                def at(x: Tensor) -> Tensor:
                    outs = formula(*values[:place], x, *values[place + 1 :])
                    result: Tensor = outs if index is None else outs[index]
                    return result

                return at

            if isinstance(out, Tensor):
                return formula_map(output(None), values[place], out)
            return tuple(
                formula_map(output(i), values[place], o)
                if isinstance(o, Tensor) and o.is_floating_point()
                else None
                for i, o in enumerate(out)
            )

        return maps

    places = [argument.name for argument in arguments]
    known = {name: partial(name) for name in names} | dict.fromkeys(constants, no_map)
    count = max((places.index(name) for name in known), default=-1) + 1
    rule(operator, *[known.get(name) for name in places[:count]])
