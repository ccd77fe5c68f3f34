"""Views, strides, and what joins and repeats."""

from fuzz.templates import Builder, Missing, step


def _shapes(size: int) -> list[tuple[int, ...]]:
    pairs = (
        [(k, size // k) for k in range(1, size + 1) if size % k == 0] if size else [(0, 3), (2, 0)]
    )
    return [(size,), *pairs, (1, size), (size, 1), *[(a, 1, c) for a, c in pairs]]


@step(3)
def reshaped(b: Builder) -> str:
    x = b.any()
    size = b.env[x].numel()
    shape = b.choose.choice(_shapes(size))
    return b.one(
        f"{x}.reshape({shape})",
        f"{x}.reshape(-1)",
        f"{x}.flatten()",
        f"{x}.contiguous().view({shape})",
        f"{x}.view({shape})",
        f"{x}.unflatten(-1, (-1, 1))",
        f"{x}.ravel()",
    )


@step(3)
def turned(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 1)
    first, second = b.axis(x), b.axis(x)
    order = list(range(b.dim(x)))
    b.choose.shuffle(order)
    return b.one(
        f"{x}.transpose({first}, {second})",
        f"{x}.permute({tuple(order)})",
        f"{x}.movedim({first}, {second})",
        f"{x}.mT",
        f"{x}.swapaxes({first}, {second})",
        f"{x}.diagonal()",
        f"{x}.rot90()",
    )


@step(4)
def sliced(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    index = b.one(
        "0",
        "-1",
        "1:",
        ":-1",
        "::2",
        "...",
        "None",
        "..., 0",
        "..., None",
        ":1",
        "..., ::2",
        "..., :0",
    )
    return f"{x}[{index}]"


@step(2)
def parts(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 1)
    axis = b.axis(x)
    return b.one(
        f"{x}.narrow({axis}, 0, 1)",
        f"{x}.select({axis}, 0)",
        f"{{0}}, *_ = {x}.chunk(2, {axis})",
        f"{{0}}, *_ = {x}.unbind({axis})",
        f"{{0}}, {{1}} = {x}.chunk(2, {axis})",
        f"{{0}}, {{1}} = {x}.unbind({axis})",
        f"{{0}}, {{1}} = {x}.split([1, {b.env[x].shape[axis] - 1}], {axis})",
        f"{{0}}, {{1}} = torch.tensor_split({x}, 2, {axis})",
    )


@step(2)
def stretched(b: Builder) -> str:
    x = b.any()
    shape = b.shape(x)
    if len(shape) > 2:
        raise Missing
    return b.one(
        f"{x}.expand({(2, *shape)})",
        f"{x}.unsqueeze({b.choose.randrange(-1, len(shape) + 1)})",
        f"{x}.squeeze()",
        f"{x}.repeat({(2,) * max(len(shape), 1)})",
        f"{x}.tile((2,))",
        f"torch.broadcast_to({x}, {(2, *shape)})",
        f"{x}.expand_as({b.any()})",
        f"torch.atleast_2d({x})",
        f"{x}.repeat_interleave(2)",
    )


@step(2)
def joined(b: Builder) -> str:
    x = b.any(lambda t: t.dim() < 3)
    y = b.any(lambda t: t.dim() == b.dim(x))
    if b.dim(x) == 0 or b.chance(0.3):
        y = b.pick(lambda t: t.shape == b.env[x].shape)
        return f"{b.one('torch.stack', 'torch.hstack', 'torch.vstack')}([{x}, {y}])"
    axis = b.axis(x)
    return b.one(f"torch.cat([{x}, {y}], {axis})", f"torch.cat([{y}, {x}, {x}], {axis})")


@step(1.5)
def moved(b: Builder) -> str:
    x = b.any(lambda t: 0 < t.dim() < 4)
    axis = b.axis(x)
    return b.one(
        f"{x}.flip({axis})",
        f"{x}.roll(1, {axis})",
        f"{x}.roll(1)",
        f"F.pad({x}, (1, 0))",
        f"F.pad({x}, (1, 1), value={b.number()})",
        f"{x}.unfold({axis}, 1, 1)",
        f"{x}.unfold({axis}, 2, 1)",
        f"F.pad({x}, (-1, 1))",
    )


@step(1)
def diagonal(b: Builder) -> str:
    x = b.any(lambda t: 0 < t.dim() < 3)
    if b.dim(x) == 1:
        return b.one(f"torch.diag({x})", f"torch.diag_embed({x}, 1)", f"torch.diagflat({x})")
    return b.one(
        f"{x}.tril()",
        f"{x}.triu(1)",
        f"torch.diag({x})",
        f"{x}.diagonal(1)",
        f"torch.block_diag({x}, {x})",
    )


@step(1)
def strided(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.is_contiguous() and t.numel() > 2)
    size = b.env[x].numel()
    x = b.one(f"({x} * 1)", f"{x}.clone()", x)
    return b.one(
        f"{x}.as_strided((2, {size - 1}), (1, 1))",
        f"{x}.as_strided(({size // 2},), (2,))",
        f"{x}.as_strided((2, {size // 2}), (0, 2), 1)",
        f"{x}.as_strided((), (), 1)",
    )


@step(0.7)
def grids(b: Builder) -> str:
    x = b.any(lambda t: t.dim() == 1)
    y = b.pick(lambda t: t.dim() == 1 and t.dtype == b.env[x].dtype)
    return b.one(
        f"{{0}}, {{1}} = torch.meshgrid({x}, {y}, indexing='ij')",
        f"torch.cartesian_prod({x}, {y})",
        f"torch.combinations({x})",
        f"{{0}}, {{1}} = torch.broadcast_tensors({x}, {y}[..., None])",
    )
