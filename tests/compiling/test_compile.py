"""compile: results are those of the transform itself, whatever was captured, changed, drawn, written or nested."""

import functools
import re
import threading
import time
import warnings

import pytest
import torch
import torch.func as tf
from compiling.example import W, mixed, scalar
from torch import nn

import pushforward as pf
from pushforward.tape.private_compiler import compile_lock

f64 = torch.float64


def randn(*shape, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=f64, **options)


TRANSFORMS = {
    "jacfwd": lambda lib: lib.jacfwd(mixed),
    "jacrev": lambda lib: lib.jacrev(mixed),
    "grad": lambda lib: lib.grad(scalar),
    "hessian": lambda lib: lib.hessian(scalar),
    "jacfwd of jacrev": lambda lib: lib.jacfwd(lib.jacrev(scalar)),
    "third": lambda lib: lib.jacfwd(lib.hessian(scalar)),
    "jvp": lambda lib: lambda x: lib.jvp(mixed, (x,), (x.cos(),)),
    "vjp": lambda lib: lambda x: lib.vjp(mixed, x)[1](x.cos()),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_same_as_torch_func(transform):
    compiled = pf.compile(TRANSFORMS[transform](pf), backend="eager")
    for seed in range(3):
        x = randn(4, seed=seed)
        torch.testing.assert_close(compiled(x), TRANSFORMS[transform](tf)(x))
    assert len(compiled.compiled.programs()) == 1


def test_tied_weights_are_compiled_once_and_again_when_they_part():
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double().requires_grad_(False)
    layers[1].weight = layers[0].weight
    compiled = pf.compile(pf.jacrev(layers), backend="eager")
    for number, weight in enumerate([layers[0].weight, randn(3, 3), layers[0].weight]):
        layers[1].weight = nn.Parameter(weight, requires_grad=False)
        if weight is layers[0].weight:
            layers[1].weight = weight
        for _ in range(3):
            torch.testing.assert_close(compiled(randn(3)), layers[1].weight @ layers[0].weight)
        assert len(compiled.compiled.programs()) == min(number + 1, 2)


@pytest.mark.parametrize("output", ["value", "auto", "aux"])
def test_structures(output):
    def f(tree, scale, *, shift):
        y = {"a": tree["x"] * scale + shift, "b": (tree["x"].sum() * tree["y"],)}
        return (y, {"n": 3, "t": tree["y"].exp()}) if output == "aux" else y

    made = {
        "value": lambda: pf.value_and_jacobian(f),
        "auto": lambda: pf.jacobian(f),
        "aux": lambda: pf.jacfwd(f, has_aux=True),
    }[output]()
    compiled = pf.compile(made, backend="eager")
    tree = {"x": randn(3), "y": randn(2, seed=1)}
    for scale, shift in ((2.0, 1), (2.0, 1), (3.0, 1), (3.0, randn(3, seed=2))):
        torch.testing.assert_close(
            compiled(tree, scale, shift=shift), made(tree, scale, shift=shift)
        )
    assert len(compiled.compiled.programs()) == 3


def test_new_shapes_strides_and_dtypes():
    compiled = pf.compile(pf.jacfwd(torch.sin), backend="eager")
    for x in (randn(3), randn(4), randn(6)[::2], randn(3).float(), randn(3, seed=9)):
        torch.testing.assert_close(compiled(x), tf.jacfwd(torch.sin)(x))
    assert len(compiled.compiled.programs()) == 4  # the last is as the first


# ----- What is captured -----


def test_captured_tensors_are_inputs():
    w = randn(3, 3)
    compiled = pf.compile(pf.jacrev(lambda x: torch.tanh(w @ x)), backend="eager")

    def check():
        x = randn(3, seed=5)
        torch.testing.assert_close(compiled(x), tf.jacrev(lambda x: torch.tanh(w @ x))(x))

    check()
    w.mul_(2)  # in place
    check()
    w = randn(3, 3, seed=7)  # another
    check()
    assert len(compiled.compiled.programs()) == 1
    w = randn(2, 3, seed=8)  # of another shape
    check()
    w = randn(3, 3).float().double().t()  # laid out otherwise
    check()
    assert len(compiled.compiled.programs()) == 3


def test_parameters_and_buffers_of_modules():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    compiled = pf.compile(pf.jacfwd(net), backend="eager")
    x = randn(3)

    def check():
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), tf.jacfwd(net)(x))

    check()
    with torch.no_grad():
        net[0].weight.add_(1)
    check()
    net[0].weight = nn.Parameter(randn(4, 3, seed=3))
    check()
    net.load_state_dict({n: t + 1 for n, t in net.state_dict().items()})
    check()
    assert len(compiled.compiled.programs()) == 1
    net[1] = nn.Sigmoid()
    check()
    net[2].double().to(torch.float64)
    net[2] = nn.Linear(4, 3).double()
    check()


