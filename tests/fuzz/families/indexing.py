"""Index reads and functional index writes."""

from fuzz.templates import Builder, Missing, step


def _indices(b: Builder, bound: int, count: int) -> list[int]:
    if not bound:
        raise Missing
    return [b.choose.randrange(bound) for _ in range(count)]


@step(3)
def read(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    shape = b.shape(x)
    index = _indices(b, shape[0], b.one(1, 2, 3))
    options = [
        f"{x}[{index}]",
        f"{x}[torch.tensor({index})]",
        f"{x}[torch.tensor({index})[:, None]]",
        f"{x}[[{index[0]}]]",
        f"{x}[torch.tensor({index[0]})]",
        f"{x}.index_select(0, torch.tensor({index}))",
        f"{x}[torch.arange({shape[0]}) % 2 == 0]",
        f"{x}.take(torch.tensor({index}))",
        f"torch.take_along_dim({x}, {x}.abs().argsort(0), 0)",
    ]
    if len(shape) > 1:
        other = _indices(b, shape[1], len(index))
        options += [
            f"{x}[{index}, {other}]",
            f"{x}[:, {other}]",
            f"{x}[torch.tensor({index})[:, None], torch.tensor({other})]",
            f"{x}[{index}, ..., 0]",
        ]
    return b.choose.choice(options)


@step(1.5)
def by_values(b: Builder) -> str:
    x = b.real(lambda t: t.numel() > 0)
    return b.one(
        f"{x}[{x} > {b.number(-1, 1)}]",
        f"{x}.masked_select({x} < {b.number(0, 1)})",
        f"{x}[{x} > {b.number(-1, 1)}].sum()",
        f"{x}[({x} * {x} > 0.1).nonzero(as_tuple=True)]",
        f"{x}.flatten()[{x}.flatten().argsort()]",
    )


@step(1)
def gathered(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    axis = b.axis(x)
    return f"{x}.gather({axis}, torch.zeros({b.shape(x)}, dtype=torch.long))"


@step(2)
def written(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    y = b.like(x)
    axis = b.axis(x)
    bound = b.env[x].shape[axis]
    index = _indices(b, bound, bound)
    unique = b.choose.sample(range(bound), bound)
    mode = b.one("sum", "mean", "prod", "amax", "amin")
    return b.one(
        f"{x}.index_add({axis}, torch.tensor({index}), {y})",
        f"{x}.index_add({axis}, torch.tensor({index}), {y}, alpha={b.number()})",
        f"{x}.index_copy({axis}, torch.tensor({unique}), {y})",
        f"{x}.index_fill({axis}, torch.tensor({index}), {b.number()})",
        f"{x}.index_put((torch.tensor({_indices(b, b.shape(x)[0], 2)}),), {y}[:1], accumulate=True)",
        f"{x}.scatter({axis}, torch.zeros({b.shape(x)}, dtype=torch.long).narrow({axis}, 0, 1), {y})",
        f"{x}.scatter_add({axis}, torch.zeros({b.shape(x)}, dtype=torch.long), {y})",
        f"{x}.scatter_reduce({axis}, torch.zeros({b.shape(x)}, dtype=torch.long), {y}, '{mode}')",
        f"torch.masked_scatter({x}, {y}.abs() > 0.5, {y})",
        f"{x}.select_scatter({y}.select({axis}, 0), {axis}, -1)",
        f"{x}.slice_scatter({y}.narrow({axis}, 0, 1), {axis}, 0, 1)",
        f"{x}.index_reduce({axis}, torch.tensor({index}), {y}, '{b.one('prod', 'mean', 'amax', 'amin')}')",
        f"torch.put({x}, torch.tensor({_indices(b, b.env[x].numel(), 1)}), {y}.flatten()[:1], accumulate=True)",
    )


@step(0.7)
def looked_up(b: Builder) -> str:
    x = b.matrix(lambda t: t.numel() > 0)
    index = _indices(b, b.shape(x)[0], 3)
    return b.one(
        f"F.embedding(torch.tensor({index}), {x})",
        f"F.embedding_bag(torch.tensor({index}), {x}, torch.tensor([0, 1]), mode='{b.one('sum', 'mean', 'max')}')",
    )
