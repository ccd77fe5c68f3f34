"""Garbage is collected again when a graph is compiled, whatever happened."""

import gc

import pytest
import torch

import pushforward as pf
from pushforward.compiling.garbage import garbage_kept


def test_who_collects_none_is_left_alone():
    gc.disable()
    try:
        with garbage_kept():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_none_is_collected_while_functions_are_traced():
    seen = []

    def noted(x):
        seen.append(gc.isenabled())
        if len(seen) > 1:
            raise ZeroDivisionError
        return x.sin()

    compiled = pf.compile(pf.jacfwd(noted), backend="eager")
    compiled(torch.ones(2))
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        compiled(torch.ones(3))
    assert gc.isenabled()