def test_modes_of_modules():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).double()
    compiled = pf.compile(pf.jacfwd(net, randomness="different"), backend="eager")
    x = randn(3)
    compiled(x)
    net.eval()
    torch.testing.assert_close(compiled(x), tf.jacfwd(net)(x))
    net.train()
    net[1].p = 1.0
    assert not compiled(x).any()


FACTOR = 2.0
OPTIONS = {"power": 2, "parts": [1.0, 2.0]}


class Model:
    def __init__(self):
        self.scale = 2.0
        self.w = randn(3)

    def __call__(self, x):
        return self.helped(x) * self.w

    def helped(self, x):
        return x.sin() * self.scale


def powers(x, exponent=2):
    return FACTOR * x ** OPTIONS["power"] * OPTIONS["parts"][-1] + exponent


def test_captured_values_are_compared(monkeypatch):
    model, number = Model(), 1.5

    def f(x):
        return model(x) * number + powers(x) + model.helped(x)

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    x = randn(3)

    def check(num):
        torch.testing.assert_close(compiled(x), tf.jacfwd(f)(x))
        assert len(compiled.compiled.programs()) == num

    check(1)
    check(1)
    number = 2.5
    check(2)
    number = 1.5
    check(2)
    model.scale = 3.0
    check(3)
    model.w = randn(3, seed=4)
    check(3)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    check(4)
    monkeypatch.setitem(OPTIONS, "power", 3)
    check(5)
    monkeypatch.setitem(OPTIONS, "parts", [7.0])
    check(6)
    monkeypatch.setattr(powers, "__defaults__", (3,))
    check(7)
    monkeypatch.setitem(globals(), "powers", torch.cos)
    check(8)


