"""hessian and hvp: second derivatives, forward over reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pushforward.tape.private_torch import left_alone_by_dynamo
from pushforward.transforms.arguments import Argnums, P, check_function, named_after
from pushforward.transforms.asked import Asked
from pushforward.transforms.chunks import Chunks, ChunkSize, chunks_of
from pushforward.transforms.compressed import Symmetric
from pushforward.transforms.grad import named_grad_and_value
from pushforward.transforms.jacobian import computing
from pushforward.transforms.jacrev import named_jacrev
from pushforward.transforms.jvp import check_primals, named_jvp
from pushforward.transforms.sparse_output import Output

NAME = "hessian"


@left_alone_by_dynamo
def hessian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    output: Output = "dense",
    pattern: Any = None,
    chunk_size: ChunkSize = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Callable[P, Any]:
    """Return a function that computes the Hessian of ``func``, forward mode over reverse mode.

    Args:
        func: Maps tensors (any pytree) to tensors (any pytree).
        argnums: Which positional arguments, ``int`` or tuple of distinct ``int``; negative counts from the end.
        has_aux: Whether ``func`` returns ``(output, aux)``.
        output: As in `jacobian`: sparse Hessians are matrices ``(out.numel() * in.numel(), in.numel())``.
        pattern: As in `jacobian`, and symmetric, of a ``func`` that returns a number.
        chunk_size: As in `jacfwd`, of columns that go through the gradient.
        memory_limit: As in `jacfwd`.
        progress: As in `jacfwd`.

    Returns:
        A function with ``func``'s arguments. For output ``(*out)`` and argument ``(*in)`` it gives
        ``(*out, *in, *in)``; nested as ``jacfwd(jacrev(func, argnums), argnums)`` nests. With ``has_aux``,
        ``(hessian, aux)``.

    Raises:
        TypeError: An argument to differentiate, or an output, is not a floating or complex tensor.
        ValueError: ``argnums`` are out of range, repeated or empty.
        MemoryLimitError: One column at a time is expected to need more than ``memory_limit``.

    Example:
        >>> hessian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])

    References:
        Griewank and Walther, Evaluating Derivatives (2008), section 5 (second derivatives).
    """
    chunks = chunks_of(chunk_size, memory_limit, progress)
    asked = Asked(
        NAME,
        argnums,
        "forward",
        has_aux,
        output,
        None if pattern is None else Symmetric(pattern),
        chunks,
        "same",
    )
    nested = computing(named_jacrev(NAME, func, argnums, has_aux, Chunks()), asked)

    def compute(*args: Any, **kwargs: Any) -> Any:
        check_function(NAME, func)
        return nested(*args, **kwargs)

    return named_after(func, compute)


@left_alone_by_dynamo
def hvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    vectors: tuple[Any, ...],
    *,
    has_aux: bool = False,
) -> Any:
    """Compute a scalar ``func`` and the product of its Hessian with ``vectors``, without the Hessian.

    Args:
        func: Returns one real tensor without axes.
        primals: The arguments, as a tuple.
        vectors: The direction: the same structure and shapes; converted to the primals' dtypes.
        has_aux: Whether ``func`` returns ``(output, aux)``.

    Returns:
        ``(output, product)``, the product in the structure of ``primals``, as ``torch.autograd.functional.hvp`` has it;
        with ``has_aux`` ``(output, product, aux)``. About the cost of a gradient and a `jvp` of it.

    Raises:
        TypeError: As `grad` and `jvp`.
        ValueError: As `grad` and `jvp`.

    Example:
        >>> hvp(lambda x: (x**3).sum(), (torch.tensor([1.0, 2.0]),), (torch.ones(2),))
        (tensor(9.), (tensor([ 6., 12.]),))

    References:
        Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """
    check_function("hvp", func)
    check_primals("hvp", primals)
    argnums = tuple(range(len(primals)))

    def gradient(*args: Any) -> Any:
        gradients, value = named_grad_and_value("hvp", func, argnums, has_aux)(*args)
        return gradients, value

    _, product, value = named_jvp("hvp", gradient, primals, vectors, has_aux=True)
    return (value[0], product, value[1]) if has_aux else (value, product)
