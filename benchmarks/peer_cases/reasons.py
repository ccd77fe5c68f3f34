"""Why a peer is faster: by workload, and "eager", "fused" or both ("")."""

_PARAMETERS = (
    "the loss of ten parameters: each is copied, looked at and read by Python; kernels take 680 µs of 1110, half of "
    "them convolutions that both sides make"
)
_CALLS = (
    "{} between the loops, each a call from Python through PyTorch's dispatcher; guards take 1 to 2 µs, what is around "
    "the graph 3"
)
_RECURRENT = (
    "steps follow each other, and each has products of small matrices, which are calls of BLAS between loops of a few "
    "elements (of 50 steps by hand 49 calls and 50 loops)"
)
_NUMBERS = (
    "a call of ours from Python costs 3 µs, of which the numbers take less than half; CasADi is called without tensors "
    "around it"
)
_VECTORS = "no call of BLAS is left: products of matrices by vectors are loops of Inductor's; not looked into further"
REASONS: dict[tuple[str, str], str] = {
    ("LeNet, loss by parameters", "eager"): _PARAMETERS,
    ("LeNet, loss by parameters", "fused"): (
        "torch.compile makes the gradients by image and weight of a convolution in one call, ours in two"
    ),
    ("MLP vjp", "fused"): _VECTORS,
    ("MLP jvp", "fused"): _VECTORS,
    ("MLP Hessian times vector", "fused"): _VECTORS,
    ("MLP 64-128-128-10 jacobian", "fused"): _CALLS.format("two products of matrices"),
    ("MLP 64-128-128-10 jacrev", "fused"): _CALLS.format("two products of matrices"),
    ("MLP 64-128-128-10 jacfwd", "fused"): _CALLS.format("two products of matrices"),
    ("per-sample gradients", "fused"): _CALLS.format("eight products of matrices"),
    ("per-sample Jacobians 8-16-16-3", "fused"): _CALLS.format("five products of matrices"),
    ("per-sample Jacobians 3-64-5", "fused"): _CALLS.format("two products of matrices"),
    ("PINN Hessians, 64 points", "fused"): _CALLS.format("six products of matrices"),
    ("PINN Laplacians 5-64-64-1", "fused"): _CALLS.format("six products of matrices"),
    ("GRU, 10 steps", "fused"): _RECURRENT,
    ("RNN cell of 16, 50 steps", "fused"): _RECURRENT,
    ("RNN of 32 by hand, 50 steps", "fused"): _RECURRENT,
    (
        "attention temperature",
        "fused",
    ): _CALLS.format("three products of matrices"),
    ("ResNet block, 8×8×8", "fused"): _CALLS.format("four convolutions"),
    ("attention block", "fused"): _CALLS.format("five products of matrices"),
    ("transformer block, 4 heads", "fused"): _CALLS.format("twelve products of matrices"),
    ("Kalman step", "fused"): _CALLS.format("ten products and a solution of a small system"),
    ("linear solve", "fused"): _CALLS.format("solutions of a small system"),
    (
        "mixture likelihood",
        "fused",
    ): "four loops over nine dense directions of 100 samples, each along an axis of 3 that fills 3 of 8 lanes",
    ("RobotArm_6DOF", "fused"): _NUMBERS,
    ("RoeFlux_1d", "fused"): _NUMBERS,
    ("HumanHeartDipole", "fused"): _NUMBERS,
    ("PropaneCombustion", "fused"): _NUMBERS,
}
