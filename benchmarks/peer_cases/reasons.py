"""Why a peer is faster: by workload, and "eager", "fused" or both ("")."""

_CALLS = (
    "products of matrices by vectors are calls of BLAS, each dearer than its product, and cut what is fused (MLP vjp: "
    "22 of 31 µs); guards of six parameters take 3 µs, what is around the graph 5; JAX has the weights as constants"
)
REASONS: dict[tuple[str, str], str] = {
    (name, "fused"): _CALLS
    for name in (
        "MLP 64-128-128-10 jacfwd", "MLP 64-128-128-10 jacrev", "MLP Hessian times vector", "MLP jvp", "MLP vjp",
        "MLP, linearized, 10 pushes",
    )
}  # fmt: skip
