"""How much of ATen has rules of ours."""

import torch

import pushforward.rules.families  # noqa: F401
from pushforward.rules.registry import all_nondifferentiable, all_rules


def test_at_least_200_primitives_have_a_rule() -> None:
    """Rules and operators declared constant are counted apart; an overload counts as its packet."""
    with_rule = {_packet(r.operator) for r in all_rules()} & _aten()
    constant = ({_packet(op) for op in all_nondifferentiable()} & _aten()) - with_rule
    print(f"{len(with_rule)} ATen operators with a rule, {len(constant)} declared constant")
    assert len(with_rule) >= 200
    assert len(constant) >= 20


def _packet(operator: object) -> object:
    if isinstance(operator, torch._ops.OpOverload):
        return operator.overloadpacket
    return operator


def _aten() -> set[object]:
    return {getattr(torch.ops.aten, name) for name in dir(torch.ops.aten) if _is_packet(name)}


def _is_packet(name: str) -> bool:
    return isinstance(getattr(torch.ops.aten, name, None), torch._ops.OpOverloadPacket)
