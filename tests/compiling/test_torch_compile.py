"""torch.compile by the user, over our transforms and over code that calls them."""

import warnings

import pytest
import torch
import torch.func as tf
from compiling.example import mixed, scalar

import pushforward as pf

CALLS = {
    "jacfwd": lambda lib: lib.jacfwd(mixed),
    "jacrev": lambda lib: lib.jacrev(mixed),
    "grad": lambda lib: lib.grad(scalar),
    "hessian": lambda lib: lib.hessian(scalar),
    "jacfwd of jacrev": lambda lib: lib.jacfwd(lib.jacrev(scalar)),
    "jvp": lambda lib: lambda x: lib.jvp(mixed, (x,), (x.cos(),)),
    "vjp": lambda lib: lambda x: lib.vjp(mixed, x)[1](x.cos()),
    "vmap": lambda lib: lambda x: tf.vmap(lib.jacfwd(torch.sin))(x.reshape(-1, 1)),
    "inside": lambda lib: lambda x: (lib.jacfwd(mixed)(x * 2).sum(0) + x).sin(),
    "pushed": lambda lib: (
        lambda x: (
            lib.linearize(mixed, x)[1](x.cos()) if lib is pf else tf.jvp(mixed, (x,), (x.cos(),))[1]
        )
    ),
    "compile": lambda lib: (
        pf.compile(pf.jacfwd(mixed), backend="eager") if lib is pf else tf.jacfwd(mixed)
    ),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_torch_compile(name, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name](pf), dynamic=dynamic, backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in (0.5, 1.0, 2.0):
            x = torch.linspace(0.1, 1, 4).double() * scale
            torch.testing.assert_close(compiled(x), CALLS[name](tf)(x))
    assert not [
        w for w in caught if "pushforward" in str(w.message) or "graph break" in str(w.message)
    ]
