"""Convolutions, pooling, normalisation, attention, modules with parameters, buffers and state."""

from fuzz.templates import Builder, step


def _sequence(b: Builder) -> tuple[str, tuple[int, ...]]:
    """Return an expression of three axes (batch, channels, length) and its shape."""
    x = b.real(lambda t: 0 < t.dim() <= 3 and 0 < t.numel() <= 24)
    shape = b.shape(x)
    if len(shape) == 1:
        return f"{x}[None, None]", (1, 1, *shape)
    if len(shape) == 2:
        return b.one((f"{x}[None]", (1, *shape)), (f"{x}[:, None]", (shape[0], 1, shape[1])))
    return x, shape


def _dtype(b: Builder, x: str) -> object:
    return b.env[x.split("[")[0]].dtype


@step(3)
def convolution(b: Builder) -> str:
    x, (_, channels, length) = _sequence(b)
    width = b.choose.randint(1, min(3, length))
    dtype = _dtype(b, x)
    weight = b.constant((2, channels, width), dtype)
    bias = b.constant((2,), dtype) if b.chance(0.5) else "None"
    across = b.constant((channels, 2, width), dtype)
    deep = b.constant((channels, 1, width), dtype)
    return b.one(
        f"F.conv1d({x}, {weight}, {bias})",
        f"F.conv1d({x}, {weight}, {bias}, stride=2, padding=1)",
        f"F.conv1d({x}, {weight}, padding={width - 1}, dilation=1)",
        f"F.conv_transpose1d({x}, {across}, {bias}, stride=2)",
        f"F.conv1d({x}, {deep}, groups={channels})",
        f"F.conv2d({x}[:, :, None], {weight}[:, :, None], {bias})",
        f"F.conv_transpose2d({x}[:, :, None], {across}[:, :, None])",
        f"F.conv1d({x}, {weight} * {b.real(lambda t: t.dim() == 0)})",
    )


@step(1.5)
def pooled(b: Builder) -> str:
    x, (*_, length) = _sequence(b)
    width = b.choose.randint(1, min(2, length))
    return b.one(
        f"F.avg_pool1d({x}, {width})",
        f"F.max_pool1d({x}, {width})",
        f"F.adaptive_avg_pool1d({x}, 2)",
        f"F.adaptive_max_pool1d({x}, 1)",
        f"F.lp_pool1d({x}.abs() + 0.1, 2, {width})",
        f"F.max_pool2d({x}[:, :, None], (1, {width}))",
        f"F.avg_pool2d({x}[:, :, None], (1, {width}), padding=0)",
        f"F.interpolate({x}, scale_factor=2, mode='{b.one('nearest', 'linear')}')",
        f"F.interpolate({x}[:, :, None], size=(2, 3), mode='bilinear', align_corners={b.chance(0.5)})",
        f"F.unfold({x}[:, :, None], (1, {width}))",
        f"F.pixel_unshuffle({x}[:, :, None].repeat(1, 1, 2, 2), 2)",
        f"F.grid_sample({x}[:, :, None], torch.tanh({x}[:, :1, None, :].repeat(1, 2, 1, 1)).permute(0, 2, 3, 1), align_corners=False)",
        f"F.local_response_norm({x}, 2)",
    )


@step(3)
def normalised(b: Builder) -> str:
    x = b.real(lambda t: t.dim() > 1 and t.numel() > 3)
    shape, dtype = b.shape(x), b.env[x].dtype
    last = (shape[-1],)
    weight, bias = b.constant(last, dtype), b.constant(last, dtype)
    channels = (shape[1],)
    return b.one(
        f"F.layer_norm({x}, {last})",
        f"F.layer_norm({x}, {last}, {weight}, {bias})",
        f"F.rms_norm({x}, {last}, {weight})",
        f"F.batch_norm({x}, None, None, {b.constant(channels, dtype)}, training=True)",
        f"F.batch_norm({x}, {b.constant(channels, dtype)}.detach(), {b.constant(channels, dtype)}.detach().abs() + 1)",
        f"F.group_norm({x}, 1, {b.constant(channels, dtype)})",
        f"F.group_norm({x}, {channels[0]})",
        f"F.instance_norm({x})",
    )