def test_numbers_that_change_from_call_to_call_are_warned_of():
    compiled = pf.compile(pf.jacfwd(lambda x, dt: x * dt), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(1, 13):  # other shapes are no reason
            compiled(randn(size), 0.5)
        for step in range(12):
            torch.testing.assert_close(
                compiled(randn(2), torch.tensor(step)), step * torch.eye(2, dtype=f64)
            )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            torch.testing.assert_close(compiled(randn(2), step), step * torch.eye(2, dtype=f64))
    assert ["torch.tensor(0.1) in place of 0.1" in str(w.message) for w in caught] == [True]


def test_many_states_warn_once():
    number = 0

    def f(x):
        return x * number

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(12):
            torch.testing.assert_close(compiled(randn(2)), number * torch.eye(2, dtype=f64))
    assert len(compiled.compiled.programs()) == 8
    (warning,) = [w for w in caught if "compile: f was compiled" in str(w.message)]
    assert warning.category is UserWarning


def test_what_the_function_counts_is_counted_while_tracing():
    seen = []

    def f(x):
        seen.append(len(seen))
        return x.sin()

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    for _ in range(4):
        compiled(randn(3))
    first = len(seen)
    assert first
    assert len(compiled.compiled.programs()) == 1
    compiled(randn(3))
    assert len(seen) == first


# ----- What cannot be compiled -----


@pytest.mark.parametrize(
    ("step", "f"),
    [
        ("if x.sum() > 0:", lambda x: x.sin() if x.sum() > 0 else x),
        ("float", lambda x: x * float(x[0])),
        ("item", lambda x: x * x[0].item()),
        ("mask", lambda x: x[x > 0]),
        ("numpy", lambda x: x * x.detach().numpy().sum()),
        ("tolist", lambda x: x * x.tolist()[0]),
        ("captured", lambda x: x * W[0, 0].item()),
    ],
)
def test_steps_that_depend_on_elements_are_named(step, f):
    with pytest.raises(pf.UnsupportedError, match=r"depends on the elements.*test_compile\.py:\d+"):
        pf.compile(pf.jacfwd(f), backend="eager")(randn(3))


def test_memory_by_numbers_is_refused():
    made = pf.jacfwd(lambda x: x.as_strided((2,), (2,)).sin())
    made(randn(4)[1:])  # learns that the layout matters
    with pytest.raises(pf.UnsupportedError, match="reads the memory of an argument by numbers"):
        pf.compile(made, backend="eager")(randn(4)[1:])


def test_bad_arguments():
    with pytest.raises(TypeError, match=re.escape("compile: func: got int")):
        pf.compile(3)
    with pytest.raises(ValueError, match=re.escape("compile: backend: got 'gpu'")):
        pf.compile(torch.sin, backend="gpu")
    with pytest.raises(TypeError, match="does not hash"):
        pf.compile(lambda x, s: x, backend="eager")(randn(2), {1, 2})


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ZeroDivisionError, lambda c, x: c(x)),
        (TypeError, lambda c, x: c(x, 1, 2)),
    ],
)
def test_errors_of_the_function_are_its_own(error, call):
    def f(x):
        return x / (1 // 0)

    with pytest.raises(error):
        call(pf.compile(pf.jacfwd(f), backend="eager"), randn(2))
    assert torch.is_grad_enabled()


# ----- Random numbers, writes -----


def test_random_numbers_are_those_of_plain_calls():
    def f(x):
        return x * torch.randn_like(x) + torch.rand(3, dtype=f64)

    made = pf.value_and_jacobian(f, randomness="same")
    compiled = pf.compile(made, backend="eager")
    x = randn(3)
    torch.manual_seed(3)
    compiled(x)
    for _ in range(2):
        torch.manual_seed(3)
        expected = [made(x), made(x)], torch.get_rng_state()
        torch.manual_seed(3)
        found = [compiled(x), compiled(x)], torch.get_rng_state()
        torch.testing.assert_close(found, expected)
    with pytest.raises(pf.RandomnessError):
        pf.compile(pf.jacfwd(f), backend="eager")(x)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_writes_to_arguments_and_buffers(backend):
    log = torch.zeros(3, dtype=f64)

    def f(x):
        y = x * 2
        y[0] = y[1] * y[2]
        log.add_(1)
        z = y * 3
        y.mul_(2)
        return z + y * 3

    compiled = pf.compile(pf.jacfwd(f), backend=backend)
    x = randn(3)
    for count in range(1, 4):
        found = compiled(x)
        assert (log == count).all()
    torch.testing.assert_close(found, pf.jacfwd(f)(x))


def test_batch_norm_keeps_its_statistics():
    nets = [nn.BatchNorm1d(3).double() for _ in range(2)]
    compiled = pf.compile(pf.jacrev(lambda x: nets[0](x).sin()), backend="eager")
    for seed in range(3):
        x = randn(5, 3, seed=seed)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), pf.jacrev(lambda x: nets[1](x).sin())(x))
        torch.testing.assert_close(dict(nets[0].named_buffers()), dict(nets[1].named_buffers()))


def test_results_are_the_callers_own():
    compiled = pf.compile(pf.value_and_jacobian(lambda x: x * 1), backend="eager")
    x = randn(3)
    first = compiled(x)
    for t in first:
        t.zero_()
    torch.testing.assert_close(compiled(x), (x, torch.eye(3, dtype=f64)))


# ----- Autograd, nesting -----


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_autograd_follows_to_arguments_and_parameters(backend):
    w = randn(3, 3).requires_grad_()

    def f(x):
        return torch.tanh(w @ x) * x

    compiled = pf.compile(pf.value_and_jacobian(f), backend=backend)
    x = randn(3, seed=2).requires_grad_()

    def results(made):
        value, jacobian = made(x)
        loss = value.sum() + jacobian.square().sum()
        first = torch.autograd.grad(loss, (x, w), create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), (x, w))
        return value, jacobian, first, second

    def expected(x):
        return f(x), tf.jacfwd(f)(x)

    torch.testing.assert_close(results(compiled), results(expected))
    with torch.no_grad():
        assert not compiled(x)[1].requires_grad


