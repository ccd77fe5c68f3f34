"""What we expect of the private names that shortcuts replace: a new PyTorch breaks here."""

import importlib

import pytest
import sympy
import torch

from pushforward.tape import private_inductor
from pushforward.tape import private_shortcuts as private
from pushforward.tape.private_compiler import make_fx

cpp = importlib.import_module("torch._inductor.codegen.cpp")
common = importlib.import_module("torch._inductor.codegen.common")
importlib.import_module("torch._inductor.lowering")  # without which operators have no dtypes
CLASS = common.DtypePropagationOpsHandler
codecache = importlib.import_module("torch._inductor.codecache")
X, Y, S = (sympy.Symbol(name, integer=True, nonnegative=True) for name in ("x0", "x1", "ks0"))


def looks():
    return (
        cpp.stride_at_vec_range,
        common.DtypePropagationOpsHandler,
        vars(codecache.CppWrapperCodeCache)["_get_uncompiled_header"],
    )


@pytest.mark.parametrize("length", [None, 4, 16])
@pytest.mark.parametrize("text", [
    "0", "7", "x0", "x1", "x0 + x1", "12*x0 + 3*x1 + 5", "-x0 + 31", "2*(x0 + x1)", "ks0*x0 + x1", "ks0 + x0",
    "x0*x1", "x0//4", "x0//16 + x1", "(x0 % 16) + 8*x1", "48*(x0//24) + x1", "2*(x0 % 24) - x1",
    "(x0//4) % 32 + x0", "(x0//16) % 3 + 5*(x0//3) + x1", "(x0 + x1)//4 + x1", "x0*(x0//4) + x1", "x0//ks0",
    "tmp0 + 3*x0", "x1 - x0 - 1", "x0 < 5",
])  # fmt: skip
def test_strides_are_those_that_sympy_finds(text, length):
    functions = importlib.import_module("torch.utils._sympy.functions")
    names = {"x0": X, "x1": Y, "ks0": S, "tmp0": sympy.Symbol("tmp0")}
    if "//" in text or "%" in text:
        divided, modular = functions.FloorDiv, functions.ModularIndexing
        index = {
            "x0//4": divided(X, 4),
            "x0//16 + x1": divided(X, 16) + Y,
            "(x0 % 16) + 8*x1": modular(X, 1, 16) + 8 * Y,
            "48*(x0//24) + x1": 48 * divided(X, 24) + Y,
            "2*(x0 % 24) - x1": 2 * modular(X, 1, 24) - Y,
            "(x0//4) % 32 + x0": modular(X, 4, 32) + X,
            "(x0//16) % 3 + 5*(x0//3) + x1": modular(X, 16, 3) + 5 * divided(X, 3) + Y,
            "(x0 + x1)//4 + x1": divided(X + Y, 4) + Y,
            "x0*(x0//4) + x1": X * divided(X, 4) + Y,
            "x0//ks0": divided(X, S),
        }[text]
    else:
        index = sympy.sympify(text, locals=names)
    variables = [Y] if isinstance(index, sympy.Rel) else [X, Y]  # the other, SymPy fails at
    expected = [cpp.stride_at_vec_range(index, v, length) for v in variables]
    with private.shortcuts():
        found = [cpp.stride_at_vec_range(index, v, length) for v in variables]
    assert found == expected
    assert all(isinstance(f, sympy.Basic) for f in found)


def test_dtypes_are_told_by_one_object_that_is_made_once():
    with private.shortcuts():
        made = common.DtypePropagationOpsHandler()
        assert common.DtypePropagationOpsHandler() is made
        assert {*dir(made)} == {*dir(CLASS())}
    assert isinstance(made, CLASS)


def test_names_mean_what_they_did_afterwards():
    before = looks()
    with private.shortcuts():
        during = looks()
        with private.shortcuts():
            assert looks()[0] is not before[0]
        assert looks() == during
    assert not set(during) & set(before)
    assert looks() == before
    with pytest.raises(ZeroDivisionError), private.shortcuts():
        raise ZeroDivisionError
    assert looks() == before


def test_loops_and_wrapper_have_one_precompiled_header(monkeypatch):
    asked, precompile = [], codecache._precompile_header

    def noted(header, *args, **kwargs):
        asked.append(header)
        return precompile(header, *args, **kwargs)

    monkeypatch.setattr(codecache, "_precompile_header", noted)
    x, w = torch.rand(37, 3), torch.rand(3, 5)
    graph = make_fx(lambda x, w: [(x @ w).tanh()], [x, w], "fake")
    with importlib.import_module("torch._inductor.config").patch(force_disable_caches=True):
        compiled = private_inductor.inductor(graph, [x, w], True)
    torch.testing.assert_close(compiled([x, w]), [(x @ w).tanh()])
    wrapper, loops = "torch/csrc/inductor/cpp_wrapper/cpu.h", "torch/csrc/inductor/cpp_prefix.h"
    assert asked == [f"{wrapper}>\n#include <{loops}"]
    assert codecache.CppWrapperCodeCache._get_uncompiled_header("cpu") == wrapper
    with private.shortcuts():
        assert loops not in codecache.CppWrapperCodeCache._get_uncompiled_header("cuda")


def test_shortcuts_have_a_tag_of_their_text(monkeypatch, tmp_path):
    tag = private.shortcuts_tag()
    other = tmp_path / "other.py"
    other.write_text("# other shortcuts")
    monkeypatch.setattr(private, "__file__", str(other))
    assert private.shortcuts_tag() == tag  # asked once
    assert private.shortcuts_tag.__wrapped__() != tag


def test_a_version_without_the_names_goes_the_long_way(monkeypatch):
    monkeypatch.delattr(cpp, "stride_at_vec_range")
    monkeypatch.delattr(common, "DtypePropagationOpsHandler")
    monkeypatch.delattr(codecache, "CppWrapperCodeCache")
    with private.shortcuts():
        assert not hasattr(cpp, "stride_at_vec_range")
