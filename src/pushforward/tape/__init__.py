"""PyTorch's own record of a function: run it under autograd, read the graph, turn nodes into linear maps."""
