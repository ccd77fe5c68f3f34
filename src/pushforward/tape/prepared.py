"""Prepared calls: for each type of node, code that asks the operator's rule for the maps of its inputs.

`calls` puts a call together argument by argument, and asks of each what is known of it. The answers are the same for
all nodes of a type that saved the same and depend on the same, and are written down once: with that, and with maps that
no tensor has a part in made once for all nodes alike, a node takes half the time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.errors import RuleError, UnsupportedError
from pushforward.linear.kinds.mask import Mask
from pushforward.linear.kinds.scale import Scale
from pushforward.linear.map import AbstractLinearMap
from pushforward.linear.program import Term
from pushforward.rules.registry import Rule, is_nondifferentiable, listeners, lookup, takes_output
from pushforward.tape.calls import declared_outputs, functional, parameters, unsaved_argument
from pushforward.tape.node_types import NodeType, signed
from pushforward.tape.private_torch import Node
from pushforward.tape.unsaved import Unknown, Unsaved, UnsavedError

ACTIVE, CONSTANT, NOTHING = range(3)  # what an edge leads to

# Terms of a node of the same program, and what has its `id` in the key.
Memo = dict[Any, tuple[list[Term | None], Any]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What gives the maps of nodes of one type."""

    origin: str  # who gives them
    # None for an input by which the output moves by steps only
    code: Callable[[Node, Sequence[Any], Sequence[Any], Any, Sequence[Any]], list[Term | None]]
    edges: tuple[int, ...]  # those of the terms
    values: Callable[[Node], list[Any]] | None  # all that maps depend on but shapes; None: tensors

    def terms(
        self,
        node: Node,
        saved: Sequence[Any],
        sources: Sequence[Any],
        out: Any,
        edges: Sequence[Any],
        memo: Memo,
    ) -> list[Term] | None:
        """Return the terms of a node's equation; None where the call has to be put together for it.

        Args:
            node: The node.
            saved: The tensors that it saved.
            sources: Stand-ins for its inputs, None for those that lead nowhere.
            out: A stand-in for its output.
            edges: The variables of its inputs.
            memo: Terms of other nodes of the same program.
        """
        key = None
        if self.values is not None:
            try:
                key = (self, id(out), *map(id, sources), *self.values(node))
                known = memo.get(key)
            except TypeError:  # sizes that are traced do not hash
                known = key = None
            if known is not None:
                same = zip(self.edges, known[0], strict=True)
                return [Term(edges[i], t.linear_map, t.in_dtype) for i, t in same if t]
        try:
            found = self.code(node, saved, sources, out, edges)
        except UnsavedError:
            return None
        if key is not None:
            memo[key] = found, (out, sources)
        return [term for term in found if term]


