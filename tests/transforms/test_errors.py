"""Bad input raises before any work: the message names function, value got and way out.

Where torch.func raises RuntimeError for the same mistake, so do we (our classes derive from both).
"""

import dataclasses

import pytest
import torch
from torch import Tensor

import pushforward
from pushforward import jacfwd, jvp, linearize

X = torch.ones(3)


def never(*args: object, **kwargs: object) -> Tensor:
    """A function that must not be reached."""
    raise AssertionError("the function was called although its arguments are bad")


ARGNUMS = [
    (r"jacfwd: .*argnums.*(float|1\.5)", TypeError, 1.5),
    (r"jacfwd: .*argnums.*(str|'0')", TypeError, "0"),
    (r"jacfwd: .*argnums.*(dict|\{\})", TypeError, {}),
    ("jacfwd: .*argnums?.*0\\.0", TypeError, (0.0,)),
    ("jacfwd: .*argnums?.*\\(0, 1\\)", TypeError, ((0, 1),)),
    ("jacfwd: .*argnums?.*2", ValueError, 2),
    ("jacfwd: .*argnums?.*-3", ValueError, -3),
    ("jacfwd: .*argnums?.*5", ValueError, (0, 5)),
    ("jacfwd: .*argnums.*\\(0, 0\\)", ValueError, (0, 0)),
    ("jacfwd: .*argnums.*\\(0, -2\\)", ValueError, (0, -2)),
    ("jacfwd: .*argnums.*\\(\\)", ValueError, ()),
]


@pytest.mark.parametrize(("match", "kind", "argnums"), ARGNUMS, ids=lambda v: repr(v)[:20])
def test_bad_argnums_are_refused_before_the_function_is_called(match, kind, argnums):
    with pytest.raises(kind, match=match) as info:
        jacfwd(never, argnums=argnums)(X, X)
    assert isinstance(info.value, RuntimeError), "torch.func raises RuntimeError here"
    assert isinstance(info.value, pushforward.PushforwardError)


def test_out_of_range_argnums_say_how_many_arguments_there_are():
    with pytest.raises(ValueError, match=r"jacfwd: .*2.*\b1\b.*positional"):
        jacfwd(never, argnums=2)(X)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.int32])
def test_an_integer_argument_is_refused_with_its_position_and_dtype(dtype):
    with pytest.raises(
        (TypeError, ValueError, RuntimeError), match=rf"jacfwd: .*argument 1\b.*{dtype}"
    ):
        jacfwd(never, argnums=1)(X, torch.ones(3).to(dtype))


def test_an_integer_leaf_of_a_tree_is_refused_with_its_path():
    tree = {"w": X, "steps": torch.tensor(3)}
    with pytest.raises(
        (TypeError, ValueError, RuntimeError), match=r"jacfwd: .*steps.*torch\.int64"
    ):
        jacfwd(never)(tree)


@pytest.mark.parametrize("bad", [3, 1.5, None, "name"])
def test_an_argument_without_any_tensor_is_refused(bad):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jacfwd: .*argument 0"):
        jacfwd(never)(bad)


def test_an_unregistered_dataclass_is_refused_by_name():
    @dataclasses.dataclass
    class State:
        x: Tensor

    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jacfwd: .*State"):
        jacfwd(never)(State(X))


@pytest.mark.parametrize("bad", ["foo", None, 3])
def test_bad_randomness_is_refused(bad):
    with pytest.raises(RuntimeError, match=rf"Only allowed values for randomness are .*{bad}"):
        jacfwd(never, randomness=bad)(X)


@pytest.mark.parametrize("bad", [0, -2])
def test_a_chunk_size_below_one_is_refused(bad):
    with pytest.raises(ValueError, match=rf"jacfwd: .*chunk_size.*{bad}"):
        jacfwd(never, chunk_size=bad)(X)


@pytest.mark.parametrize("bad", [1.5, "2"])
def test_a_chunk_size_that_is_no_integer_is_refused(bad):
    with pytest.raises(TypeError, match=rf"jacfwd: .*chunk_size.*{bad}"):
        jacfwd(never, chunk_size=bad)(X)


def test_something_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"jacfwd: .*3|not callable"):
        jacfwd(3)(X)


