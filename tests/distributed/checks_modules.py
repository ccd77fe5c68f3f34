"""Modules under DistributedDataParallel, tensor-parallel ones, and shards of parameters, inside every transform."""

import copy

import torch
import torch.nn.functional as F
from comparing import assert_is, raises
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import pushforward as pf

TRANSFORMS = (pf.jacfwd, pf.jacrev, pf.jacobian)


class Transformer(nn.Module):
    """A block of one, with as many heads as there may be processes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (_heads(each(h)) for each in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
        x = x + self.o(mixed.transpose(0, 1).reshape(len(x), -1))
        return x + self.down(F.gelu(self.up(x)))


def _heads(tokens):
    return tokens.reshape(len(tokens), -1, 2).transpose(0, 1)


PLAN = {
    **{name: ColwiseParallel() for name in ("q", "k", "v", "up")},
    **{name: RowwiseParallel() for name in ("o", "down")},
}


def modules(mesh):
    """Return a plain module and the same one over several processes."""
    plain = Transformer().double()
    others = {"tensor-parallel": parallelize_module(copy.deepcopy(plain), mesh, PLAN)}
    if mesh.size() == 2:  # more processes change nothing in it
        others["DDP"] = DistributedDataParallel(copy.deepcopy(plain))
    return plain, others


def check_derivatives_by_inputs(mesh):
    plain, others = modules(mesh)
    x = torch.randn(3, 8, dtype=torch.float64)

    def loss(module):
        return lambda x: module(x).square().sum()

    expected, hessian = torch.func.jacrev(plain)(x), torch.func.hessian(loss(plain))(x)
    pattern = pf.pattern(plain, x)
    for name, module in others.items():
        for transform in TRANSFORMS:
            for _ in range(2):
                assert_is(transform(module)(x), expected, name)
        assert_is(pf.jacfwd(module, chunk_size=5)(x), expected, name)
        assert_is(pf.jacrev(module, memory_limit=10**9)(x), expected, name)
        assert_is(pf.jvp(module, (x,), (x,))[1], torch.func.jvp(plain, (x,), (x,))[1], name)
        assert_is(pf.vjp(module, x)[1](x), torch.func.vjp(plain, x)[1](x), name)
        batch = torch.randn(2, 3, 8, dtype=torch.float64)
        products = torch.einsum("ijkl,bkl->bij", expected, batch)
        assert_is(pf.linearize(module, x)[1].batched(batch), products, name)
        assert_is(pf.hessian(loss(module))(x), hessian, name)
        assert_is(pf.hvp(loss(module), (x,), (x,))[1], torch.einsum("ijkl,kl->ij", hessian, x))
        assert_is(pf.jacrev(pf.grad(loss(module)))(x), hessian, name)
        sparse = pf.jacobian(module, output="csr", pattern=pattern)(x)
        assert_is(sparse.to_dense().reshape(expected.shape), expected, name)
        assert str(pf.explain(module, x))


def check_compiled_modules(mesh):
    plain, others = modules(mesh)
    x = torch.randn(3, 8, dtype=torch.float64)
    for name, module in others.items():
        compiled = pf.compile(pf.jacfwd(module), backend="eager")
        for _ in range(3):
            assert_is(compiled(x), torch.func.jacrev(plain)(x), name)


def check_derivatives_by_parameters(mesh):
    plain, others = modules(mesh)
    x = torch.randn(3, 8, dtype=torch.float64)

    def of(module, key):
        return lambda p: functional_call(module, {key: p}, (x,))

    for name, module in others.items():
        parameters = dict(module.named_parameters())
        for key in ("norm.weight", "q.weight", "up.bias", "down.weight", "down.bias"):
            expected = torch.func.jacrev(of(plain, key))(plain.get_parameter(key))
            own = key if key in parameters else f"module.{key}"
            for transform in TRANSFORMS:
                found = transform(of(module, own))(parameters[own])
                assert_is(found, expected, f"{name}, {key}")


def check_backward_through_derivatives(mesh):
    plain, others = modules(mesh)
    x = torch.randn(3, 8, dtype=torch.float64)

    def slope(transform, module):
        x_ = x.clone().requires_grad_()
        size = transform(module)(x_).square().sum()
        weight = next(p for key, p in module.named_parameters() if key.endswith("up.weight"))
        return torch.autograd.grad(size, (x_, weight))

    expected = slope(torch.func.jacrev, plain)
    for name, module in others.items():
        for transform in TRANSFORMS:
            assert_is(slope(transform, module), expected, name)


def check_a_module_still_trains(mesh):
    plain, others = modules(mesh)
    x = torch.randn(3, 8, dtype=torch.float64)
    plain(x).square().sum().backward()
    for module in others.values():
        pf.jacfwd(module)(x)
        module(x).square().sum().backward()
        weight = next(p for key, p in module.named_parameters() if key.endswith("up.weight"))
        assert_is(weight.grad, plain.up.weight.grad)


def _shared_out(x, mesh):
    return DTensor.from_local(x, mesh, [Replicate()]).redistribute(placements=[Shard(0)])


def check_functions_that_distribute_by_themselves(mesh):
    def gram(x):
        rows = _shared_out(x, mesh)
        return (rows.sin() @ rows.redistribute(placements=[Replicate()]).t()).full_tensor()

    def in_parts(x):
        part = _shared_out(x, mesh).to_local().cos()  # another one in each process
        rows = DTensor.from_local(part, mesh, [Shard(0)], shape=x.shape, stride=x.stride())
        return rows.full_tensor()

    for count in (4, 5):
        x = torch.randn(count, 3, dtype=torch.float64)
        for transform in TRANSFORMS:
            expected = torch.func.jacrev(lambda x: x.sin() @ x.t())(x)
            assert_is(transform(gram)(x), expected)
            assert_is(transform(in_parts)(x), torch.func.jacrev(torch.cos)(x))


def check_parts_of_sums_are_refused_forward(mesh):
    def partial(x):
        return _shared_out(x, mesh).sum(0).to_local()

    with raises(pf.UnsupportedError, "to_local .* parts .* of a sum: got .* Redistribute it"):
        pf.jacfwd(partial)(torch.randn(4, 3))


def check_shards_of_parameters(mesh):
    plain = Transformer().double()
    sharded = copy.deepcopy(plain)
    fully_shard(sharded.up, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    x = torch.randn(3, 8, dtype=torch.float64)
    with raises(pf.UnsupportedError, "fully_shard: got .*set_reshard_after_forward"):
        pf.jacfwd(sharded)(x)
    sharded.set_reshard_after_forward(False)
    expected = torch.func.jacrev(plain)(x)
    for transform in TRANSFORMS:
        for _ in range(2):
            assert_is(transform(sharded)(x), expected)


def check_meshes_of_two_axes(mesh):
    if mesh.size() != 4:
        return
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    plain = Transformer().double()
    module = parallelize_module(copy.deepcopy(plain), both["model"], PLAN)
    x = torch.randn(4, 8, dtype=torch.float64)
    lying = distribute_tensor(x, both, [Shard(0), Shard(1)])
    for transform in TRANSFORMS:
        assert_is(transform(module)(x), torch.func.jacrev(plain)(x))
        expected = torch.func.jacrev(lambda x: x.sin() @ x.t())(x)
        assert_is(transform(lambda x: x.sin() @ x.t())(lying), expected)
