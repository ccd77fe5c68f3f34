"""Rewriting the imports of a source tree: ``torch.func`` becomes a module with ours in it."""

from __future__ import annotations

import re
from pathlib import Path

MODULE = "torch_func_swapped"

# What ours has takes the place of PyTorch's; functional_call, stack_module_state and the like stay.
CODE = f'''"""{MODULE}: torch.func, with the derivatives of pushforward."""
from torch.func import *
from pushforward import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, vjp
'''

_FROM = re.compile(r"\bfrom\s+(?:torch\.func|functorch)\s+import\b")
_ATTRIBUTE = re.compile(r"\btorch\.func\.(?=\w)")


def swap_imports(tree: Path, source: Path) -> int:
    """Rewrite every module below ``tree``; return how many lines changed.

    The module that they import instead is written into ``source``, a folder on ``PYTHONPATH``.
    """
    changed = 0
    for path in sorted(tree.rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        text, froms = _FROM.subn(f"from {MODULE} import", text)
        text, attributes = _ATTRIBUTE.subn(f'__import__("{MODULE}").', text)
        if froms + attributes:
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            changed += froms + attributes
    (source / f"{MODULE}.py").write_text(CODE)
    return changed
