"""Comparisons of what lies over several processes with what does not."""

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree


def raises(error, pattern):
    return pytest.raises(error, match=pattern)


def leaves(tree):
    return pytree.tree_leaves(tree)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_is(found, expected, message=None):
    """Compare trees; found tensors may be distributed."""
    found, expected = leaves(found), leaves(expected)
    assert len(found) == len(expected), message
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            whole(one).detach(), other.detach(), equal_nan=True,
            msg=None if message is None else lambda text: f"{message}: {text}",
        )  # fmt: skip
