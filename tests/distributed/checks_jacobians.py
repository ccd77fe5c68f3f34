"""One Jacobian shared out over processes; Gauss-Newton matrices of residuals in several; batches in several."""

import itertools

import torch
from comparing import assert_is, raises
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.func import functional_call

import pushforward as pf
from pushforward import distributed as pfd

SHARES = ("rows", "columns")
x53 = torch.arange(15, dtype=torch.float64).reshape(5, 3).sin()


def mixed(x):
    return (x @ x.t()).tanh()[:, :3].roll(1, 0)


def trees(x, y):
    return {"a": x["w"].sin() * y, "b": (x["w"].sum(), (y * x["b"]).cumsum(0))}


def check_dense_jacobians(mesh):
    expected = torch.func.jacrev(mixed)(x53)
    for share, mode in itertools.product(SHARES, ("auto", "forward", "reverse", "cross")):
        jacobian = pfd.jacobian(mixed, mesh=mesh, share=share, mode=mode)
        for _ in range(3):
            with CommDebugMode() as communication:
                found = jacobian(x53)
            assert not communication.get_total_counts()
            assert_is(found, expected, f"{share}, {mode}")
        best = (
            0 if mesh.size() == 2 else 1
        )  # of five rows the largest share is two, of three columns one
        assert found.placements == (Shard(best if share == "rows" else 2 + best),)
        assert found.to_local().numel() < expected.numel()
        for options in ({"chunk_size": 2}, {"memory_limit": 10**8}):
            if mode != "cross":
                found = pfd.jacobian(mixed, mesh=mesh, share=share, mode=mode, **options)(x53)
                assert_is(found, expected, f"{share}, {mode}, {options}")


def check_the_axis_that_shares_best_is_taken(mesh):
    wide = torch.randn(2, 40, dtype=torch.float64)
    found = pfd.jacobian(torch.sin, mesh=mesh, share="columns")(wide)
    assert found.placements == (Shard(3),)
    assert_is(found, torch.func.jacrev(torch.sin)(wide))