@pytest.mark.parametrize(
    ("output", "named"),
    [(None, "None"), (1.5, "float"), ("abc", "str"), ((X, None), "None"), ((X, 2), "int")],
)
def test_an_output_that_is_no_tensor_is_refused_with_its_type(output, named):
    with pytest.raises(
        (TypeError, ValueError, RuntimeError), match=rf"jacfwd: (?=.*output).*{named}"
    ):
        jacfwd(lambda x: output)(X)


def test_an_empty_tuple_as_output_is_refused():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jacfwd: .*output"):
        jacfwd(lambda x: ())(X)


@pytest.mark.parametrize("output", [X, [X, X], (X, X, X), (X,)])
def test_has_aux_needs_a_pair(output):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jacfwd: .*has_aux"):
        jacfwd(lambda x: output, has_aux=True)(X)


# ---- jvp ----


@pytest.mark.parametrize("name", ["primals", "tangents"])
def test_jvp_wants_tuples(name):
    arguments = {"primals": (X,), "tangents": (X,)} | {name: X}
    with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"jvp.*{name}.*tuple"):
        jvp(never, **arguments)


def test_jvp_wants_the_same_structure_for_primals_and_tangents():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp.*structure"):
        jvp(never, (X, X), (X,))
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp.*structure"):
        jvp(never, ({"a": X},), ({"b": X},))


def test_jvp_refuses_a_tangent_of_another_shape_and_names_both():
    with pytest.raises((ValueError, RuntimeError), match=r"jvp: (?=.*\b2\b).*\b3\b"):
        jvp(never, (X,), (torch.ones(2),))


def test_jvp_refuses_a_tangent_that_would_broadcast():
    with pytest.raises((ValueError, RuntimeError), match=r"jvp.*shape"):
        jvp(never, (X,), (torch.ones(1),))


def test_jvp_refuses_a_primal_that_is_no_tensor():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp.*(int|3)"):
        jvp(never, (3,), (1,))


def test_jvp_refuses_an_integer_primal():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp.*torch\.int64"):
        jvp(never, (torch.arange(3),), (torch.arange(3),))


def test_jvp_refuses_a_complex_tangent_for_a_real_primal():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp.*complex"):
        jvp(never, (X,), (torch.ones(3, dtype=torch.complex64),))


def test_jvp_refuses_an_output_that_is_no_tensor():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp: (?=.*output).*float"):
        jvp(lambda x: 1.5, (X,), (X,))


def test_jvp_with_aux_needs_a_pair():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"jvp.*has_aux"):
        jvp(lambda x: x, (X,), (X,), has_aux=True)


# ---- linearize ----


def test_linearize_refuses_an_integer_primal():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"linearize.*torch\.int64"):
        linearize(never, torch.arange(3))


def test_linearize_refuses_to_run_without_primals():
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"linearize.*primal"):
        linearize(never)


# ---- errors of the user's function ----


def test_an_exception_of_the_function_arrives_unchanged():
    class OwnError(Exception):
        pass

    def f(x):
        x.sin()
        raise OwnError("own")

    for call in (
        lambda: jacfwd(f)(X),
        lambda: jvp(f, (X,), (X,)),
        lambda: linearize(f, X),
    ):
        with pytest.raises(OwnError, match=r"^own$"):
            call()


def test_a_shape_error_of_an_operator_is_pytorchs_own():
    with pytest.raises(RuntimeError, match=r"size of tensor a \(3\) must match"):
        jacfwd(lambda x: x + torch.ones(2))(X)


def test_an_integer_output_among_the_outputs_is_refused_with_its_dtype():
    with pytest.raises(
        (TypeError, ValueError, RuntimeError), match=r"jacfwd: .*output.*torch\.int64"
    ):
        jacfwd(lambda x: (x * 2, x.argmax()))(X)


def test_every_class_derives_from_a_builtin_that_the_caller_expects():
    for name in dir(pushforward):
        value = getattr(pushforward, name)
        if isinstance(value, type) and issubclass(value, pushforward.PushforwardError):
            builtin = (TypeError, ValueError, RuntimeError, NotImplementedError, AssertionError)
            assert value is pushforward.PushforwardError or issubclass(value, builtin)
