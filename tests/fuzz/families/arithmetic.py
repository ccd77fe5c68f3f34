"""Elementwise functions and binary operators."""

from fuzz.templates import Builder, Missing, step

SMOOTH = (
    "sin", "cos", "tanh", "sigmoid", "exp", "atan", "sinh", "neg", "square", "erf", "asinh", "expm1", "abs", "positive",
    "sinc", "sgn", "sign", "frac", "deg2rad", "rad2deg", "nan_to_num", "logit", "log1p", "special.entr", "special.ndtr",
    "special.i0e", "special.erfcx", "cosh", "relu", "digamma", "lgamma", "mvlgamma1",
)  # fmt: skip
POSITIVE = (
    "log",
    "sqrt",
    "rsqrt",
    "log2",
    "log10",
    "reciprocal",
    "lgamma",
    "digamma",
    "log1p",
    "special.i1",
)
ACTIVATIONS = (
    "softplus", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "hardtanh", "hardswish", "softsign",
    "logsigmoid", "tanhshrink", "hardsigmoid", "softshrink", "hardshrink", "relu6",
)  # fmt: skip


@step(6)
def smooth(b: Builder) -> str:
    name = b.one(*SMOOTH)
    if name == "mvlgamma1":
        return f"torch.mvlgamma({b.real()}.abs() + 1.5, 1)"
    return f"torch.{name}({b.any()})"


@step(2)
def positive(b: Builder) -> str:
    return (
        f"torch.{b.one(*POSITIVE)}({b.real()}.{b.one('abs()', 'square()')} + {b.number(0.2, 1.5)})"
    )


@step(2)
def activation(b: Builder) -> str:
    return f"F.{b.one(*ACTIVATIONS)}({b.real()})"


@step(7)
def binary(b: Builder) -> str:
    x = b.any()
    y = b.other(x)
    return b.one(f"{x} {b.one('+', '-', '*')} {y}", f"{y} {b.one('+', '-', '*')} {x}")


@step(2)
def quotient(b: Builder) -> str:
    x = b.any()
    return f"{b.other(x)} / ({x}.abs() + {b.number(0.5, 1.5)})"


@step(2)
def two(b: Builder) -> str:
    x = b.real()
    y = b.real(lambda t: t.dtype == b.env[x].dtype and t.shape == b.env[x].shape)
    name = b.one(
        "maximum",
        "minimum",
        "atan2",
        "hypot",
        "fmax",
        "fmin",
        "logaddexp",
        "copysign",
        "xlogy",
        "fmod",
    )
    if name == "xlogy":
        return f"torch.xlogy({x}, {y}.abs() + 0.3)"
    if name == "fmod":
        return f"torch.{b.one('fmod', 'remainder')}({x}, {b.number(0.6, 1.9)})"
    return f"torch.{name}({x}, {y})"


@step(1.5)
def power(b: Builder) -> str:
    x = b.any()
    kind = b.one("number", "tensor", "base", "cube")
    if kind == "number":
        return f"({b.real()}.abs() + 0.3) ** {b.number(-2, 3)}"
    if kind == "cube":
        return f"{x} ** {b.one(2, 3, 2.0, 0, 1)}"
    if kind == "base":
        return f"{b.number(0.3, 2)} ** {x}"
    y = b.real()
    return f"({y}.abs() + 0.4) ** {b.other(y)}"


@step(1.5)
def three(b: Builder) -> str:
    x = b.any()
    y, z = b.like(x), b.like(x)
    return b.one(
        f"torch.addcmul({x}, {y}, {z}, value={b.number()})",
        f"torch.lerp({x}, {y}, {z})",
        f"torch.lerp({x}, {y}, {b.number(0, 1)})",
        f"torch.addcdiv({x}, {y}, {z}.abs() + 1)",
        f"torch.add({x}, {y}, alpha={b.number()})",
        f"torch.sub({x}, {y}, alpha={b.number()})",
        f"torch.rsub({x}, {y})",
    )


@step(1.5)
def bounded(b: Builder) -> str:
    x = b.real()
    y = b.like(x)
    return b.one(
        f"{x}.clamp({b.number(-1, 0)}, {b.number(0.1, 1.5)})",
        f"{x}.clamp(min={b.number(-1, 0)})",
        f"torch.clamp({x}, max={y})",
        f"torch.where({x} > {b.number(-1, 1)}, {x}, {y})",
        f"torch.where({x} > {y}, {x} * {y}, {b.number()})",
        f"{x}.masked_fill({y} > 0, {b.number()})",
        f"torch.heaviside({x}, {y}) * {x}",
    )


@step(1)
def converted(b: Builder) -> str:
    x = b.any()
    if b.env[x].is_complex():
        return f"{x}.{b.one('real', 'imag', 'abs()', 'angle()', 'conj()', 'to(torch.complex64)', 'resolve_conj()')}"
    return f"{x}.{b.one('float()', 'double()', 'to(torch.complex128)', 'type(torch.float32)', 'to(torch.float64)')}"


@step(0.7)
def made_complex(b: Builder) -> str:
    x = b.real()
    y = b.like(x)
    return b.one(
        f"torch.complex({x}, {y})", f"torch.polar({x}.abs() + 0.1, {y})", f"{x} * 1j + {y}"
    )


@step(0.5)
def parts(b: Builder) -> str:
    z = b.complex()
    return b.one(f"torch.view_as_real({z})", f"{z} * {z}.conj()", f"torch.exp({z} * 1j)")


@step(0.5)
def paired(b: Builder) -> str:
    x = b.real(lambda t: t.dim() > 0 and t.shape[-1] == 2 and t.is_contiguous())
    return f"torch.view_as_complex({x})"


@step(0.5)
def constants(b: Builder) -> str:
    x = b.any()
    shape = b.shape(x)
    if len(shape) > 3:
        raise Missing
    return b.one(
        f"torch.zeros_like({x})",
        f"torch.full({shape}, {b.number()}, dtype=torch.float64)",
        f"torch.ones({shape})",
        f"torch.tensor({b.number()})",
    )
