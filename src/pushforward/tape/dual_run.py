"""Running a function with dual numbers: where an ``autograd.Function`` has a forward derivative of its own.

Autograd's graph does not keep what such a ``jvp`` needs. So PyTorch runs it, in forward mode, and what is recorded is
the tangents: the graph from those of the inputs to those of the outputs, which is linear.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pushforward.errors import UnsupportedError
from pushforward.tape.copies import tracked_copy
from pushforward.tape.node_types import JVP_ONLY, WITH_JVP
from pushforward.tape.private_functorch import dual_numbers, unwrap_for_grad
from pushforward.tape.private_torch import function_of
from pushforward.tape.reader import Reading
from pushforward.tape.run import Run

_lock = threading.RLock()  # the level of dual numbers belongs to the process

# Transforms that run forward through an operator, and so use its forward derivative if it has one.
_FORWARD = {"jvp", "jacfwd", "linearize", "jacobian"}

# Nodes of operators whose forward derivatives PyTorch (2.13) differentiates wrongly, or refuses to, as it overwrites in
# them what it has saved.
_WRONG_TWICE = {
    "NativeBatchNormBackward0", "NativeLayerNormBackward0", "NativeGroupNormBackward0", "LinalgDetBackward0",
    "LinalgSlogdetBackward0", "LinalgSolveExBackward0", "CholeskyInverseBackward0", "ScatterReduceBackward0",
    "SoftmaxBackward0", "SafeSoftmaxBackward0", "LogSoftmaxBackward0", "LogsumexpBackward0", "LogcumsumexpBackward0",
    "LinalgVectorNormBackward0", "RenormBackward0", "ScaledDotProductFlashAttentionForCpuBackward0",
    "ScaledDotProductFlashAttentionBackward0", "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0", "ScaledDotProductFusedAttentionOverrideableBackward0",
}  # fmt: skip


def is_only_way(reading: Reading) -> bool:
    """Tell whether a function has a ``jvp`` and no backward."""
    return JVP_ONLY in reading.types


def is_refusal(error: RuntimeError) -> bool:
    """Tell whether something else that is called has no forward derivative, or has dual numbers of its own."""
    return isinstance(error, NotImplementedError) or "Nested forward mode AD" in str(error)


def is_needed(run: Run, reading: Reading) -> bool:
    """Tell whether a run is to be made again with dual numbers.

    So it is where a transform in forward mode meets a function with a ``jvp``; but for nested ones, as PyTorch's dual
    numbers have one level: there the backward serves, which is the same derivative. It serves, too, where a second run
    would do twice what has to be seen: writes, draws.

    Raises:
        UnsupportedError: There is none.
    """
    has_jvp_only = is_only_way(reading)
    if not has_jvp_only and not (run.name in _FORWARD and WITH_JVP in reading.types):
        return False
    with _lock:  # another thread's run has a level while it goes on
        has_duals = forward_ad._current_level >= 0
    is_inside = has_duals or any(
        run.is_plain and function_of(node) is not node._forward_cls
        for node, kind in zip(reading.nodes, reading.types, strict=True)
        if kind in (JVP_ONLY, WITH_JVP)
    )
    if not (run.has_inner or is_inside or not (run.is_quiet or has_jvp_only)):
        return has_jvp_only or not _would_be_wrong(run, reading)
    if has_jvp_only:
        raise UnsupportedError(
            f"{run.name}: an autograd.Function with a jvp and without a backward, in nested transforms: got the two, "
            "expected a backward. Implement it."
        )
    return False


def _would_be_wrong(run: Run, reading: Reading) -> bool:
    """Tell whether the tangents may be differentiated, and PyTorch's derivative of some is wrong."""
    may_go_on = not (run.is_outermost and run.is_plain) or (
        run.grad_mode and any(x.requires_grad for x in run.inputs)
    )
    return may_go_on and any(kind.name in _WRONG_TWICE for kind in reading.types)


class DualRun(Run):
    """A run whose tape goes from the tangents of the inputs to those of the outputs."""

    __slots__ = ("_dual_level", "_primal_versions", "_stack", "_zeros")

    def __init__(self, name: str, inputs: Sequence[Tensor], randomness: str) -> None:
        """Prepare, as `Run`."""
        super().__init__(name, inputs, randomness)
        self._stack = contextlib.ExitStack()
        self._zeros = [torch.zeros_like(x.detach()) for x in inputs]

    def _tracked(self) -> list[Tensor]:
        tangents = [tracked_copy(zero, self._level) for zero in self._zeros]
        self._stack.enter_context(_lock)
        self._dual_level = self._stack.enter_context(dual_numbers())
        self.tracked = [
            forward_ad.make_dual(x.clone(), tangent)
            for x, tangent in zip(self.inputs, tangents, strict=True)
        ]
        self._primal_versions = [x._version for x in self.tracked]
        return tangents

    def __exit__(self, *exception: Any) -> None:
        """Put everything back."""
        self._stack.close()
        super().__exit__(*exception)

    def leave(self, error: BaseException | None = None) -> None:
        """Put the thread back, as `Run.leave`."""
        try:
            super().leave(error)
        finally:
            self._stack.close()

    def physical(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the tangents of the function's outputs."""
        found = []
        for leaf in leaves:
            primal, tangent = forward_ad.unpack_dual(leaf)
            tangent = torch.zeros_like(primal) if tangent is None else tangent
            found.append(self._below(tangent))
        return found

    def outputs(self, leaves: Sequence[Tensor], reading: Reading) -> list[Tensor]:
        """Return the function's outputs as the caller may have them."""
        return [self.handed_over(leaf) for leaf in leaves]

    def handed_over(self, tensor: Any) -> Any:
        """Return a tensor that the function returned, without its tangent."""
        if not isinstance(tensor, Tensor):
            return tensor
        primal = self._below(forward_ad.unpack_dual(tensor).primal)
        return super().handed_over(primal)

    def _below(self, tensor: Tensor) -> Tensor:
        return tensor if self._dual_level is None else unwrap_for_grad(tensor, self._dual_level)

    def written(self) -> list[tuple[Tensor, Tensor]]:
        """Return the inputs that the function wrote to, each with what is to be written to the caller's tensor."""
        return [
            (x, self.handed_over(inner))
            for x, inner, version in zip(
                self._given, self.tracked, self._primal_versions, strict=True
            )
            if inner._version != version
        ]
