"""The function that is differentiated where it does not matter which."""

import torch

W = torch.linspace(-1, 1, 16).reshape(4, 4).double()


def mixed(x):
    return torch.sin(W @ x) * x.roll(1) + torch.stack([x[0], x[1] * x[2], x.sum(), x.prod()])


def scalar(x):
    return mixed(x).square().sum()
