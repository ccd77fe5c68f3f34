"""compile: what a function refers to is compared at each call, wherever it stands."""

import collections
import contextvars
import dataclasses
import enum
import functools
import types
import typing
import warnings
import weakref

import numpy as np
import pytest
import torch

import pushforward as pf

# PyTorch looks at gradients where it makes fake tensors, and hides what this warns of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

f64 = torch.float64
FACTOR = 2.0
x = torch.tensor([0.3, 0.7], dtype=f64)
module = types.ModuleType("someones_module")
module.k = 2.0


class Config:
    k = 2.0

    class Inner:
        k = 2.0


class Model:
    k = 2.0
    unrelated = 0

    def scaled(self, x):
        return x * self.k

    def by_global(self, x):
        return self.within(x)

    def within(self, x):
        return x * FACTOR

    def never_called(self):
        return UNRELATED

    @property
    def factor(self):
        return FACTOR

    @staticmethod
    def static(x):
        return x * FACTOR

    @classmethod
    def of_class(cls, x):
        return x * cls.k

    def __getitem__(self, key):
        return FACTOR


class Derived(Model):
    def scaled(self, x):
        return super().scaled(x)


class Net(torch.nn.Module):
    k = 2.0
    _k = 2.0

    def by_private(self, x):
        return x * self._k

    def within(self, x):
        return x * self.k * FACTOR

    def forward(self, x):
        return self.within(x)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * FACTOR

    @staticmethod
    def backward(ctx, g):
        return g * FACTOR


class Slots:
    __slots__ = ("k",)


class Named(typing.NamedTuple):
    held: dict


def attribute(x):
    return x * attribute.k


class Meta(type):
    k = 2.0

    @property
    def scale(cls):
        return cls.k


class WithMeta(metaclass=Meta):
    pass


class Twice:
    k = 2.0


class Thrice:
    k = 3.0


class Empty:
    pass


class Based(Twice, Empty):
    pass


class Kind(enum.Enum):
    HELD = ("held",)


class Listed(list):
    pass


def by_keyword(x, *, k=2.0):
    return x * k


def hooked(value):
    """Let all modules return 3 / 2 times as much while the value is 3."""
    for handle in hooks:
        handle.remove()
    register = torch.nn.modules.module.register_module_forward_hook
    hooks[:] = [register(lambda module, args, y: y * 1.5)] if value == 3 else []


def other_class(value):
    swapped.__class__ = Thrice if value == 3 else Twice


def other_bases(value):
    Based.__bases__ = (Thrice if value == 3 else Twice, Empty)


def hiding(value):
    if value == 3:
        Derived.k = 3.0
    elif "k" in vars(Derived):
        del Derived.k


def filled_slot(value):
    if value == 3:
        empty.k = 3.0
    elif hasattr(empty, "k"):
        del empty.k


def hidden_builtin(value):
    if value == 3:
        globals()["abs"] = lambda x: 3.0
    else:
        globals().pop("abs", None)


def keyword_default(value):
    by_keyword.__kwdefaults__ = {"k": value}


UNRELATED = 0
hooks, swapped, empty, based = [], Twice(), Slots(), Based()
listed, partial, variable = Listed(), functools.partial(abs), contextvars.ContextVar("variable")
listed.k = partial.k = Kind.HELD.k = 2.0
variable.set(2.0)
referred = Twice()
reference = weakref.ref(referred)
model, derived, net, slots = Model(), Derived(), Net(), Slots()
named, counts, ordered = Named({"k": 2.0}), collections.Counter(k=2), collections.OrderedDict(k=2.0)
queue, numbers, array, raw = collections.deque([2.0]), {2.0}, np.array([2.0]), bytearray([2])
default, keys = collections.defaultdict(float, k=2.0), {(0, 1): 2.0, None: 2.0}
proxied = {"k": 2.0}
proxy = types.MappingProxyType(proxied)
weights = {"a": 1.0, "b": 2.0}
attribute.k = slots.k = net._k = 2.0


def attribute_of(owner, name="k"):
    return lambda value: setattr(owner, name, value)


def item_of(owner, key="k"):
    return lambda value: owner.__setitem__(key, value)


def factor(value):
    globals()["FACTOR"] = value


def order(value):
    first = "a" if value == 3 else "b"
    weights[first] = weights.pop(first)


def member(value):
    numbers.clear()
    numbers.add(value)