@step(1.5)
def attention(b: Builder) -> str:
    x = b.real(lambda t: t.dim() in (2, 3) and 0 < t.numel() <= 16)
    y = b.like(x)
    q, k = (f"{n}[None]" if b.dim(x) == 2 else n for n in (x, y))
    return b.one(
        f"F.scaled_dot_product_attention({q}, {k}, {q})",
        f"F.scaled_dot_product_attention({q}, {k}, {k}, is_causal=True)",
        f"F.scaled_dot_product_attention({q}[None], {k}[None], {k}[None])",
        f"({q} @ {k}.mT).softmax(-1) @ {k}",
    )


def _module(b: Builder, code: str, dtype: object) -> str:
    kind = ".double()" if "64" in str(dtype) else ".float()"
    seed = b.choose.randrange(100)
    return b.declare("m", f"torch.manual_seed({seed}); {{0}} = {code}{kind}")


@step(3)
def module(b: Builder) -> str:
    x = b.real(lambda t: t.dim() > 1 and 1 < t.numel() <= 24)
    shape, dtype = b.shape(x), b.env[x].dtype
    width, channels = shape[-1], shape[1]
    code = b.one(
        f"nn.Linear({width}, 2)",
        f"nn.Sequential(nn.Linear({width}, 3), nn.Tanh(), nn.Linear(3, 2))",
        f"nn.LayerNorm({width})",
        f"nn.BatchNorm1d({channels})",
        f"nn.BatchNorm1d({channels}, momentum=None)",
        f"nn.Sequential(nn.BatchNorm1d({channels}), nn.ReLU(inplace=True))",
        f"nn.InstanceNorm1d({channels}, affine=True, track_running_stats=True)",
        f"nn.utils.parametrizations.weight_norm(nn.Linear({width}, 2))",
        "nn.PReLU()",
        f"nn.Bilinear({width}, {width}, 2)",
        f"nn.Sequential(nn.Linear({width}, 4), nn.ELU(inplace=True), nn.Linear(4, 1))",
    )
    name = _module(b, code, dtype)
    return f"{name}({x}, {b.like(x)})" if "Bilinear" in code else f"{name}({x})"


@step(0.5)
def recurrent(b: Builder) -> str:
    x = b.matrix(lambda t: 0 < t.numel() <= 12)
    width = b.shape(x)[-1]
    kind = b.one("LSTM", "GRU", "RNN")
    name = _module(b, f"nn.{kind}({width}, 2)", b.env[x].dtype)
    if b.chance(0.4):
        cell = _module(b, f"nn.GRUCell({width}, 2)", b.env[x].dtype)
        return f"{cell}({x})"
    return f"{name}({x})[0]"


@step(0.5)
def attended(b: Builder) -> str:
    x = b.matrix(lambda t: 0 < t.numel() <= 12 and t.shape[1] % 2 == 0)
    width = b.shape(x)[-1]
    if b.chance(0.5):
        name = _module(b, f"nn.MultiheadAttention({width}, {b.one(1, 2)})", b.env[x].dtype)
        return f"{name}({x}, {x}, {x}, need_weights={b.chance(0.5)})[0]"
    code = f"nn.TransformerEncoderLayer({width}, 1, 4, dropout=0.0)"
    return f"{_module(b, code, b.env[x].dtype)}({x})"


@step(1, is_cut=True)
def stateful(b: Builder) -> str:
    """Call a module that keeps what it saw."""
    x = b.any(lambda t: t.dim() < 3)
    kind = b.one("Keeping", "Counting", "Caching")
    name = b.declare("m", f"{{0}} = Modules.{kind}({b.shape(x)}, {b.env[x].dtype})")
    return f"{name}({x})"


@step(0.7)
def functional(b: Builder) -> str:
    x = b.matrix(lambda t: 0 < t.numel() <= 12)
    width, dtype = b.shape(x)[-1], b.env[x].dtype
    name = _module(b, f"nn.Linear({width}, 2)", dtype)
    weight = b.pick(lambda t: t.shape == (2, width) and t.dtype == dtype)
    return f"torch.func.functional_call({name}, {{'weight': {weight}}}, ({x},))"
