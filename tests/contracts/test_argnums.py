"""Which arguments are differentiated: positions, order, tuples, and what is refused."""

import pytest
import torch

import pushforward

TRANSFORMS = {
    "ours": {
        name: getattr(pushforward, name, None)
        for name in ("jacfwd", "jacrev", "jacobian", "grad", "grad_and_value", "hessian")
    },
    "torch": {
        name: getattr(torch.func, name)
        for name in ("jacfwd", "jacrev", "grad", "grad_and_value", "hessian")
    },
}
EVERY = [
    pytest.param(function, name, id=f"{whose}.{name}")
    for whose, functions in TRANSFORMS.items()
    for name, function in functions.items()
]
# torch.func.jacfwd, and hessian by it, give zeros for a negative position (baselines, finding 1).
RIGHT_ON_NEGATIVES = [p for p in EVERY if p.id not in ("torch.jacfwd", "torch.hessian")]


def product(x, y, z):
    return x**2 * y**3 * z


POINT = tuple(torch.tensor(v, dtype=torch.float64) for v in (1.5, -0.7, 2.0))
_X, _Y, _Z = POINT
FIRST = (2 * _X * _Y**3 * _Z, 3 * _X**2 * _Y**2 * _Z, _X**2 * _Y**3)
SECOND = (
    (2 * _Y**3 * _Z, 6 * _X * _Y**2 * _Z, 2 * _X * _Y**3),
    (6 * _X * _Y**2 * _Z, 6 * _X**2 * _Y * _Z, 3 * _X**2 * _Y**2),
    (2 * _X * _Y**3, 3 * _X**2 * _Y**2, torch.zeros((), dtype=torch.float64)),
)


def derivative(function, name, argnums):
    """The first result; at a function of scalars a Jacobian and a gradient are the same."""
    result = function(product, argnums=argnums)(*POINT)
    return result[0] if name == "grad_and_value" else result


def expected(name, argnums):
    if isinstance(argnums, int):
        return SECOND[argnums][argnums] if name == "hessian" else FIRST[argnums]
    if name == "hessian":
        return tuple(tuple(SECOND[i][j] for j in argnums) for i in argnums)
    return tuple(FIRST[i] for i in argnums)


@pytest.mark.parametrize("argnums", [0, 1, 2, (0,), (2,), (0, 1), (1, 0), (2, 0, 1)])
@pytest.mark.parametrize(("function", "name"), EVERY)
def test_each_position_and_order_gives_the_derivatives_asked_for(function, name, argnums):
    actual = derivative(function, name, argnums)
    torch.testing.assert_close(actual, expected(name, argnums))
    assert isinstance(actual, tuple) == isinstance(argnums, tuple)


@pytest.mark.parametrize("argnums", [-1, -2, -3, (-1,), (-3, -2), (-1, 0), (0, -2)])
@pytest.mark.parametrize(("function", "name"), RIGHT_ON_NEGATIVES)
def test_negative_positions_count_from_the_end(function, name, argnums):
    normal = argnums % 3 if isinstance(argnums, int) else tuple(a % 3 for a in argnums)
    torch.testing.assert_close(derivative(function, name, argnums), expected(name, normal))


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_the_first_argument_is_the_default(function, name):
    result = function(product)(*POINT)
    result = result[0] if name == "grad_and_value" else result
    torch.testing.assert_close(result, expected(name, 0))


@pytest.mark.parametrize(
    ("argnums", "complaint"),
    [
        (3, "only 3 positional inputs"),
        (-4, "only 3 positional inputs"),
        ((0, 3), "only 3 positional inputs"),
        ((-4,), "only 3 positional inputs"),
        ((), "must be non-empty"),
        ((0, 0), "must be unique"),
        ((0, -3), "must be unique"),
        (0.0, "must be int or Tuple"),
        ("0", "must be int or Tuple"),
        ((0.0,), "must be int"),
        ((1, "0"), "must be int"),
        (((0, 1), 2), "must be int"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("function", "name"), EVERY)
def test_bad_positions_are_refused(function, name, argnums, complaint):
    with pytest.raises(RuntimeError, match=complaint):
        derivative(function, name, argnums)


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_bad_positions_are_refused_when_called_and_not_before(function, name):
    function(product, argnums=7)
    function(product, argnums="x")


def pytrees(a, b):
    x, (y, z) = a
    return x**2 * y * z * b["foo"]


@pytest.mark.parametrize("whose", TRANSFORMS)
@pytest.mark.parametrize("name", ["grad", "jacfwd", "jacrev"])
def test_a_position_takes_the_whole_pytree_at_it(whose, name):
    function = TRANSFORMS[whose][name]
    x, y, z = POINT
    args = ((x, [y, z]), {"foo": y})
    first = (2 * x * y * z * y, [x**2 * z * y, x**2 * y * y])
    second = {"foo": x**2 * y * z}
    torch.testing.assert_close(function(pytrees)(*args), first)
    torch.testing.assert_close(function(pytrees, argnums=1)(*args), second)
    torch.testing.assert_close(function(pytrees, argnums=(0,))(*args), (first,))
    torch.testing.assert_close(function(pytrees, argnums=(1, 0))(*args), (second, first))


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_other_arguments_may_be_numbers_strings_and_modules(function, name):
    def f(x, power, mode, layer):
        assert mode == "sum"
        return layer(x**power).sum()

    layer = torch.nn.Identity()
    result = function(f)(_X, 3, "sum", layer)
    result = result[0] if name == "grad_and_value" else result
    torch.testing.assert_close(result, 6 * _X if name == "hessian" else 3 * _X**2)


@pytest.mark.parametrize(("function", "name"), EVERY)
def test_the_wrapper_has_the_name_of_the_function(function, name):
    assert function(product).__name__ == "product"


@pytest.mark.parametrize("whose", TRANSFORMS)
@pytest.mark.parametrize("name", ["grad", "grad_and_value"])
def test_keyword_arguments_are_passed_on(whose, name):
    def f(x, y, *, z):
        return product(x, y, z)

    result = TRANSFORMS[whose][name](f)(_X, y=_Y, z=_Z)
    torch.testing.assert_close(result if name == "grad" else result[0], FIRST[0])
