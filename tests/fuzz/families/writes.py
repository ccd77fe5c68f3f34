"""In-place operators, index writes, writes through views, out=, writes to inputs and to captured tensors."""

from fuzz.templates import Builder, Missing, step

IN_PLACE = (
    "sin_()", "mul_({n})", "add_({n})", "tanh_()", "neg_()", "zero_()", "fill_({n})", "mul_({y})", "add_({y})",
    "copy_({y})", "sub_({y}, alpha={n})", "div_({y}.abs() + 1)", "addcmul_({y}, {y})", "lerp_({y}, 0.3)", "sigmoid_()",
    "exp_()", "square_()", "clamp_(-0.8, 0.9)", "masked_fill_({y} > 0, {n})", "abs_()", "relu_()", "floor_()",
    "pow_(2)", "atan_()", "cos_()", "addcdiv_({y}, {y}.abs() + 1)", "tril_()", "cumsum_(0)",
    "index_add_(0, torch.tensor([0]), {y}[:1])", "index_fill_(0, torch.tensor([0]), {n})",
    "scatter_(0, torch.zeros_like({y}, dtype=torch.long)[:1], {y})", "fill_diagonal_({n})", "rsqrt_()", "t_()",
    "transpose_(0, -1)", "unsqueeze_(0)", "squeeze_()", "swapaxes_(0, -1)", "index_copy_(0, torch.tensor([0]), {y}[:1])",
    "atan2_({y})", "hypot_({y})", "erf_()", "sinh_()", "xlogy_({y}.abs() + 0.2)",
)  # fmt: skip
PARTS = (
    "[0]",
    "[1:]",
    "[::2]",
    "[-1]",
    "[..., 0]",
    "[..., 1:]",
    "[...]",
    "[:1]",
    "[None]",
    "[torch.tensor([0])]",
    "[[-1]]",
)
FRESH = ("torch.zeros_like({x})", "{x}.clone()", "{x} * 1", "torch.empty_like({x}).copy_({x})", "{x}.new_zeros({s})", "{x}.new_ones({s})")  # fmt: skip


def _call(b: Builder, x: str) -> str:
    method = b.one(*IN_PLACE)
    y = b.like(x) if "{y}" in method else ""
    return f".{method}".replace("{y}", y).replace("{n}", b.number())


@step(4)
def in_place(b: Builder) -> str:
    x = b.any()
    return f"{x}{_call(b, x)}\n{{0}} = {x} * 1"


@step(2)
def fresh(b: Builder) -> str:
    x = b.any()
    made = b.one(*FRESH).replace("{x}", x).replace("{s}", str(b.shape(x)))
    return f"{{0}} = {made}\n{{0}}{_call(b, x)}"


@step(4)
def part(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    where = b.one(*PARTS)
    return b.one(
        f"{{0}} = {x}.clone()\n{{0}}{where} = {b.like(x)}{where} * {b.number()}",
        f"{{0}} = torch.zeros_like({x})\n{{0}}{where} = {x}{where}",
        f"{{0}} = torch.zeros_like({x})\n{{0}}{where} += {x}{where}\n{{0}}{b.one(*PARTS)} *= {b.number()}",
        f"{x}{where} = {b.number()}\n{{0}} = {x}.sin()",
        f"{{0}} = {x}.clone()\n{{0}}{where}.copy_({b.like(x)}{where})",
        f"{{0}} = {x} + 0\n{{1}} = {{0}}{where}\n{{1}}.mul_({b.number()})",
        f"{{0}} = {x} * 1\n{{0}}[{{0}} > 0] = {b.number()}",
        f"{{0}} = {x} * 1\n{{0}}[{{0}} > 0] *= {b.number()}",
        f"{{0}} = {x} + 0\n{{1}} = {{0}}{where}\n{{0}}.mul_({b.like(x)})",
    )


@step(1.5)
def through_view(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 1 and t.numel() > 0)
    view = b.one(
        ".t()",
        "[0]",
        ".diagonal()",
        ".select(-1, 0)",
        ".unbind()[0]",
        ".view(-1)",
        ".mT",
        ".flatten()",
        ".expand_as({x})",
    )
    view = view.replace("{x}", x)
    return f"{{0}} = {x} * 1\n{{1}} = {{0}}{view}\n{{1}}{b.one('.sin_()', '.mul_(2.5)', '.zero_()', '.add_({1})', '.copy_({1} * {1})')}"


@step(1)
def out(b: Builder) -> str:
    x = b.any()
    y = b.like(x)
    name = b.one("mul", "add", "sub")
    target = b.one(f"torch.empty_like({x})", f"torch.zeros_like({x})", f"{x}.clone()")
    return b.one(
        f"{{0}} = {target}\ntorch.{name}({x}, {y}, out={{0}})",
        f"{{0}} = {target}\ntorch.sin({x}, out={{0}})",
        f"{{0}} = torch.{name}({x}, {y}, out={target})",
        f"{{0}} = torch.empty(0, dtype={x}.dtype)\ntorch.cat([{x}.flatten(), {y}.flatten()], out={{0}})",
    )


@step(1)
def captured(b: Builder) -> str:
    """Write to a tensor from outside."""
    x = b.any(lambda t: t.dim() < 3)
    c = b.declare("c", f"{{0}} = {b.literal(b.shape(x), b.env[x].dtype)}")
    return b.one(
        f"{c}.copy_({x})\n{{0}} = {c} * {b.number()}",
        f"{c}.mul_(0.5).add_({x})\n{{0}} = {c}.sin()",
        f"{c}.add_({b.number()})\n{{0}} = {x} * {c}",
        f"{c}{_call(b, x)}\n{{0}} = {c} + {x}",
        f"{{0}} = {x} * {c}\n{c}.add_(0.1)",
        f"torch.mul({x}, {b.number()}, out={c})\n{{0}} = {c} * {x}",
    )


@step(0.7)
def captured_part(b: Builder) -> str:
    x = b.any(lambda t: 0 < t.dim() < 3 and t.numel() > 0)
    c = b.declare("c", f"{{0}} = {b.literal(b.shape(x), b.env[x].dtype)}")
    where = b.one(*PARTS)
    return b.one(
        f"{c}{where} = {x}{where}\n{{0}} = {c} * {x}",
        f"{c}{where} += {x}{where}\n{{0}} = {c}.cos()",
        f"{{0}} = {c}{where} * 1\n{c}{where} = {b.number()}",
    )


@step(1)
def inplace_flag(b: Builder) -> str:
    x = b.real()
    name = b.one(
        "relu",
        "elu",
        "silu",
        "hardtanh",
        "leaky_relu",
        "selu",
        "mish",
        "hardswish",
        "relu6",
        "celu",
        "threshold",
    )
    extra = ", 0.1, -0.2" if name == "threshold" else ""
    return f"{{0}} = {x} * 1\nF.{name}({{0}}{extra}, inplace=True)"


@step(1)
def input_written(b: Builder) -> str:
    names = [n for n in b.names if n.startswith("x")]
    if not names or not b.chance(0.4):
        raise Missing
    x = b.choose.choice(names)
    return f"{x}{_call(b, x)}\n{{0}} = {x} * 1"


@step(1)
def filled(b: Builder) -> str:
    x = b.any()
    return f"{{0}} = torch.empty_like({x})\n{{0}}[...] = {b.like(x)}"
