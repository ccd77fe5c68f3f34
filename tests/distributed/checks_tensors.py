"""Transforms of functions of distributed tensors: the plain function's numbers, and no communication but its own."""

import torch
import torch.nn.functional as F
from comparing import assert_is, leaves, raises
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import pushforward as pf

TRANSFORMS = (pf.jacfwd, pf.jacrev, pf.jacobian)

FUNCTIONS = {
    "identity": lambda x: x,
    "sum": lambda x: x.sum(0),
    "centred": lambda x: x - x.mean(),
    "sine and identity": lambda x: x.sin() + x,
    "softmax": lambda x: x.softmax(-1),
    "softmax over the batch": lambda x: x.softmax(0),
    "layer norm": lambda x: F.layer_norm(x, (3,)),
    "row": lambda x: x[1],
    "columns": lambda x: x[:, 1:],
    "joined": lambda x: torch.cat([x, x.sin()], 1),
    "Gram": lambda x: x.t() @ x,
    "norm": lambda x: x.square().sum().sqrt(),
    "stacked": lambda x: torch.stack([x, x.exp()]),
    "cumulated": lambda x: x.cumsum(1),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "largest": lambda x: x.amax(1),
    "outer": lambda x: x[:, :, None] * x[:, None, :],
    "constant": lambda x: x.detach(),
    "two": lambda x: (x.sin(), x.sum()),
    "in place": lambda x: x.clone().mul_(x),
    "expanded": lambda x: x[:, None].expand(-1, 2, 3) * 2,
}


def check_jacobians_of_functions_of_distributed_tensors(mesh):
    x = torch.randn(4, 3, dtype=torch.float64)
    # Over four processes one has no column, of which PyTorch takes no maximum.
    axes = (0, 1) if mesh.size() == 2 else (0,)
    for placements in ([Replicate()], *([Shard(axis)] for axis in axes)):
        distributed = distribute_tensor(x, mesh, placements)
        for name, function in FUNCTIONS.items():
            expected = leaves(torch.func.jacrev(function)(x))
            for transform in TRANSFORMS:
                found = leaves(transform(function)(distributed))
                assert all(isinstance(each, DTensor) for each in found), name
                assert_is(found, expected, name)


def check_batches_of_which_processes_have_different_parts(mesh):
    x = torch.randn(mesh.size() + 1, 3, dtype=torch.float64)
    batch = distribute_tensor(x, mesh, [Shard(0)])
    for name in ("sine and identity", "softmax over the batch", "joined", "Gram", "expanded"):
        expected = torch.func.jacrev(FUNCTIONS[name])(x)
        for transform in TRANSFORMS:
            assert_is(transform(FUNCTIONS[name])(batch), expected, name)


def check_zeros_stay_zeros_beside_infinite_entries(mesh):
    batch = distribute_tensor(torch.zeros(4, 3), mesh, [Shard(0)])
    expected = torch.eye(12).where(torch.eye(12) == 0, torch.inf).reshape(4, 3, 4, 3)
    for transform in TRANSFORMS:
        assert_is(transform(torch.log)(batch), expected)


def check_rows_of_a_batch_stay_where_they_are(mesh):
    x, w = torch.randn(4, 3), torch.randn(3, 2)
    batch = distribute_tensor(x, mesh, [Shard(0)])
    weight = distribute_tensor(w, mesh, [Replicate()])
    for transform, axis in ((pf.jacfwd, 0), (pf.jacrev, 2)):
        for _ in range(3):
            with CommDebugMode() as communication:
                jacobian = transform(lambda x: (x @ weight).tanh())(batch)
            assert not communication.get_total_counts()
            assert jacobian.placements == (Shard(axis),)
        assert_is(jacobian, torch.func.jacrev(lambda x: (x @ w).tanh())(x))


def check_other_transforms_of_distributed_tensors(mesh):
    x = torch.randn(4, 3, dtype=torch.float64)
    batch = distribute_tensor(x, mesh, [Shard(0)])

    def energy(x):
        return (x.sin() * x.sum(1, keepdim=True)).square().sum()

    gradient, hessian = torch.func.grad(energy)(x), torch.func.hessian(energy)(x)
    assert_is(pf.grad(energy)(batch), gradient)
    assert_is(pf.hessian(energy)(batch), hessian)
    assert_is(pf.jacfwd(pf.jacfwd(energy))(batch), hessian)
    product = torch.einsum("ijkl,kl->ij", hessian, x)
    assert_is(pf.hvp(energy, (batch,), (batch,))[1], [product])
    assert_is(pf.jvp(torch.sin, (batch,), (batch,))[1], x.cos() * x)
    assert_is(pf.vjp(torch.sin, batch)[1](batch), [x.cos() * x])
    assert_is(pf.linearize(torch.sin, batch)[1](batch), x.cos() * x)
    per_sample = torch.func.vmap(torch.func.jacrev(torch.sin))(x)
    for transform in TRANSFORMS:
        assert_is(torch.func.vmap(transform(torch.sin))(batch), per_sample)


def check_backward_through_jacobians_of_distributed_tensors(mesh):
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.func.grad(lambda x: torch.func.jacrev(torch.sin)(x).square().sum())(x)
    for transform in TRANSFORMS:
        batch = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
        transform(torch.sin)(batch).square().sum().backward()
        assert_is(batch.grad, expected)


def check_what_products_of_maps_would_get_wrong_is_refused(mesh):
    batch = distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)])
    for options in ({"mode": "cross"}, {"output": "csr"}):
        with raises(pf.UnsupportedError, "jacobian: .* distributed tensors"):
            pf.jacobian(torch.sin, **options)(batch)
    with raises(pf.UnsupportedError, "distributed tensors"):
        pf.pattern(torch.sin, batch)
    with raises(pf.UnsupportedError, "distributed tensors"):
        pf.jacobian_operator(torch.sin, batch).to_csr()


def check_implicit_replication_is_as_it_was(mesh):
    """It is one switch of the whole process, which the caller may have on."""
    from torch.distributed.tensor.experimental import implicit_replication

    batch, plain = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]), torch.ones(4, 3)
    pf.jacfwd(torch.sin)(batch)
    with raises(RuntimeError, r"mixed torch\.Tensor and DTensor"):
        batch + plain
    with implicit_replication():
        pf.jacfwd(torch.sin)(batch)
        assert_is(batch + plain, plain + plain)