def test_random_numbers_of_a_pass_back_are_those_of_the_way_there():
    w = randn(3).requires_grad_()
    compiled = pf.compile(
        pf.jacfwd(lambda x: (w * torch.rand(3, dtype=f64) * x).sin(), randomness="same"),
        backend="eager",
    )
    x = randn(3)
    compiled(x)
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(compiled(x).sum(), w)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    r = torch.rand(3, dtype=f64)
    (expected,) = torch.autograd.grad(tf.jacfwd(lambda x: (w * r * x).sin())(x).sum(), w)
    torch.testing.assert_close(found, expected)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize(
    "outer",
    [
        lambda c: tf.vmap(c),
        lambda c: pf.vmap(pf.jacrev(c)),
        lambda c: tf.jacrev(tf.vmap(c)),
        lambda c: pf.jacfwd(lambda xs: torch.stack([c(x) for x in xs])),
        lambda c: pf.compile(tf.vmap(c), backend="eager"),
        lambda c: lambda xs: pf.jvp(lambda x: c(x[0]), (xs,), (xs.cos(),)),
    ],
)
def test_under_other_transforms(outer):
    compiled = pf.compile(pf.jacfwd(mixed), backend="eager")
    xs = randn(2, 4)
    compiled(xs[0])
    torch.testing.assert_close(outer(compiled)(xs), outer(tf.jacfwd(mixed))(xs))


def test_linearize():
    compiled = pf.compile(lambda x: pf.linearize(mixed, x)[1](x.cos()), backend="eager")
    for x in (randn(4), randn(4, seed=1)):
        torch.testing.assert_close(compiled(x), tf.jvp(mixed, (x,), (x.cos(),))[1])


def test_batches_and_chunks():
    for made in (tf.vmap(pf.jacfwd(mixed)), tf.vmap(pf.jacrev(mixed, chunk_size=2))):
        compiled = pf.compile(made, backend="eager")
        xs = randn(5, 4)
        torch.testing.assert_close(compiled(xs), tf.vmap(tf.jacfwd(mixed))(xs))


def test_complex_numbers():
    def f(z):
        return z * z.abs().square().sum() + z.conj()

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    z = torch.complex(randn(3), randn(3, seed=1))
    torch.testing.assert_close(compiled(z), pf.jacfwd(f)(z))
    torch.testing.assert_close(compiled(z.conj()), pf.jacfwd(f)(z.conj()))


def test_threads():
    compiled = pf.compile(pf.jacfwd(mixed), backend="eager")
    expected = [tf.jacfwd(mixed)(randn(4, seed=s)) for s in range(8)]
    found = [None] * 8

    def work(seed):
        found[seed] = compiled(randn(4, seed=seed))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(found, expected)
    assert len(compiled.compiled.programs()) == 1


def test_one_thread_compiles_at_a_time():
    """PyTorch's tracer replaces functions for all threads."""
    busy, found = threading.Lock(), {}

    def scaled(x, number):
        return (x.sin() * x).cumsum(0) * number

    def slope(jacobian, number):
        x = randn(4, seed=number).requires_grad_()
        return torch.autograd.grad(jacobian(x).sum(), x)[0]

    def work(number):
        def traced(x):
            assert busy.acquire(blocking=False)
            time.sleep(0.02)
            busy.release()
            return scaled(x, number)

        found[number] = slope(pf.compile(pf.jacfwd(traced), backend="eager"), number)

    numbers = range(1, 5)
    threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
    with compile_lock():  # as torch.compile holds it
        for thread in threads:
            thread.start()
        threads[0].join(0.1)
        assert not found
    for thread in threads:
        thread.join()
    torch.testing.assert_close(
        found, {n: slope(tf.jacrev(functools.partial(scaled, number=n)), n) for n in numbers}
    )


# ----- Sparse results -----

PLACES = torch.tensor([2, 0, 1, 4, 3, 5])


def gathered(x):
    return x[PLACES] * x + torch.roll(x, 1) ** 2


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("output", ["csr", "csc", "coo", "bsr", "auto"])
def test_sparse_jacobians(output, backend):
    compiled = pf.compile(pf.jacobian(gathered, output=output), backend=backend)
    for seed in range(3):
        x = randn(6, seed=seed)
        found = compiled(x)
        expected = pf.jacobian(gathered, output=output)(x)
        assert found.layout is expected.layout
        torch.testing.assert_close(found, expected)
    assert len(compiled.compiled.programs()) == 1