@functools.lru_cache(maxsize=4096)
def prepared(kind: NodeType, edges: tuple[int, ...], given: tuple[bool, ...]) -> Prepared | None:
    """Return what gives the maps of nodes of a type; None where a call has to be put together for each.

    ``edges`` says what each leads to, ``given`` which of the tensors are there that such nodes save.
    """
    rule, is_constant = rule_of(kind)
    flags, places = declared_outputs(kind)
    returns = kind.op._schema.returns
    if rule is None or is_constant or flags != (True,) or "List[" in str(returns[0].type):
        return None
    arguments: list[str] = []
    inputs: list[tuple[int | str, int, int | None]] = []  # argument, edge, place in a list
    output = next((f"saved[{i}]" for i, _ in places if given[i]), "out")
    attributes: list[str] = []
    scope: dict[str, Any] = {"signed": signed, "unsaved_argument": unsaved_argument}
    for position, parameter in enumerate(parameters(kind, len(edges))):
        first, name = parameter.first, parameter.name
        saved = parameter.saved if parameter.saved is not None and given[parameter.saved] else None
        if parameter.is_list and parameter.num_edges:
            members = range(first, first + parameter.num_edges)
            if saved is not None or any(edges[i] == NOTHING for i in members):
                return None
            value = f"[{', '.join(f'sources[{i}]' for i in members)}]"
            inputs += [(parameter.key, i, i - first) for i in members if edges[i] == ACTIVE]
        elif saved is not None or (parameter.num_edges and edges[first] != NOTHING):
            value = f"sources[{first}]" if saved is None else f"saved[{saved}]"
            if parameter.num_edges and edges[first] == ACTIVE:
                inputs.append((parameter.key, first, None))
        elif parameter.is_saved_if_given:
            value = "None"
        elif parameter.num_edges and parameter.sizes is not None:
            return None
        elif parameter.num_edges and position == rule.like:
            value = "out"
        elif parameter.attribute is not None and not parameter.num_edges:
            attributes.append(parameter.attribute)
            value = f"signed(node.{parameter.attribute})"
        elif name == "output_mask":
            return None
        elif parameter.num_edges:
            value, scope[f"unknown_{name}"] = f"unknown_{name}", Unknown(name)
        else:
            value = f"unsaved_argument({name!r}, {output}, ())"
        arguments.append(f"{name}={value}" if parameter.is_keyword else value)
    keys = list(dict.fromkeys(key for key, *_ in inputs))
    if not inputs or any(key not in rule.partials for key in keys):
        return None
    scope |= {"Term": Term, "made": _elementwise if rule.is_elementwise else _given}
    scope["operator"] = functional(kind.op)
    lines = ["def code(node, saved, sources, out, edges):"]
    for number, key in enumerate(keys):
        scope[f"partial_{number}"] = rule.partials[key]
        asked = [f"out={output}"] if takes_output(rule.partials[key]) else []
        lines.append(f"    result_{number} = partial_{number}({', '.join(arguments + asked)})")
    terms = []
    for key, i, member in inputs:
        result = f"result_{keys.index(key)}" + ("" if member is None else f"[{member}]")
        made = f"made({result}, operator, sources[{i}], out)"
        term = f"Term(edges[{i}], {made}, sources[{i}].dtype)"
        terms.append(f"None if {result} is None else {term}" if rule.is_own else term)
    lines.append(f"    return [{', '.join(terms)}]")
    numbers = "".join(f"node.{a}, " for a in attributes)  # 0.0 and -0.0 are equal
    lines.append(f"def values(node): return [v if v else repr(v) for v in ({numbers})]")
    text = "\n".join(lines)
    exec(text, scope)  # the names are PyTorch's, from its own table
    is_of_tensors = "saved[" in text or not rule.is_own
    return Prepared(
        origin_of(kind),
        scope["code"],
        tuple(i for _, i, _ in inputs),
        None if is_of_tensors else scope["values"],
    )


@functools.cache
def rule_of(kind: NodeType) -> tuple[Rule | None, bool]:
    """Return the rule of a type of nodes, and whether it has no derivative."""
    op = functional(kind.op)
    return lookup(kind.op) or lookup(op), is_nondifferentiable(op)


@functools.cache
def origin_of(kind: NodeType) -> str:
    """Return what the maps of a type of nodes are made for, and by whom."""
    return f"{kind.op or kind.name} by rule"


def _forget(_: Any) -> None:
    rule_of.cache_clear()
    prepared.cache_clear()


listeners.append(_forget)


def _given(result: Any, op: Any, x: Unsaved, out: Unsaved) -> AbstractLinearMap:
    """Return the map that a rule gave."""
    if not isinstance(result, AbstractLinearMap):
        raise UnsavedError(str(op))
    return fitted(result, op, x, out)


def _elementwise(result: Any, op: Any, x: Unsaved, out: Unsaved) -> AbstractLinearMap:
    """Return the map of an elementwise operator, whose rule nearly always gives a coefficient."""
    if isinstance(result, AbstractLinearMap):
        return fitted(result, op, x, out)
    if isinstance(result, Tensor):
        _check_coefficient(result, op)
    elif result is None:
        raise UnsavedError(str(op))
    return Scale(x.sizes, out.sizes, result)


def _check_coefficient(coef: Tensor, op: Any) -> None:
    if isinstance(coef, Unsaved):
        raise UnsavedError(str(op))
    if coef.layout is not torch.strided:
        raise UnsupportedError(
            f"{op}: a tensor that depends on the inputs meets a constant of layout {coef.layout}: expected a "
            "dense one, as elementwise operators of sparse constants are not followed. Use .to_dense(), or "
            "torch.sparse.mm."
        )


def fitted(linear_map: AbstractLinearMap, op: Any, x: Tensor, out: Any) -> AbstractLinearMap:
    """Check the map's shapes. Elementwise ones broadcast, also where their rule did not think of it."""
    if type(linear_map) is Scale and isinstance(linear_map.coef, Tensor):
        _check_coefficient(linear_map.coef, op)
    out_shape = out.shape
    if linear_map.out_shape != out_shape and type(linear_map) in (Scale, Mask):
        linear_map = dataclasses.replace(linear_map, out_shape=tuple(out_shape))
    if linear_map.out_shape != out_shape or linear_map.in_shape != x.shape:
        raise RuleError(
            f"the rule of {op} gave {linear_map!r}: expected a map {tuple(out_shape)} ← {tuple(x.shape)}. "
            "Correct the rule (docs/how-to/add-a-rule.md)."
        )
    return linear_map
