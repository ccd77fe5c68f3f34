"""At ties slopes under ``vmap`` are those of single calls, also where ``vmap`` computes by other operators."""

import pytest
import torch

import pushforward

F64 = torch.float64
X = torch.tensor([[1, 1, 0, 1], [2, 3, 3, 3], [0, 2, 2, 5]], dtype=F64)
FUNCTIONS = {
    name: lambda x, name=name: getattr(torch, name)(x)
    for name in ("max", "min", "median", "nanmedian", "amax", "amin", "prod", "msort", "norm")
}
FUNCTIONS |= {
    f"{name} along an axis": lambda x, name=name: getattr(torch, name)(x, 0)[0]
    for name in ("max", "min", "median", "nanmedian", "mode", "sort", "cummax", "cummin")
}
FUNCTIONS |= {
    "methods": lambda x: x.max() * x.min() + x.median() * x.nanmedian(),
    "aminmax": lambda x: torch.stack(torch.aminmax(x)),
    "kthvalue": lambda x: x.kthvalue(2)[0],
    "topk": lambda x: x.topk(2)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(0)) * torch.fmin(x, x.flip(0)),
    "infinity norm": lambda x: torch.linalg.vector_norm(x, float("inf")),
    "quantile": lambda x: x.quantile(0.5) * x.nanquantile(0.25),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_slopes_at_ties(f, is_known):
    expected = torch.stack([torch.autograd.functional.jacobian(f, x) for x in X])
    for transform in (pushforward.jacfwd, pushforward.jacrev, pushforward.jacobian):
        for _ in range(3 * is_known):
            transform(f)(X[0])
        for _ in range(4):
            torch.testing.assert_close(pushforward.vmap(transform(f))(X), expected)
            torch.testing.assert_close(torch.func.vmap(transform(f))(X), expected)
