"""Custom autograd functions, and transforms of torch.func inside the function."""

from fuzz.templates import Builder, step

NAMES = (
    "Sine", "Doubling", "Cubing", "Scaling", "Splitting", "InPlace", "OnceDifferentiable", "WithSetup", "WithVmap",
    "KeepingNumbers", "Ignoring", "Straight",
)  # fmt: skip


@step(2)
def custom(b: Builder) -> str:
    name = b.one(*NAMES)
    x = b.real()
    if name == "Scaling":
        return f"Functions.Scaling.apply({x}, {b.number()})"
    if name == "Splitting":
        return f"{{0}}, {{1}} = Functions.Splitting.apply({x}, {b.like(x)})"
    if name == "InPlace":
        return f"{{0}} = Functions.InPlace.apply({x} * 1)"
    if name == "Ignoring":
        return f"{{0}} = Functions.Ignoring.apply({x}, {b.like(x)})"
    return f"Functions.{name}.apply({x})"


@step(1)
def transformed(b: Builder) -> str:
    """Differentiate inside the function."""
    x = b.real(lambda t: t.numel() < 7)
    lib = b.one("P", "torch.func")
    return b.one(
        f"{lib}.grad(lambda t: (t.sin() * t).abs().sum())({x})",
        f"{lib}.jacrev(lambda t: t.sin() * 2)({x}).sum()",
        f"{lib}.jacfwd(lambda t: (t * t).sum())({x})",
        f"{lib}.jvp(lambda t: t ** 3, ({x},), (torch.ones_like({x}),))[1]",
        f"{lib}.vjp(lambda t: t ** 3, {x})[1]({x})[0]",
        f"torch.func.vmap(lambda t: t * t.sin())({x}[None])[0]",
        f"{lib}.grad(lambda t: (t * {b.like(x)}).sin().abs().sum())({x})",
        f"{lib}.hessian(lambda t: (t ** 3).abs().sum())({x}).sum()",
        f"P.jacobian(lambda t: t.cos())({x}).sum(0)",
    )