# A function, and what changes what it refers to from 2 to another number.
CASES = {
    "class": (lambda x: x * Config.k, attribute_of(Config)),
    "class in a class": (lambda x: x * Config.Inner.k, attribute_of(Config.Inner)),
    "class by an instance": (lambda x: x * model.k, attribute_of(Model)),
    "class by a method": (lambda x: model.scaled(x), attribute_of(Model)),
    "class by super": (lambda x: derived.scaled(x), attribute_of(Model)),
    "instance before its class": (lambda x: model.k * x, item_of(vars(model))),
    "method of an instance": (
        lambda x: model.scaled(x),
        lambda value: vars(model).update(scaled=lambda x: x * value),
    ),
    "method's global": (lambda x: model.by_global(x), factor),
    "bound method's global": (model.by_global, factor),
    "property's global": (lambda x: x * model.factor, factor),
    "static method's global": (lambda x: Model.static(x), factor),
    "class method's class": (lambda x: model.of_class(x), attribute_of(Model)),
    "operator's global": (lambda x: x * model[0], factor),
    "module's class": (lambda x: net(x), attribute_of(Net)),
    "module's method": (net, factor),
    "custom function's global": (lambda x: Scaled.apply(x), factor),
    "module of Python": (lambda x: x * module.k, attribute_of(module)),
    "function's attribute": (attribute, attribute_of(attribute)),
    "slots": (lambda x: x * slots.k, attribute_of(slots)),
    "named tuple": (lambda x: x * named.held["k"], item_of(named.held)),
    "ordered dict": (lambda x: x * ordered["k"], item_of(ordered)),
    "default dict": (
        lambda x: x * default["k"],
        lambda value: default.pop("k") if value == 3 else item_of(default)(value),
    ),
    "counter": (lambda x: x * counts["k"], item_of(counts)),
    "order of a dict": (lambda x: sum(v * x**i for i, v in enumerate(weights.values())), order),
    "mapping proxy": (lambda x: x * proxy["k"], item_of(proxied)),
    "keys": (lambda x: x * keys[0, 1] * keys[None], item_of(keys, None)),
    "deque": (lambda x: x * queue[0], item_of(queue, 0)),
    "set": (lambda x: x * sum(numbers), member),
    "array": (lambda x: x * float(array[0]), item_of(array, 0)),
    "bytes": (lambda x: x * raw[0], item_of(raw, 0)),
    "module's private attribute": (net.by_private, attribute_of(net, "_k")),
    "hooks of all modules": (lambda x: net(x), hooked),
    "class of an object": (lambda x: x * swapped.k, other_class),
    "bases of a class": (lambda x: x * based.k, other_bases),
    "class hides its base": (lambda x: x * derived.k, hiding),
    "slot that was empty": (lambda x: x * getattr(empty, "k", 2.0), filled_slot),
    "keyword defaults": (lambda x: by_keyword(x), keyword_default),
    "attribute of a list": (lambda x: x * listed.k, attribute_of(listed)),
    "attribute of a partial": (lambda x: x * partial.k, attribute_of(partial)),
    "attribute of a member": (lambda x: x * Kind.HELD.k, attribute_of(Kind.HELD)),
    "weak reference": (lambda x: x * reference().k, attribute_of(referred)),
    "context variable": (lambda x: x * variable.get(), variable.set),
    "metaclass": (lambda x: x * WithMeta.scale, attribute_of(Meta)),
    "builtin hidden by a global": (lambda x: x * abs(-2.0), hidden_builtin),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_compared(name):
    function, change = CASES[name]
    compiled = pf.compile(function, backend="eager")
    try:
        for value in (None, None, 3, 2, 3):
            if value is not None:
                change(value)
            expected = function(x)
            torch.testing.assert_close(compiled(x), expected)
    finally:
        change(2)
        vars(model).clear()


def test_derivatives_follow_tensors_that_stand_in_classes():
    class Held:
        w = x.cos()

    compiled = pf.compile(pf.jacrev(lambda x: (x * Held.w).sin()), backend="eager")
    for w in (Held.w, x * 3, x.exp()):
        Held.w = w
        torch.testing.assert_close(compiled(x), (w * (x * w).cos()).diag())
    assert len(compiled.compiled.programs()) == 1


def test_parts_and_hooks_of_modules_are_compared():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=f64))
    compiled = pf.compile(pf.jacfwd(net), backend="eager")
    scale = {"k": 2.0}

    def check():
        torch.testing.assert_close(compiled(x), torch.func.jacfwd(net)(x))

    check()
    net.append(torch.nn.Tanh())
    check()
    handle = net[1].register_forward_hook(lambda module, args, output: output * scale["k"])
    check()
    scale["k"] = 3.0
    check()
    handle.remove()
    check()


def test_what_is_not_called_does_not_count(monkeypatch):
    compiled = pf.compile(pf.jacfwd(lambda x: model.scaled(x)), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(12):
            monkeypatch.setitem(globals(), "UNRELATED", number)
            monkeypatch.setattr(Model, "unrelated", number)
            compiled(x)
    assert len(compiled.compiled.programs()) == 1


def test_functions_that_count_are_traced_once():
    @dataclasses.dataclass
    class Counted:
        number: int = 0
        seen: typing.ClassVar[dict] = {}

        @functools.cached_property
        def two(self):
            return 2.0

    counted = Counted()

    def f(x):
        counted.number += 1
        Counted.seen[counted.number] = True
        return x * counted.two

    compiled = pf.compile(pf.jacfwd(f), backend="eager")
    for _ in range(4):
        torch.testing.assert_close(compiled(x), 2 * torch.eye(2, dtype=f64))
    assert len(compiled.compiled.programs()) == 1
