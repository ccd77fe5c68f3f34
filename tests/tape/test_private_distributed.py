"""What we expect of the private names of ``torch.distributed.tensor``: a new PyTorch breaks here.

One process is a group, too.
"""

import subprocess
import sys

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pushforward.tape import private_distributed as private


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    file = tmp_path_factory.mktemp("group") / "meeting"
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_tensors_module_is_what_was_imported():
    assert private.tensors_module() is sys.modules["torch.distributed.tensor"]
    code = "import pushforward.tape.private_distributed as p; print(p.tensors_module())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"


def test_nodes_at_the_boundary_are_known_by_their_functions(mesh):
    x = torch.ones(4, 3, requires_grad=True)
    made = DTensor.from_local(x, mesh, [Shard(0)])
    moved = made.redistribute(placements=[Replicate()])
    taken = moved.to_local(grad_placements=[Shard(1)])
    kinds = [private.boundary_kind(t.grad_fn._forward_cls) for t in (made, moved, taken)]
    assert kinds == ["from_local", "identity", "to_local"]
    assert private.boundary_kind(torch.autograd.Function) is None
    assert private.made_by(made.grad_fn) == (mesh, (Shard(0),), None)
    assert private.taken_from(taken.grad_fn) == (mesh, (Replicate(),), (Shard(1),))


def test_plain_tensors_replicated(mesh):
    sharded = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    with private.plain_tensors_replicated(), private.plain_tensors_replicated():
        assert torch.equal((sharded + torch.ones(4)).full_tensor(), torch.full((4,), 2.0))
    with pytest.raises(RuntimeError, match="mixed"):
        sharded + torch.ones(4)


def test_waited_for(mesh):
    moved = distribute_tensor(torch.ones(4), mesh, [Shard(0)]).redistribute(
        placements=[Replicate()]
    )
    local = private.waited_for(moved.to_local())
    assert type(local) is torch.Tensor
    assert private.waited_for(local) is local


def test_is_freed():
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    assert private.is_freed(freed)
    assert not any(map(private.is_freed, (torch.ones(4), torch.ones(0), torch.ones(2).to_sparse())))


def test_hooks_of_fully_shard_are_housekeeping(mesh):
    from torch.distributed.fsdp import fully_shard

    module = torch.nn.Linear(3, 2)
    fully_shard(module, mesh=mesh)
    y = module(torch.ones(4, 3, requires_grad=True))
    hooks = list(y._backward_hooks.values())
    assert hooks
    assert all(map(private.is_housekeeping, hooks))
    assert not private.is_housekeeping(print)
    assert private.boundary_kind(y.grad_fn.next_functions[1][0]._forward_cls) == "identity"
