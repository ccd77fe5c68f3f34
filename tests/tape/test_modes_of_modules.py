"""Functions that were quiet while their modules were evaluated, and then train them."""

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pushforward as pf
from pushforward.tape import trust

CALLS = trust.WATCHED_FIRST + 3
F64 = torch.float64

net: nn.Module = nn.Identity()  # as a function of a script's finds its module


@pytest.fixture(autouse=True)
def _nobody_is_trusted() -> Iterator[None]:
    pf.clear_plans()
    yield
    pf.clear_plans()


def _global(x: Tensor) -> Tensor:
    return net(x).sum()


def _calls_a_global(x: Tensor) -> Tensor:
    return sum(_global(row) for row in (x, x + 1))


class Trainer:
    """An object that has a module and calls it."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = {"net": [module]}

    def loss(self, x: Tensor) -> Tensor:
        return self.parts["net"][0](x).sum()


def _of_settings(x: Tensor, settings: Any) -> Tensor:
    return settings.parts["net"][0](x).sum()


def _attribute(module: nn.Module) -> Callable[[Tensor], Tensor]:
    settings = types.SimpleNamespace(net=module)
    return lambda x: settings.net(x).sum()


WAYS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "the module itself": lambda module: module,
    "a global": lambda module: _global,
    "a function of a global": lambda module: _calls_a_global,
    "a method": lambda module: Trainer(module).loss,
    "an attribute": _attribute,
    "a partial": lambda module: functools.partial(_of_settings, settings=Trainer(module)),
    "a default": lambda module: lambda x, parts=(module,): parts[0](x).sum(),
    "a transform": lambda module: pf.grad(_attribute(module)),
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)),
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Dropout(0.5), nn.Tanh()
    ),
}


@pytest.mark.parametrize("which", ["all", "first"])
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("way", WAYS)
def test_modules_train_after_they_were_evaluated(
    monkeypatch: pytest.MonkeyPatch, way: str, kind: str, which: str
) -> None:
    module = MODULES[kind]().to(F64).requires_grad_(False).eval()
    monkeypatch.setitem(globals(), "net", module)
    func = WAYS[way](module)
    jac = pf.jacrev(func)

    def plain(x: Tensor) -> Tensor:
        if way != "a transform":
            return torch.autograd.functional.jacobian(func, x)
        return torch.autograd.functional.hessian(_attribute(module), x)

    def state() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in module.state_dict().items()}

    for number in range(3 * CALLS):
        if number % CALLS == 0:
            (module if which == "all" else module[0]).train(number == CALLS)
        before, x = state(), torch.randn(5, 3, dtype=F64)
        torch.manual_seed(number)
        expected = plain(x)
        after = state()
        module.load_state_dict(before)
        torch.manual_seed(number)
        torch.testing.assert_close(jac(x), expected)
        torch.testing.assert_close(state(), after)


def test_a_module_that_took_the_place_of_another_is_another() -> None:
    x = torch.randn(5, 3, dtype=F64)
    settings = types.SimpleNamespace(net=None)

    def loss(x: Tensor) -> Tensor:
        return settings.net(x).sum()

    for training, activation in ((False, nn.ELU()), (True, nn.Tanh()), (True, nn.ELU())):
        settings.net = nn.Sequential(nn.BatchNorm1d(3), activation).to(F64).train(training)
        for _ in range(CALLS):
            pf.grad(loss)(x)
        assert settings.net[0].num_batches_tracked == CALLS * training


class Proxy:
    """Stands for an object that is not there."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"nothing to ask for {name}")


def test_objects_that_stand_for_others_are_not_asked() -> None:
    proxy, module = Proxy(), nn.BatchNorm1d(3, dtype=F64).eval()

    def loss(x: Tensor) -> Tensor:
        return module(x).sum() if proxy is not None else x.sum()

    x = torch.randn(5, 3, dtype=F64)
    for number in range(2 * CALLS):
        module.train(number >= CALLS)
        pf.grad(loss)(x)
    assert module.num_batches_tracked == CALLS
