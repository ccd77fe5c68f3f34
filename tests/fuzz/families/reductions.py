"""Sums, products, norms, extrema, scans."""

from fuzz.templates import Builder, step


def _axes(b: Builder, x: str) -> str:
    if not b.dim(x) or b.chance(0.3):
        return ""
    if b.dim(x) > 1 and b.chance(0.25):
        first, second = b.choose.sample(range(b.dim(x)), 2)
        return f"({first}, {second})"
    return str(b.axis(x))


@step(3)
def total(b: Builder) -> str:
    x = b.any()
    axes = _axes(b, x)
    keep = ", keepdim=True" if axes and b.chance(0.4) else ""
    return f"{x}.{b.one('sum', 'mean')}({axes}{keep})"


@step(1)
def spread(b: Builder) -> str:
    x = b.real(lambda t: t.numel() > 1)
    axes = _axes(b, x)
    name = b.one("var", "std")
    return f"{x}.{name}({axes or 'None'}, unbiased={b.chance(0.5)})"


@step(1.5)
def extreme(b: Builder) -> str:
    x = b.real(lambda t: t.numel() > 0 and t.dim() > 0)
    axis = b.axis(x)
    return b.one(
        f"{x}.amax({axis})",
        f"{x}.amin({axis}, keepdim=True)",
        f"{x}.max({axis}).values",
        f"{x}.min({axis})[0]",
        f"{x}.max()",
        f"{x}.median({axis}).values",
        f"torch.aminmax({x}, dim={axis}).max",
        f"{x}.median()",
        f"{x}.kthvalue(1, {axis})[0]",
        f"{x}.quantile({b.number(0.1, 0.9)}, dim={axis})",
        f"{x}.nanmedian()",
        f"torch.mode({x}, {axis})[0]",
    )


@step(1)
def norm(b: Builder) -> str:
    x = b.any(lambda t: t.numel() > 0 and t.dim() > 0)
    axis = b.axis(x)
    return b.one(
        f"{x}.norm()",
        f"torch.linalg.vector_norm({x}, {b.number(0.5, 3)}, dim={axis})",
        f"torch.linalg.vector_norm({x}, {b.one(1, 2, 3)}, dim={axis}, keepdim=True)",
        f"torch.norm({x}, p=float('inf'), dim={axis})",
        f"F.normalize({x}, dim={axis})",
        f"torch.renorm({x}, 2, {axis % b.dim(x)}, 1.5)",
        f"torch.dist({x}, {b.like(x)})",
    )


@step(1)
def product(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0)
    axis = b.axis(x)
    return b.one(f"{x}.prod({axis})", f"{x}.prod()", f"{x}.cumprod({axis})")


@step(1.5)
def scan(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    axis = b.axis(x)
    return b.one(
        f"{x}.cumsum({axis})",
        f"{x}.cummax({axis})[0]",
        f"{x}.cummin({axis}).values",
        f"{x}.logcumsumexp({axis})",
        f"torch.diff({x}, dim={axis})",
        f"torch.trapezoid({x}, dim={axis})",
        f"torch.cumulative_trapezoid({x}, dim={axis})",
        f"torch.gradient({x}, dim={axis})[0]",
    )


@step(1.5)
def softened(b: Builder) -> str:
    x = b.real(lambda t: t.dim() > 0 and t.numel() > 0)
    axis = b.axis(x)
    return b.one(
        f"{x}.softmax({axis})",
        f"{x}.log_softmax({axis})",
        f"{x}.logsumexp({axis})",
        f"F.softmin({x}, {axis})",
        f"torch.logsumexp({x}, {axis}, keepdim=True)",
    )


@step(1)
def ordered(b: Builder) -> str:
    x = b.real(lambda t: t.dim() > 0 and t.numel() > 0)
    axis = b.axis(x)
    return b.one(
        f"{x}.sort({axis})[0]",
        f"{x}.sort({axis}, descending=True).values",
        f"{x}.topk(1, {axis})[0]",
        f"{x}.msort()",
        f"{x}.gather({axis}, {x}.argsort({axis}))",
        f"{x}.take({x}.argmax())",
    )


@step(0.5)
def losses(b: Builder) -> str:
    x = b.real(lambda t: t.numel() > 0)
    y = b.like(x)
    reduction = b.one("mean", "sum", "none")
    name = b.one(
        "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "kl_div"
    )
    return f"F.{name}({x}, {y}, reduction='{reduction}')"


@step(0.5)
def probabilities(b: Builder) -> str:
    x = b.real(lambda t: t.numel() > 0)
    y = b.like(x)
    return b.one(
        f"F.binary_cross_entropy_with_logits({x}, torch.sigmoid({y}))",
        f"F.binary_cross_entropy(torch.sigmoid({x}), torch.sigmoid({y}))",
        f"F.gaussian_nll_loss({x}, {y}, {x}.square() + 0.5)",
    )


@step(0.5)
def classes(b: Builder) -> str:
    x = b.matrix(lambda t: t.numel() > 0)
    rows, columns = b.shape(x)
    target = [b.choose.randrange(columns) for _ in range(rows)]
    return b.one(
        f"F.cross_entropy({x}, torch.tensor({target}))",
        f"F.nll_loss({x}.log_softmax(1), torch.tensor({target}))",
        f"F.cross_entropy({x}, {b.like(x)}.softmax(1), label_smoothing=0.1)",
    )
