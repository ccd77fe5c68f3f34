"""Arrays to tensors, and tensors to arrays: what stands between SciPy and a function of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pushforward.compiling.backends import Backend
from pushforward.compiling.compiled import compile as compile_function
from pushforward.errors import ArgumentTypeError, ArgumentValueError, MissingPackageError, message
from pushforward.trees import flatten

try:
    import numpy as np
    import scipy.sparse
except ImportError as error:
    raise MissingPackageError(
        message(
            "pushforward.scipy",
            "import",
            f"no package {error.name}",
            "SciPy and NumPy installed",
            "Install them (pip install 'pushforward[scipy]').",
        )
    ) from None

Array: TypeAlias = "np.ndarray[Any, Any]"
FLOAT64 = np.dtype(np.float64)
Form = Literal["dense", "csr", "csc", "coo", "bsr", "operator"]
FORMS = ("dense", "csr", "csc", "coo", "bsr", "operator")


class Arrays:
    """How a function of tensors is called with arrays: in which dtype, on which device, compiled or not."""

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        output: Form = "dense",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool | Backend = False,
    ) -> None:
        """Check the options."""
        if not callable(func):
            raise ArgumentTypeError(
                message(name, "func", repr(func), "a function of tensors", "Pass it first.")
            )
        if output not in FORMS:
            raise ArgumentValueError(
                message(name, "output", repr(output), f"one of {FORMS}", "Leave it out for dense.")
            )
        if dtype is not None and not (
            isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
        ):
            raise ArgumentTypeError(
                message(name, "dtype", dtype, "a floating dtype of PyTorch", "Use torch.float32.")
            )
        self.name, self.output, self.dtype, self.device = name, output, dtype, device
        self._compile, self.is_compiled = compile, compile is not False

    def compiled(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``func``, compiled if that was asked for."""
        if self._compile is False:
            return func
        backend: Backend = "inductor" if self._compile is True else self._compile
        return compile_function(func, backend=backend)

    def compiled_value(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``func``, compiled if that makes it faster: straight calls are those that it makes itself."""
        return func if self._compile == "eager" else self.compiled(func)

    def tensor(self, array: Any) -> Tensor:
        """Return a copy of numbers that may be differentiated: what SciPy writes to its arrays does not reach it."""
        copied = np.array(array)
        if copied.dtype is not FLOAT64 and copied.dtype.kind not in "fc":
            if copied.dtype.kind not in "iub":
                raise ArgumentTypeError(
                    message(
                        self.name, "an array's dtype", copied.dtype, "numbers", "Use astype(float)."
                    )
                )
            copied = copied.astype(np.float64)
        tensor = torch.from_numpy(copied)
        if self.dtype is None and self.device is None:
            return tensor
        dtype = self.dtype
        if dtype is not None and tensor.is_complex():
            dtype = dtype.to_complex()
        return tensor.to(self.device, dtype)

    def argument(self, value: Any) -> Any:
        """Return a further argument: arrays as tensors, numbers of NumPy as numbers, all else as it is."""
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "fc":
                return self.tensor(value)
            return torch.from_numpy(np.array(value)).to(self.device)
        return value.item() if isinstance(value, np.generic) else value

    def arguments(self, values: Any) -> list[Any]:
        """Return further arguments."""
        return [self.argument(value) for value in values] if values else []

    def given(self, x: Any, values: Any) -> list[Any]:
        """Return a point and further arguments."""
        return [self.tensor(x), *self.arguments(values)]

    def array(self, tensor: Tensor, is_complex: bool = False) -> Array:
        """Return an array of its own, in double precision, as SciPy computes."""
        try:
            found = tensor.numpy()
            if found.dtype is FLOAT64:  # nearly always
                return found.copy()
        except (RuntimeError, TypeError):  # it requires grad, is negated, or is elsewhere
            pass
        if tensor.is_complex() and not is_complex:
            raise ArgumentTypeError(
                message(
                    self.name,
                    "result's dtype",
                    tensor.dtype,
                    "real numbers",
                    "Return torch.view_as_real of it.",
                )
            )
        if tensor.requires_grad:
            tensor = tensor.detach()
        if tensor.is_neg() or tensor.is_conj():
            tensor = tensor.resolve_conj().resolve_neg()
        if tensor.dtype is torch.bfloat16:
            tensor = tensor.float()
        found = tensor.numpy() if tensor.is_cpu else tensor.numpy(force=True)
        return np.array(found, np.complex128 if tensor.is_complex() else np.float64)

    def matrix(self, matrix: Tensor, is_complex: bool = False) -> Any:
        """Return a Jacobian, dense or sparse, as SciPy has them."""
        if matrix.layout is torch.strided:
            return self.array(matrix, is_complex)
        shape = tuple(matrix.shape)
        if matrix.layout is torch.sparse_coo:
            rows, columns = matrix.indices().cpu().numpy()
            values = self.array(matrix.values(), is_complex)
            return scipy.sparse.coo_array((values, (rows, columns)), shape=shape)
        values = self.array(matrix.values(), is_complex)
        if matrix.layout is torch.sparse_csc:
            make, indices = scipy.sparse.csc_array, (matrix.row_indices(), matrix.ccol_indices())
        else:
            make = (
                scipy.sparse.csr_array
                if matrix.layout is torch.sparse_csr
                else scipy.sparse.bsr_array
            )
            indices = matrix.col_indices(), matrix.crow_indices()
        return make((values, *[np.array(i.cpu().numpy()) for i in indices]), shape=shape)

    def joined(self, result: Any) -> Tensor:
        """Return what a function returned as one vector."""
        if isinstance(result, Tensor):
            return result if result.ndim == 1 else result.reshape(-1)
        leaves, _ = flatten(result)
        for leaf in leaves or [result]:
            if not isinstance(leaf, Tensor):
                raise self.is_no_tensor(leaf)
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    def is_no_tensor(self, found: object) -> ArgumentTypeError:
        """Return the error for what a function returned."""
        return ArgumentTypeError(
            message(
                self.name,
                "what the function returned",
                type(found).__name__,
                "a tensor of PyTorch",
                "Compute with torch, and return torch.stack of the numbers.",
            )
        )


def snapshot(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return what is equal for arguments with the same elements; None where that cannot be told."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return None
            found += (value.shape, value.dtype.str, value.tobytes())
        elif isinstance(value, Tensor):
            if value.is_inference():
                return None
            found += (_Same(value), value._version, _shared_bytes(value))
        elif value is None or isinstance(value, (bool, int, float, complex, str, np.generic)):
            is_plain = value == value and value  # 0.0 and -0.0 are equal
            found += (type(value), value if is_plain else repr(value))
        elif isinstance(value, tuple):
            inner = snapshot(value)
            if inner is None:
                return None
            found.append(inner)
        else:
            return None
    return tuple(found)


def _shared_bytes(tensor: Tensor) -> bytes | None:
    """Return what lies in memory that is shared with NumPy, whose writes count as no versions."""
    is_plain = tensor.is_cpu and tensor.layout is torch.strided
    if not is_plain or tensor.untyped_storage().resizable():
        return None
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8).numpy().tobytes()


class _Same:
    """Is equal to what holds the same object, which it keeps alive."""

    __slots__ = ("of",)

    def __init__(self, of: object) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.of is self.of
