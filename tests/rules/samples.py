"""Arguments for every ATen operator that has a rule, taken from PyTorch's operator database as it runs.

The functions of the database are run on small inputs in the state in which a recorder sees them (below autograd,
composites taken apart unless they have a rule), and every operator reached is noted with its arguments.
"""

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from device import DEVICE
from rules.extra_samples import extra_samples
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import UnaryUfuncInfo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pushforward.rules.registry import Rule, lookup
from pushforward.tape.calls import functional
from pushforward.tape.private_torch import bare

MAX_NUMEL = 60  # of a tensor argument
LARGE_NUMEL = 600  # the same, where the database has nothing smaller
MAX_PER_ENTRY = 8  # inputs of one function of the database, for each dtype
MAX_PER_RULE = {torch.float64: 6, torch.complex128: 2}
MAX_KEPT = 60  # distinct signatures noted for one rule before the best are chosen


@dataclasses.dataclass(frozen=True)
class Sample:
    """One call of an operator."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: str

    def __str__(self) -> str:
        parts = [_describe(a) for a in self.args]
        parts += [f"{k}={_describe(v)}" for k, v in self.kwargs.items()]
        return f"{self.op}({', '.join(parts)}) [from {self.origin}]"

    @property
    def dtype(self) -> torch.dtype:
        """complex128 if any argument is."""
        dtypes = {t.dtype for t in tensors((self.args, self.kwargs))}
        return torch.complex128 if torch.complex128 in dtypes else torch.float64


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested arguments, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(tree, note)
    return found


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in nested arguments."""
    return tree_map_only(Tensor, function, tree)


def collect() -> dict[Any, list[Sample]]:
    """Return samples for each rule's operator; a rule that nothing reaches has no entry."""
    watch = _Watch()
    for entry in op_db:
        for dtype in (torch.float64, torch.complex128):
            for func, args, kwargs in _inputs(entry, dtype):
                watch.expect(entry.name, tensors((args, kwargs)))
                torch.manual_seed(0)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    _run_forward(watch, func, args, kwargs)
                    if entry.supports_autograd and dtype is torch.float64:
                        _run_backward(watch, func, args, kwargs)
    chosen = {operator: _choose(noted) for operator, noted in watch.noted.items()}
    for op, args, kwargs in extra_samples():
        rule = lookup(op) or lookup(functional(op))
        if rule is not None:
            chosen.setdefault(rule.operator, []).append(Sample(op, args, kwargs, "extra_samples"))
    return chosen


def _run_forward(watch: "_Watch", func: Any, args: Any, kwargs: Any) -> None:
    with bare(), watch, contextlib.suppress(Exception):  # the database has inputs that raise
        func(*_plain(args), **_plain(kwargs))


def _run_backward(watch: "_Watch", func: Any, args: Any, kwargs: Any) -> None:
    """Reach the operators of PyTorch's backward formulas, which some second derivatives are made of."""
    with contextlib.suppress(Exception):
        args, kwargs = map_tensors((args, kwargs), _leaf)
        leaves = [t for t in tensors((args, kwargs)) if t.requires_grad]
        with torch.enable_grad():
            outs = [t for t in tensors(func(*args, **kwargs)) if t.requires_grad]
        watch.max_numel = max([watch.max_numel, *(t.numel() for t in outs)])
        with watch:
            torch.autograd.grad(
                outs, leaves, [torch.randn_like(t) for t in outs], allow_unused=True
            )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point())


def _inputs(
    entry: Any, dtype: torch.dtype
) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    if dtype not in entry.dtypes:
        return
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            requires_grad = entry.supports_autograd
            drawn = list(
                itertools.islice(
                    entry.sample_inputs(DEVICE, dtype, requires_grad=requires_grad), 40
                )
            )
    except Exception:
        return
    sizes = [max((t.numel() for t in tensors(_arguments(s))), default=0) for s in drawn]
    small = [s for s, size in zip(drawn, sizes, strict=True) if size <= MAX_NUMEL]
    if not small and isinstance(entry, UnaryUfuncInfo):
        drawn[0].input = drawn[0].input.flatten()[:12].reshape(3, 4)
        small = drawn[:1]
    small = small or [s for s, size in zip(drawn, sizes, strict=True) if size <= LARGE_NUMEL]
    step = max(len(small) // MAX_PER_ENTRY, 1)
    for sample in small[::step][:MAX_PER_ENTRY]:
        args, kwargs = _plain(_arguments(sample))
        yield entry.op, args, kwargs


def _arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (sample.input, *sample.args), dict(sample.kwargs)


def _plain(tree: Any) -> Any:
    return map_tensors(tree, lambda t: t.detach().clone())


class _Watch(TorchDispatchMode):
    """Notes the arguments of every operator that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.origin = ""
        self.max_numel = MAX_NUMEL
        self.noted: dict[Any, dict[str, Sample]] = {}

    def expect(self, origin: str, found: list[Tensor]) -> None:
        """Start on a function of the database."""
        self.origin = origin
        self.max_numel = max([MAX_NUMEL, *(t.numel() for t in found)])

    def __torch_dispatch__(
        self,
        op: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        twin = functional(op)
        rule = lookup(twin)
        if rule is not None:
            self._note(rule, twin, args, kwargs)
        elif op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                result = op.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return op(*args, **kwargs)

    def _note(self, rule: Rule, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted = self.noted.setdefault(rule.operator, {})
        found = tensors((args, kwargs))
        floating = [t for t in found if t.dtype in (torch.float64, torch.complex128)]
        if len(noted) >= MAX_KEPT or not floating or kwargs.get("generator") is not None:
            return
        if any(t.numel() > self.max_numel or t.layout is not torch.strided for t in found):
            return
        # What takes its argument for Hermitian has PyTorch's slopes beside the Hermitian matrices.
        if kwargs.get("hermitian") or not _is_usable(op, found):
            return
        sample = Sample(op, _contiguous(args), _contiguous(kwargs), self.origin)
        signature = ", ".join(map(_describe, (op, *args, *kwargs.values())))
        noted.setdefault(signature, sample)


def _is_usable(op: Any, found: list[Tensor]) -> bool:
    name = op._schema.name
    if name.startswith("aten::as_strided"):  # its samples are made contiguous
        return found[0].is_contiguous()
    if name.startswith("aten::max_unpool"):  # of several values at one place any may win
        indices = found[1]
        rows = indices.flatten(-2 if "2d" in name else -3)
        return all(len(row.unique()) == len(row) for row in rows.reshape(-1, rows.shape[-1]))
    return True


def _contiguous(tree: Any) -> Any:
    return map_tensors(
        tree,
        lambda t: (
            t.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        ),
    )


def _choose(noted: dict[str, Sample]) -> list[Sample]:
    """Prefer calls made by the database's entry of the same name, and differing overloads and shapes."""
    chosen: list[Sample] = []
    for dtype, limit in MAX_PER_RULE.items():
        candidates = [s for s in noted.values() if s.dtype == dtype]
        candidates.sort(key=lambda s: s.origin.split(".")[-1] not in s.op._schema.name)
        own = [s for s in candidates if s.origin.split(".")[-1] in s.op._schema.name]
        pool = own if len(own) >= limit else candidates
        step = max(len(pool) // limit, 1)
        chosen += pool[::step][:limit]
        overloads = {s.op for s in chosen}
        for sample in candidates:
            if sample.op not in overloads:
                overloads.add(sample.op)
                chosen.append(sample)
    return chosen


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe, value))}]"
    return str(value)