def check_trees_and_arguments(mesh):
    x = {"w": torch.randn(3, dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}
    y = torch.randn(3, dtype=torch.float64)
    for share, argnums in itertools.product(SHARES, (0, 1, (0, 1), (1, 0), -1)):
        expected = torch.func.jacrev(trees, argnums)(x, y)
        assert_is(pfd.jacobian(trees, argnums, mesh=mesh, share=share)(x, y), expected)

    def with_more(x, scale, *, power):
        return (x * scale) ** power, {"norm": x.norm(), "name": "aux"}

    for share in SHARES:
        found, aux = pfd.jacobian(with_more, mesh=mesh, share=share, has_aux=True)(y, 2, power=3)
        assert_is(found, torch.func.jacrev(lambda y: (y * 2) ** 3)(y))
        assert_is(aux["norm"], y.norm())
        assert aux["name"] == "aux"


def check_complex_numbers_and_dtypes(mesh):
    z = torch.randn(5, dtype=torch.complex128)
    single = torch.randn(5)
    for share in SHARES:
        for function, point in (
            (lambda z: z**2, z),
            (lambda z: z.abs(), z),
            (torch.Tensor.double, single),
        ):
            found = pfd.jacobian(function, mesh=mesh, share=share)(point)
            assert_is(found, pf.jacfwd(function)(point))
            sparse = pfd.jacobian(function, mesh=mesh, share=share, output="csr")(point)
            dense = pf.jacobian(function, output="csr")(point).to_dense()
            assert_is(sparse.to_dense(), dense)
            v, w = (torch.randn(n, dtype=dense.dtype) for n in reversed(dense.shape))
            assert_is(sparse @ v, dense @ v)
            assert_is(sparse.H @ w, dense.mH @ w)
            assert_is(sparse.T @ w, dense.mT @ w)


def check_sizes_that_leave_processes_without_a_share(mesh):
    for size in (0, 1, 3):
        x = torch.randn(size, dtype=torch.float64)
        for share, output in itertools.product(SHARES, ("dense", "csr")):
            found = pfd.jacobian(torch.sin, mesh=mesh, share=share, output=output)(x)
            found = found.to_dense() if output == "csr" else found
            assert_is(found, torch.diag(x.cos()), f"{size}, {share}")


def stencil(x):
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return x.sin() * x + around**2


def check_sparse_jacobians(mesh):
    x = torch.randn(6, 5, dtype=torch.float64)
    dense = torch.func.jacrev(stencil)(x).reshape(30, 30)
    v, w = torch.randn(30, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    pattern = pf.pattern(stencil, x)
    for share, output, given in itertools.product(SHARES, ("csr", "csc", "coo"), (None, pattern)):
        jacobian = pfd.jacobian(stencil, mesh=mesh, share=share, output=output, pattern=given)
        for _ in range(2):
            with CommDebugMode() as communication:
                found = jacobian(x)
            assert not communication.get_total_counts()
            what = f"{share}, {output}, {given}"
            assert found.shape == (30, 30), what
            axis = 0 if share == "rows" else 1
            assert_is(found.local.to_dense(), dense.index_select(axis, found.positions), what)
            assert len(found.positions) < 30, what
        assert_is(found.to_dense(), dense, what)
        assert_is(found.to_csr().to_dense(), dense, what)
        assert_is(found @ v, dense @ v, what)
        assert_is(found.T @ w, dense.T @ w, what)
        assert_is(found.gram() @ v, dense.T @ dense @ v, what)
        assert_is(found.gram().to_dense(), dense.T @ dense, what)


def check_colours_are_shared_out(mesh):
    x = torch.randn(6, 5, dtype=torch.float64)
    pattern = pf.pattern(stencil, x)
    count = pf.coloring(pattern).num_colors
    products = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, cotangent):
            products.append(1)
            return cotangent

    found = pfd.jacobian(
        lambda x: Counted.apply(stencil(x)), mesh=mesh, share="rows", output="csr", pattern=pattern
    )
    found(x)
    colors = pf.coloring(pattern, structure="row").row_colors
    assert len(colors[found(x).positions].unique()) <= -(-count // mesh.size())


def check_backward_through_shared_jacobians(mesh):
    def size_of(jacobian):
        if isinstance(jacobian, pfd.ShardedMatrix):
            jacobian = jacobian.to_dense()
        whole = jacobian.full_tensor() if isinstance(jacobian, DTensor) else jacobian
        return (whole * torch.arange(whole.numel()).reshape(whole.shape).sin()).square().sum()

    def scaled(x, s):
        return mixed(x) * s**2

    point = (x53, torch.tensor(0.7, dtype=torch.float64))

    def slopes(jacobian, arguments):
        return torch.autograd.grad(size_of(jacobian(*arguments)), arguments)

    for argnums in (0, 1):  # the second has no axis: the same in every process
        whole = torch.func.jacrev(scaled, argnums)
        expected = slopes(whole, [t.clone().requires_grad_() for t in point])
        for share in SHARES:
            jacobian = pfd.jacobian(scaled, argnums, mesh=mesh, share=share)
            assert_is(slopes(jacobian, [t.clone().requires_grad_() for t in point]), expected)
            lying = [distribute_tensor(t, mesh, [Replicate()]).requires_grad_() for t in point]
            assert_is(slopes(jacobian, lying), expected)

    def half_linear(x):  # some processes have rows that do not depend on the point
        return torch.cat([2 * x.reshape(-1), x.reshape(-1).square()])

    expected = slopes(torch.func.jacrev(half_linear), [x53.clone().requires_grad_()])
    for output in ("dense", "csr"):
        jacobian = pfd.jacobian(half_linear, mesh=mesh, share="rows", output=output)
        x = x53.clone().requires_grad_()
        assert_is(slopes(jacobian, [x]), expected)

    def with_aux(x):
        return x.sin(), x.square().sum()

    x = x53.clone().requires_grad_()
    found, aux = pfd.jacobian(with_aux, mesh=mesh, share="rows", has_aux=True)(x)
    assert_is(torch.autograd.grad(aux + 0 * found.full_tensor().sum(), x), 2 * x53)


def check_gauss_newton_matrices(mesh):
    torch.manual_seed(3)
    inputs, targets = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    mine = torch.arange(7).tensor_split(mesh.size())[mesh.get_local_rank()]

    def residuals(parameters, which):
        return functional_call(network, parameters, (inputs[which],)) - targets[which]

    losses = (None, lambda y: (y**4).sum())
    for loss in losses:
        whole = pf.gauss_newton_operator(residuals, parameters, slice(None), loss=loss)
        found = pfd.gauss_newton_operator(residuals, parameters, mine, mesh=mesh, loss=loss)
        assert_is((found.value, found.gradient), (whole.value, whole.gradient))
        vectors = torch.randn(found.shape[1], 3, dtype=torch.float64)
        assert_is(found @ vectors, whole @ vectors)
        assert_is(found.add_diagonal(0.1) @ vectors[:, 0], whole.add_diagonal(0.1) @ vectors[:, 0])
        assert_is(found @ parameters, whole @ parameters)
        assert_is(found.to_dense(), whole.to_dense())
        with CommDebugMode() as communication:
            found @ vectors[:, 0]
        assert communication.get_total_counts() == 1
    with raises(pf.UnsupportedError, "gauss_newton_operator: to_csr: got .* J.gram"):
        found.to_csr()


def check_vmap(mesh):
    count = 4 * mesh.size() - 1
    x, w = torch.randn(count, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    lying = distribute_tensor(x, mesh, [Shard(0)])

    def network(x, w):
        return (x @ w).tanh()

    expected = torch.func.vmap(torch.func.jacrev(network), (0, None))(x, w)
    for transform in (pf.jacfwd, pf.jacrev, pf.jacobian):
        mapped = pfd.vmap(transform(network), (0, None))
        for _ in range(3):
            with CommDebugMode() as communication:
                found = mapped(lying, w)
            assert not communication.get_total_counts()
            assert found.placements == (Shard(0),)
            assert_is(found, expected)
    assert_is(
        pfd.vmap(pf.grad(lambda t: t["x"].prod()))({"x": lying}),
        torch.func.vmap(torch.func.grad(torch.prod))(x),
    )
    turned = distribute_tensor(x.t().contiguous(), mesh, [Shard(1)])
    found = pfd.vmap(torch.sin, 1, out_dims=1, chunk_size=2)(turned)
    assert found.placements == (Shard(1),)
    assert_is(found, x.t().sin())

    def slope(mapped, x, w):
        return torch.autograd.grad(mapped(x, w).square().sum(), (x, w))

    reference = slope(
        torch.func.vmap(torch.func.jacrev(network), (0, None)),
        x.requires_grad_(),
        w.requires_grad_(),
    )
    for weight in (w, distribute_tensor(w.detach(), mesh, [Replicate()]).requires_grad_()):
        assert_is(slope(mapped, lying.detach().requires_grad_(), weight), reference)


def check_meshes_of_several_axes(mesh):
    if mesh.size() != 4:
        return
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    expected = torch.func.jacrev(mixed)(x53)
    for share in SHARES:
        assert_is(pfd.jacobian(mixed, mesh=both, share=share)(x53), expected)
        assert_is(pfd.jacobian(mixed, mesh=both["b"], share=share)(x53), expected)
        sparse = pfd.jacobian(mixed, mesh=both, share=share, output="csr")(x53)
        assert_is(sparse.to_csr().to_dense().reshape(expected.shape), expected)
    x = distribute_tensor(torch.randn(5, 3), both, [Shard(0), Replicate()])
    found = pfd.vmap(pf.jacrev(torch.sin))(x)
    assert found.placements == (Shard(0), Replicate())
    assert_is(found, torch.func.vmap(torch.func.jacrev(torch.sin))(x.full_tensor()))


def check_a_process_outside_the_mesh_is_told(mesh):
    if mesh.size() != 4:
        return
    half = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))["b"]
    from torch.distributed.device_mesh import DeviceMesh

    pair = DeviceMesh("cpu", [0, 1])
    if mesh.get_rank() > 1:
        with raises(ValueError, "distributed.jacobian: mesh: got .* no part"):
            pfd.jacobian(torch.sin, mesh=pair, share="rows")
    assert half.size() == 2


def check_other_transforms_around_are_refused(mesh):
    x = torch.ones(6)
    shared = pfd.jacobian(torch.sin, mesh=mesh, share="rows")
    for around in (
        pf.grad(lambda x: shared(x).full_tensor().sum()),
        torch.func.grad(lambda x: shared(x).full_tensor().sum()),
        torch.func.vmap(lambda x: shared(x[None])),
    ):
        with raises(pf.UnsupportedError, "distributed.jacobian: .* another transform .*autograd"):
            around(x)


def check_errors(mesh):
    x = torch.ones(8)
    with raises(ValueError, "distributed.jacobian: share: got 'cells', expected one of"):
        pfd.jacobian(torch.sin, mesh=mesh, share="cells")
    with raises(ValueError, "distributed.jacobian: output: got 'auto', expected one of"):
        pfd.jacobian(torch.sin, mesh=mesh, share="rows", output="auto")
    with raises(ValueError, "distributed.jacobian: output: got 'dense' with a pattern"):
        pfd.jacobian(torch.sin, mesh=mesh, share="rows", pattern=torch.eye(8))
    with raises(ValueError, "distributed.jacobian: pattern: got .5, 5., expected .8, 8."):
        pfd.jacobian(torch.sin, mesh=mesh, share="rows", output="csr", pattern=torch.eye(5))(x)
    shard = distribute_tensor(x, mesh, [Shard(0)])
    with raises(
        ValueError, "distributed.jacobian: an argument that is a DTensor: got .*redistribute"
    ):
        pfd.jacobian(torch.sin, mesh=mesh, share="rows")(shard)
    with raises(
        TypeError, "distributed.vmap: argument 0 .*: got a plain tensor, .*distribute_tensor"
    ):
        pfd.vmap(torch.sin)(x)
    with raises(ValueError, r"distributed.vmap: argument 0 .*: got .*redistribute\(placements"):
        pfd.vmap(torch.sin)(distribute_tensor(x, mesh, [Replicate()]))
    with raises(ValueError, "distributed.vmap: argument 1 .*: got 12 samples .*, expected 8"):
        pfd.vmap(torch.add)(shard, distribute_tensor(torch.ones(12), mesh, [Shard(0)]))
    with raises(ValueError, "distributed.vmap: argument 0 .*: got 1 samples, .* pad the batch"):
        pfd.vmap(torch.sin)(distribute_tensor(torch.ones(1), mesh, [Shard(0)]))
    with raises(ValueError, "distributed.vmap: in_dims: got .* for 1 arguments"):
        pfd.vmap(torch.sin, (0, 0))(shard)
    with raises(ValueError, "distributed.vmap: in_dims: got no argument with a batch"):
        pfd.vmap(torch.sin, (None,))(x)
    with raises(TypeError, "distributed.gauss_newton_operator: mesh: got NoneType"):
        pfd.gauss_newton_operator(torch.sin, x, mesh=None)
