"""Products of matrices, factorisations, solutions, FFTs."""

from fuzz.templates import Builder, Missing, step


def _square(b: Builder) -> str:
    return b.real(lambda t: t.dim() >= 2 and t.shape[-1] == t.shape[-2] and 0 < t.shape[-1] < 4)


def _regular(b: Builder, x: str) -> str:
    return f"({x} + 4 * torch.eye({b.shape(x)[-1]}, dtype={x}.dtype))"


def _positive(b: Builder, x: str) -> str:
    return f"({x} @ {x}.mT + 2 * torch.eye({b.shape(x)[-1]}, dtype={x}.dtype))"


@step(5)
def product(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0)
    inner = b.shape(x)[-1]
    dtype = b.env[x].dtype
    if b.chance(0.4):
        y = b.constant(b.one((inner, 2), (inner,), (inner, inner)), dtype)
    else:
        y = b.pick(
            lambda t: t.dtype == dtype and 0 < t.dim() < 4 and t.shape[max(t.dim() - 2, 0)] == inner
        )
    return b.one(f"{x} @ {y}", f"torch.matmul({x}, {y})", f"{x} @ {y}")


@step(2)
def linear(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0)
    inner, dtype = b.shape(x)[-1], b.env[x].dtype
    weight = b.constant((2, inner), dtype)
    bias = f", {b.constant((2,), dtype)}" if b.chance(0.5) else ""
    return f"F.linear({x}, {weight}{bias})"


@step(2)
def added(b: Builder) -> str:
    x, y = b.matrix(), b.matrix()
    dtype = b.env[x].dtype
    if b.env[y].dtype != dtype or b.shape(x)[1] != b.shape(y)[0]:
        raise Missing
    rows, columns = b.shape(x)[0], b.shape(y)[1]
    c = b.constant(b.one((rows, columns), (columns,), (1, 1)), dtype)
    return b.one(
        f"torch.addmm({c}, {x}, {y}, beta={b.number()}, alpha={b.number()})",
        f"torch.mm({x}, {y})",
        f"torch.bmm({x}[None], {y}[None])",
        f"torch.baddbmm({c}, {x}[None], {y}[None])",
        f"torch.linalg.multi_dot([{x}, {y}])",
    )


@step(1.5)
def vectors(b: Builder) -> str:
    x = b.any(lambda t: t.dim() == 1)
    y = b.pick(lambda t: t.dim() == 1 and t.dtype == b.env[x].dtype)
    options = [f"torch.outer({x}, {y})", f"torch.kron({x}, {y})"]
    if b.shape(x) == b.shape(y):
        options += [
            f"torch.dot({x}, {y})",
            f"torch.vdot({x}, {y})",
            f"torch.inner({x}, {y})",
            f"torch.vander({x}, 3)",
        ]
    if b.shape(x) == b.shape(y) == (3,):
        options.append(f"torch.linalg.cross({x}, {y})")
    return b.choose.choice(options)


@step(2)
def summed(b: Builder) -> str:
    x = b.any(lambda t: 0 < t.dim() < 4)
    letters = "abc"[: b.dim(x)]
    y = b.pick(
        lambda t: 0 < t.dim() < 3 and t.dtype == b.env[x].dtype and t.shape[0] == b.shape(x)[-1]
    )
    second = letters[-1] + "d"[: b.dim(y) - 1]
    every = sorted(set(letters + second))
    kept = "".join(c for c in every if b.chance(0.6))
    return f"torch.einsum('{letters},{second}->{kept}', {x}, {y})"


@step(1)
def contracted(b: Builder) -> str:
    x = b.any(lambda t: 1 < t.dim() < 4)
    y = b.like(x)
    return b.one(
        f"torch.tensordot({x}, {y}, {b.dim(x)})",
        f"torch.tensordot({x}, {y}, ([0], [0]))",
        f"torch.einsum('...i,...i->...', {x}, {y})",
        f"torch.einsum('ij...,ik...->jk...', {x}, {y})",
        f"torch.cdist({x}, {y})",
        f"F.cosine_similarity({x}, {y}, dim=0)",
        f"torch.trace({x})",
        f"F.bilinear({x}, {y}, {b.constant((2, b.shape(x)[-1], b.shape(x)[-1]), b.env[x].dtype)})",
    )


@step(2.5)
def factorised(b: Builder) -> str:
    x = _square(b)
    if b.env[x].numel() > 9:
        raise Missing
    regular, positive = _regular(b, x), _positive(b, x)
    return b.one(
        f"torch.linalg.inv({regular})",
        f"torch.linalg.det({x})",
        f"torch.linalg.slogdet({regular})[1]",
        f"torch.logdet({positive})",
        f"torch.linalg.cholesky({positive})",
        f"torch.linalg.eigvalsh({positive})",
        f"torch.linalg.eigh({positive})[0]",
        f"torch.linalg.svdvals({regular})",
        f"torch.linalg.qr({regular})[1]",
        f"torch.linalg.matrix_power({x}, {b.one(0, 1, 2, 3, -1)})",
        f"torch.linalg.matrix_exp({x})",
        f"torch.linalg.pinv({regular})",
        f"torch.linalg.lu_factor({regular})[0]",
        f"torch.cholesky_inverse(torch.linalg.cholesky({positive}))",
        f"torch.linalg.matrix_norm({regular})",
        f"torch.linalg.matrix_norm({regular}, 'nuc')",
        f"torch.linalg.cond({regular})",
    )


@step(1.5)
def solved(b: Builder) -> str:
    x = _square(b)
    n = b.shape(x)[-1]
    y = b.real(
        lambda t: t.dim() >= 1 and t.shape[max(t.dim() - 2, 0)] == n and t.dtype == b.env[x].dtype
    )
    column = f"{y}[:, None]" if b.dim(y) == 1 else y
    regular, positive = _regular(b, x), _positive(b, x)
    return b.one(
        f"torch.linalg.solve({regular}, {y})",
        f"torch.linalg.solve_triangular({regular}, {column}, upper={b.chance(0.5)})",
        f"torch.cholesky_solve({column}, torch.linalg.cholesky({positive}))",
        f"torch.linalg.lstsq({regular}, {column})[0]",
        f"torch.linalg.tensorsolve({regular}, {y})",
    )


@step(1)
def transformed(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and t.numel() > 0)
    axis = b.axis(x)
    if b.env[x].is_complex():
        return b.one(
            f"torch.fft.ifft({x}, dim={axis})",
            f"torch.fft.fft({x}, dim={axis}, norm='ortho')",
            f"torch.fft.irfft({x}, n=3, dim={axis})",
            f"torch.fft.fftshift({x})",
        )
    return b.one(
        f"torch.fft.rfft({x}, dim={axis})",
        f"torch.fft.fft({x}, dim={axis})",
        f"torch.fft.hfft({x}, n=4, dim={axis})",
        f"torch.fft.ihfft({x}, dim={axis})",
    )
