"""Random numbers: whether a function drew from the default generators, and how they are put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pushforward.tape.private_functorch import functorch_level, without_functorch
from pushforward.tape.private_generator import as_tensor, is_same, memory_of_cpu
from pushforward.tape.private_torch import bare, num_dispatch_modes, num_function_modes

# By owner, the functions that may draw; those that write their numbers into a tensor are among `Tensor`'s.
_NAMES: dict[Any, str] = {
    torch: (
        "rand randn randint rand_like randn_like randint_like randperm normal bernoulli bernoulli_ multinomial poisson "
        "binomial dropout dropout_ alpha_dropout alpha_dropout_ feature_dropout feature_dropout_ feature_alpha_dropout "
        "feature_alpha_dropout_ native_dropout rrelu rrelu_ lstm gru rnn_tanh rnn_relu svd_lowrank pca_lowrank lobpcg"
    ),
    Tensor: (
        "bernoulli multinomial bernoulli_ normal_ uniform_ random_ cauchy_ exponential_ geometric_ log_normal_"
    ),
    torch.nn.functional: (
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout rrelu rrelu_ gumbel_softmax "
        "fractional_max_pool2d fractional_max_pool2d_with_indices fractional_max_pool3d "
        "fractional_max_pool3d_with_indices multi_head_attention_forward scaled_dot_product_attention"
    ),
    torch.nn.init: (
        "uniform_ normal_ trunc_normal_ xavier_uniform_ xavier_normal_ kaiming_uniform_ kaiming_normal_ orthogonal_ "
        "sparse_"
    ),
}

RANDOM_FUNCTIONS: list[Any] = [
    getattr(owner, name)
    for owner, names in _NAMES.items()
    for name in names.split()
    if hasattr(owner, name)
]

State = tuple[Any, ...]  # of generators: tensors of bytes; or the memory of the CPU's alone, bytes

T = TypeVar("T")


def generator_state(inputs: Sequence[Tensor]) -> State:
    """Return the states of the default generators of the CPU, and of the CUDA devices where ``inputs`` lie."""
    memory = memory_of_cpu()
    if memory is None or any(x.is_cuda for x in inputs):
        return _out_of_sight(bare_generator_state, inputs)
    return (memory.raw,)


def state_bytes(inputs: Sequence[Tensor]) -> int:
    """Return how many bytes of tensors a state takes."""
    return sum(t.nbytes for t in generator_state(inputs) if isinstance(t, Tensor))


def has_drawn(state: State, inputs: Sequence[Tensor]) -> bool:
    """Tell whether the generators are not in this state any more."""
    if isinstance(state[0], bytes):
        return not is_same(state[0], memory_of_cpu().raw)
    return _out_of_sight(bare_has_drawn, state, inputs)


def put_back(state: State, inputs: Sequence[Tensor]) -> None:
    """Set the generators to a state of before."""
    with bare():
        if isinstance(state[0], bytes):
            torch.default_generator.set_state(as_tensor(state[0]))
            return
        for generator, each in zip(_generators(inputs), state, strict=True):
            generator.set_state(each)


def bare_generator_state(inputs: Sequence[Tensor]) -> State:
    """Return them where no mode and no transform of ``torch.func`` is around."""
    return tuple([generator.get_state() for generator in _generators(inputs)])


def bare_has_drawn(state: State, inputs: Sequence[Tensor]) -> bool:
    """Tell so where no mode and no transform of ``torch.func`` is around."""
    now = bare_generator_state(inputs)
    return not all(map(torch.equal, state, now))


def _out_of_sight(ask: Callable[..., T], *given: Any) -> T:
    if num_function_modes() or num_dispatch_modes():
        with bare():
            return ask(*given)
    if functorch_level() is not None:
        with without_functorch():
            return ask(*given)
    return ask(*given)


def _generators(inputs: Sequence[Tensor]) -> list[torch.Generator]:
    devices = sorted({x.get_device() for x in inputs if x.is_cuda})
    return [torch.default_generator, *[torch.cuda.default_generators[d] for d in devices]]
