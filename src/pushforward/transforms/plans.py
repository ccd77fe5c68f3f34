"""clear_plans: forget what was kept for calls to come."""

from __future__ import annotations

from pushforward.planning.plans import PLANS
from pushforward.tape import trust


def clear_plans() -> None:
    """Forget all that was kept for calls to come: kernels, orders of elimination, which functions need no watching.

    Results are the same before and after; the next calls work everything out anew. For programs that want the memory
    back, and for measuring what a first call costs.

    Example:
        >>> from pushforward import jacfwd
        >>> jacobian = jacfwd(torch.sin)(torch.zeros(1))
        >>> clear_plans()
    """
    PLANS.clear()
    trust.clear()
