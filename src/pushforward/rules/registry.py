"""The one table of rules, and the few ways of declaring one.

A rule says what the local Jacobian is, for each argument that may be differentiated. It never says which
argument is active, how many seeds there are, or in which direction they go.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pushforward.errors import ArgumentTypeError, ArgumentValueError, RuleError, message
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap

Operator = Any  # an OpOverload, an OpOverloadPacket, or a plain Python function
Partial = Callable[..., Any]

_Partial = TypeVar("_Partial", bound=Partial)


@dataclasses.dataclass(slots=True)
class Rule:
    """The derivative of one operator.

    ``partials`` maps an argument, by position and by name, to a function of the operator's own arguments, and of
    its output if it is declared so (`with_output`). It returns the argument's linear map; for an operator with
    several outputs a tuple of maps, None where there is no derivative; for an argument that is a list of tensors
    a list of those. Ours may say None: the derivative is zero, whatever comes in, and no 0 · ∞ arises (`no_map`).
    """

    operator: Operator
    partials: dict[int | str, Partial]
    is_elementwise: bool = False
    is_own: bool = False  # declared by this package: its maps depend on the arguments alone
    like: int | None = None  # the argument whose shape and dtype the output has

    def partial(self, key: int | str) -> Partial | None:
        """Return the function for one argument, None if the rule does not cover it."""
        return self.partials.get(key)


_RULES: dict[Operator, Rule] = {}
_CONSTANT: set[Operator] = set()

# Told of every operator that is declared.
listeners: list[Callable[[Operator], None]] = []


def lookup(operator: Operator) -> Rule | None:
    """Return the rule of an overload, else that of its packet, else None."""
    rule = _RULES.get(operator)
    if (
        rule is None
        and isinstance(operator, torch._ops.OpOverload)
        and not operator._schema.is_mutable
    ):
        rule = _RULES.get(operator.overloadpacket)
    return rule


def is_nondifferentiable(operator: Operator) -> bool:
    """Tell whether the operator is declared to have no derivative, or a zero one wherever it has any."""
    if operator in _CONSTANT:
        return True
    return isinstance(operator, torch._ops.OpOverload) and operator.overloadpacket in _CONSTANT


def all_rules() -> list[Rule]:
    """Return every rule, in order of declaration."""
    return list(_RULES.values())


def all_nondifferentiable() -> list[Operator]:
    """Return every operator declared constant."""
    return sorted(_CONSTANT, key=str)


def rule(
    operator: Operator, *partials: Partial | None, like: int | None = None, **named: Partial
) -> None:
    """Declare the linear maps of ``operator``.

    Args:
        operator: An overload or a packet of ``torch.ops``, or a plain Python function.
        *partials: For the first, second, ... argument a function that takes the operator's arguments and returns
            that argument's linear map (see `Rule`); None for an argument without one.
        like: The position of an argument whose shape and dtype the output has: where it is a constant and the rule
            takes no more of it, autograd need not have saved it.
        **named: The same by argument name, for arguments that the caller may pass by keyword.

    Raises:
        ValueError: The operator has a rule already.

    Example:
        >>> from pushforward.rules.registry import lookup
        >>> lookup(torch.ops.aten.sin.default).operator
        <OpOverloadPacket(op='aten.sin')>
    """
    _register(operator, partials, named, is_elementwise=False)
    _RULES[operator].like = like


def elementwise(
    operator: Operator, *coefs: Callable[..., Tensor | complex | AbstractLinearMap | None] | None
) -> None:
    """Declare an elementwise operator by its partial derivatives, one function for each argument.

    Args:
        operator: As in `rule`.
        *coefs: Each takes the operator's arguments (and its output, if declared by `with_output`) and returns the
            derivative: a tensor that broadcasts to the output, or a number.

    Raises:
        ValueError: The operator has a rule already.

    Example:
        >>> from pushforward.rules.registry import lookup
        >>> lookup(torch.ops.aten.mul.Tensor).is_elementwise
        True
    """
    _register(operator, coefs, {}, is_elementwise=True)


def nondifferentiable(*operators: Operator) -> None:
    """Declare operators whose derivative is zero wherever it exists, or whose output has no derivative."""
    for operator in operators:
        _check_new("nondifferentiable", operator)
        _CONSTANT.add(operator)
        for listener in listeners:
            listener(operator)


def _register(
    operator: Operator,
    partials: Sequence[Partial | None],
    named: dict[str, Partial],
    is_elementwise: bool,
) -> None:
    name = "elementwise" if is_elementwise else "rule"
    _check_new(name, operator)
    for given in (*partials, *named.values()):
        if given is not None and not callable(given):
            got, expected = (
                f"{type(given).__name__} {given!r:.60}",
                "a function of the operator's arguments",
            )
            raise ArgumentTypeError(
                message(name, "a partial", got, expected, "Write lambda x: ....")
            )
    table: dict[int | str, Partial] = {}
    names = _argument_names(operator)
    for position, partial in enumerate(partials):
        if partial is not None:
            table[position] = partial
            if position < len(names):
                table[names[position]] = table[position]
    for name, partial in named.items():
        table[name] = partial
        if name in names:
            table[names.index(name)] = table[name]
    is_own = all((p.__module__ or "").startswith("pushforward.rules.") for p in table.values())
    _RULES[operator] = Rule(operator, table, is_elementwise, is_own)
    for listener in listeners:
        listener(operator)


def _check_new(name: str, operator: Any) -> None:
    if not callable(operator):
        got, expected = (
            f"{type(operator).__name__} {operator!r:.60}",
            "an operator of torch.ops, or a function",
        )
        way_out = "pushforward.primitive makes a function one that can have a rule."
        raise ArgumentTypeError(message(name, "operator", got, expected, way_out))
    if operator in _RULES or operator in _CONSTANT:
        got, expected = f"{operator}, which has a rule already", "one without"
        way_out = "Let a pushforward.primitive of yours call it, and give that a rule."
        raise ArgumentValueError(message(name, "operator", got, expected, way_out))


def with_output(partial: _Partial) -> _Partial:
    """Declare that a partial takes the operator's output as well, as ``out``.

    Example:
        >>> elementwise(torch.ops.demo.exponential, with_output(lambda x, *, out: out))  # doctest: +SKIP
    """
    partial.takes_output = True  # type: ignore[attr-defined]
    return partial


def no_map(*_: Any, **__: Any) -> None:
    """Return the map of an argument that may be differentiated, and moves the output by steps or not at all."""


def takes_output(partial: Partial) -> bool:
    """Tell whether a partial is declared to take the operator's output."""
    return getattr(partial, "takes_output", False)


def _argument_names(operator: Operator) -> list[str]:
    if isinstance(operator, torch._ops.OpOverloadPacket):
        operator = getattr(operator, operator.overloads()[0])
    if isinstance(operator, torch._ops.OpOverload):
        return [argument.name for argument in operator._schema.arguments]
    return list(inspect.signature(operator).parameters)


def maps_of(
    rule: Rule, key: int | str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Any
) -> Any:
    """Return what the rule's partial for argument ``key`` gives, a coefficient made into its `Scale`."""
    partial = rule.partials[key]
    if takes_output(partial):
        kwargs = {**kwargs, "out": out}
    result = partial(*args, **kwargs)
    if result is None and not rule.is_own:
        raise RuleError(
            f"the rule of {rule.operator} gave None for argument {key!r}: expected a linear map or a coefficient, 0.0 "
            "for a derivative that is zero. Correct the rule (docs/how-to/add-a-rule.md)."
        )
    if rule.is_elementwise and result is not None and not isinstance(result, AbstractLinearMap):
        return Scale(tuple(x.shape), tuple(out.shape), result)
    return result
