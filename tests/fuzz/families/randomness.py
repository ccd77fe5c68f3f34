"""Random numbers from the default generator, and from one of the function's own."""

from fuzz.templates import Builder, step


@step(1, is_random=True)
def drawn(b: Builder) -> str:
    x = b.real()
    return b.one(
        f"{x} * torch.rand_like({x})",
        f"{x} + torch.randn({b.shape(x)}, dtype={x}.dtype)",
        f"F.dropout({x}, 0.4, training=True)",
        f"torch.normal({x}, 0.5)",
        f"{x} * torch.bernoulli(torch.full_like({x}, 0.5))",
        f"torch.empty_like({x}).uniform_(0.5, 1) * {x}",
        f"{x} * torch.randint(3, {b.shape(x)})",
        f"torch.distributions.Normal({x}, 0.5).rsample()",
        f"torch.distributions.Exponential({x}.abs() + 0.5).rsample()",
        f"F.rrelu({x}, training=True)",
        f"F.gumbel_softmax({x}[None], dim=0)",
        f"torch.distributions.Gamma({x}.abs() + 1, {x}.abs() + 0.5).rsample()",
        f"F.dropout({x} * 1, 0.3, training=True, inplace=True)",
    )


@step(0.4)
def own(b: Builder) -> str:
    x = b.real()
    shape = b.shape(x)
    return f"{x} * torch.rand({shape}, generator=torch.Generator().manual_seed({b.choose.randrange(9)}), dtype={x}.dtype)"
