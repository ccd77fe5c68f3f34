"""Jagged nested tensors of traced values, or with a traced operand beside plain ones."""

from collections.abc import Callable

import pytest
import torch
from oracles import assert_close, central_jacobian
from torch import Tensor

from pushforward import jacfwd, jacrev

OFFSETS = torch.tensor([0, 2, 5])
VALUES = torch.tensor(
    [[0.4, -0.7], [1.3, 0.2], [-0.5, 0.9], [0.8, -1.1], [0.1, 0.6]], dtype=torch.float64
)


def jagged(values: Tensor) -> Tensor:
    """Return rows of lengths 2 and 3."""
    return torch.nested.nested_tensor_from_jagged(values, OFFSETS)


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "values": lambda v: jagged(v).values() ** 2,
    "elementwise": lambda v: jagged(v).sin().values(),
    "from a list": lambda v: (
        torch.nested.as_nested_tensor([v[:2], v[2:]], layout=torch.jagged).values() ** 2
    ),
    "padded": lambda v: torch.nested.to_padded_tensor(jagged(v), 0.5) ** 2,
    "sum of rows": lambda v: jagged(v**2).sum(1),
    "plain times traced": lambda v: (jagged(VALUES) * v[0]).values() ** 2,
    "linear layer": lambda v: torch.nn.functional.linear(jagged(v**2), v[:3]).values(),
    "softmax": lambda v: jagged(v**2).softmax(-1).values(),
    "softmax of rows": lambda v: jagged(v**2).softmax(1).values(),
    "mean": lambda v: jagged(v**2).mean(1),
    "largest": lambda v: jagged(v**2).amax(1),
    "sum of all": lambda v: jagged(v**2).sum(),
    "product": lambda v: (jagged(v) * jagged(v.sin())).values(),
    "matrix product": lambda v: (jagged(v**2) @ v[:2]).values(),
    "layer norm": lambda v: torch.nn.functional.layer_norm(jagged(v**2), (2,)).values(),
    "chunk": lambda v: jagged(v**2).chunk(2, -1)[0].values(),
    "joined": lambda v: torch.cat([jagged(v), jagged(v**2)], -1).values(),
    "masked": lambda v: jagged(v).masked_fill(jagged(VALUES) > 0, 0.0).values(),
    "chosen": lambda v: torch.where(jagged(VALUES) > 0, jagged(v), jagged(v**2)).values(),
    "row by row": lambda v: torch.cat([row.cumsum(0) ** 2 for row in jagged(v).unbind()]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("func", CASES.values(), ids=CASES.keys())
def test_first_and_second_derivative_are_right(func: Callable[[Tensor], Tensor]) -> None:
    """The values' derivative is not lost where a nested tensor detaches them."""
    expected = central_jacobian(func, VALUES)
    assert_close(jacfwd(func)(VALUES), expected)
    assert_close(jacrev(func)(VALUES), expected)
    assert_close(jacfwd(jacfwd(func))(VALUES), central_jacobian(jacfwd(func), VALUES))


def test_detached_values_are_constants() -> None:
    """In a nested tensor, too."""
    jacobian = jacrev(lambda v: (jagged(v).detach() * jagged(v)).values())(VALUES)
    assert_close(jacobian.reshape(10, 10), torch.diag(VALUES.flatten()))


def test_a_nested_tensor_of_traced_values_requires_grad() -> None:
    """As outside."""

    def func(v: Tensor) -> Tensor:
        assert jagged(v).requires_grad
        assert not jagged(VALUES).requires_grad
        return jagged(v).values()

    jacfwd(func)(VALUES)