def test_sparse_results_follow_index_tensors():
    places = torch.tensor([2, 0, 1])
    compiled = pf.compile(
        pf.value_and_jacobian(lambda x: x[places].sin(), output="csr"), backend="eager"
    )

    def check():
        x = randn(3, seed=4)
        value, jacobian = compiled(x)
        torch.testing.assert_close(value, x[places].sin())
        torch.testing.assert_close(jacobian.to_dense(), tf.jacfwd(lambda x: x[places].sin())(x))

    check()
    places.copy_(torch.tensor([1, 1, 0]))
    check()
    check()
    places = torch.tensor([0, 2, 2])
    check()
    assert len(compiled.compiled.programs()) == 1


def test_values_of_sparse_results_are_followed_by_autograd():
    x = randn(6).requires_grad_()
    compiled = pf.compile(pf.jacobian(gathered, output="csr"), backend="eager")
    (found,) = torch.autograd.grad(compiled(x).values().square().sum(), x)
    (expected,) = torch.autograd.grad(tf.jacfwd(gathered)(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_sparse_hessians_and_given_patterns():
    def f(x):
        return (x[1:] - x[:-1]).square().square().sum()

    x = randn(6)
    compiled = pf.compile(pf.hessian(f, output="csr"), backend="eager")
    torch.testing.assert_close(compiled(x).to_dense(), tf.hessian(f)(x))
    given = pf.jacobian(gathered, pattern=pf.pattern(gathered, x), output="csr")
    compiled = pf.compile(given, backend="eager")
    for seed in range(2):
        x = randn(6, seed=seed)
        torch.testing.assert_close(compiled(x).to_dense(), tf.jacfwd(gathered)(x))


def test_sparse_results_may_only_be_returned():
    compiled = pf.compile(
        lambda x: pf.jacobian(gathered, output="csr")(x).values(), backend="eager"
    )
    with pytest.raises(pf.UnsupportedError, match="sparse Jacobian of which it uses 'values'"):
        compiled(randn(6))


# ----- Inductor -----


@pytest.mark.parametrize("transform", ["jacfwd", "jacfwd of jacrev"])
def test_inductor(transform):
    compiled = pf.compile(TRANSFORMS[transform](pf))
    for seed in range(2):
        x = randn(4, seed=seed)
        torch.testing.assert_close(
            compiled(x), TRANSFORMS[transform](tf)(x), rtol=1e-12, atol=1e-12
        )


def test_explain():
    compiled = pf.compile(pf.jacfwd(mixed), backend="eager")
    explanation = pf.explain(compiled, randn(4))
    text = str(explanation)
    assert explanation._repr_html_() == f"<pre>{text.replace(chr(39), '&#x27;')}</pre>"
    assert "aten.cos.default" in text
    assert "1 captured tensors, backend 'eager'" in text
    assert "guards" in text


LAYOUTS = {
    "expanded": lambda x: x[:, :1].expand(3, 3),
    "expanded first": lambda x: x[:1].expand(3, 3),
    "transposed": lambda x: x.t(),
    "every other": lambda x: torch.stack([x, x], 1).flatten(0, 1)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transform", [pf.hessian, lambda f: pf.jacfwd(pf.jacfwd(f)), pf.jacrev])
def test_arguments_may_lie_anyhow(layout, transform):
    x, y = LAYOUTS[layout](randn(3, 3)), randn(3, 3, seed=1)

    def f(x, y):
        return (x.sin() * y).square().sum()

    compiled = pf.compile(transform(f), backend="eager")
    torch.testing.assert_close(compiled(x, y), transform(f)(x.contiguous(), y))


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: x / 3.0,
        lambda x: torch.view_as_real(torch.complex(x, x) * (1 + 2j)),
        lambda x: torch.view_as_real(torch.complex(x, x) / (1 + 2j)),
        lambda x: torch.view_as_real(torch.exp(1j * x)),
    ],
    ids=["quotient", "complex product", "complex quotient", "phase"],
)
def test_numbers_in_the_function_where_they_have_the_default_dtype(f, dtype):
    x = torch.tensor([0.3, 0.7], dtype=dtype)
    for transform in (pf.jacrev, pf.jacfwd):
        compiled = pf.compile(transform(f), backend="eager")
        for point in (x, x + 1):
            torch.testing.assert_close(compiled(point), tf.jacfwd(f)(point))
