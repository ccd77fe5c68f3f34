"""Why a peer is faster: by workload, and "eager", "fused" or both ("")."""

_PARAMETERS = (
    "the loss of ten parameters: of 860 µs the function takes 330 and the kernels behind it 430, about as long as "
    "autograd's; to copy and compare parameters and to read the graph takes Python 95, and the peer 40"
)
_PRODUCTS = (
    "products of matrices take {} µs in MKL, of {} in all loops and products; (320, 64) by (64, 64) takes it 25 µs, "
    "and oneDNN 11 behind 10 of its call"
)
_CALLS = (
    "{}, each a call from C++ through PyTorch's dispatcher, with a tensor allocated for each result"
)
_RECURRENT = (
    "steps follow each other: each is a call of BLAS and a loop of a few elements, with memory for both results; the "
    "call of a product of (4, 4) matrices from Python takes 0.88 µs, of (16, 16) ones 1.04"
)
_NUMBERS = (
    "a call of ours from Python costs 2 µs, of which the numbers take a fourth; CasADi is called without tensors "
    "around it"
)
REASONS: dict[tuple[str, str], str] = {
    ("LeNet, loss by parameters", "eager"): _PARAMETERS,
    ("LeNet, loss by parameters", "fused"): (
        "torch.compile makes the gradients by image and weight of a convolution in one call, ours in two"
    ),
    ("MLP 64-128-128-10 jacobian", "fused"): _PRODUCTS.format(8.5, 9.6),
    ("MLP 64-128-128-10 jacrev", "fused"): _PRODUCTS.format(8.5, 9.6),
    ("MLP 64-128-128-10 jacfwd", "fused"): _PRODUCTS.format(23.4, 24.9),
    ("per-sample Jacobians 8-16-16-3", "fused"): _CALLS.format("four products of matrices"),
    ("per-sample Jacobians 3-64-5", "fused"): _CALLS.format("two products of matrices"),
    ("PINN Hessians, 64 points", "fused"): _PRODUCTS.format(14.0, 17.8),
    ("PINN Laplacians 5-64-64-1", "fused"): _PRODUCTS.format(67.3, 77.3),
    (
        "GRU, 10 steps",
        "fused",
    ): "memory for 51 results and 44 views of it takes a third of the call, ten products in MKL a tenth",
    ("RNN cell of 16, 50 steps", "fused"): _RECURRENT,
    ("RNN of 32 by hand, 50 steps", "fused"): _RECURRENT,
    ("attention temperature", "fused"): _CALLS.format("three products of matrices"),
    (
        "ResNet block, 8×8×8",
        "fused",
    ): "four convolutions take oneDNN 77 µs, of 86 in all loops and calls: two of eight images 32 each",
    ("attention block", "fused"): _PRODUCTS.format(48.4, 84.9),
    ("transformer block, 4 heads", "fused"): _PRODUCTS.format(54.2, 76.3),
    (
        "mixture likelihood",
        "fused",
    ): "four loops over nine dense directions of 100 samples, each along an axis of 3 that fills 3 of 8 lanes",
    ("RobotArm_6DOF", "fused"): _NUMBERS,
    ("RoeFlux_1d", "fused"): _NUMBERS,
    ("HumanHeartDipole", "fused"): _NUMBERS,
    ("PropaneCombustion", "fused"): _NUMBERS,
}
