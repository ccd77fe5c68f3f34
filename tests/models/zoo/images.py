"""Networks on images: residual, bottleneck and ConvNeXt blocks, U-Nets; normalization by batches in both modes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, of_module, randn
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, **norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, **norm)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, **norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels, **norm),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


def resnet(**norm: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3, **norm),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        ResidualBlock(3, 3, 1, **norm),
        ResidualBlock(3, 4, 2, **norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def resnet_in_evaluation() -> Model:
    net = resnet().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(randn(module.num_features, scale=0.3))
            module.running_var.copy_(randn(module.num_features).exp())
    return of_module(net.eval(), randn(1, 2, 8, 8))


def resnet_in_training() -> Model:
    return of_module(resnet().train(), randn(2, 2, 8, 6), has_vmap=False)


def resnet_without_running_statistics() -> Model:
    return of_module(resnet(track_running_stats=False).train(), randn(2, 2, 8, 6))


class UNet(nn.Module):
    """Two levels: convolve, pool, convolve, transposed convolution, join the skip, convolve."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.SiLU())
        self.bottom = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU())
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.join = nn.Conv2d(6, 2, 3, padding=1, padding_mode="reflect")
        self.out = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        y = self.up(self.bottom(F.max_pool2d(skip, 2)))
        y = F.pad(y, (0, skip.shape[-1] - y.shape[-1], 0, skip.shape[-2] - y.shape[-2]))
        y = self.join(torch.cat([skip, y], dim=-3)).tanh()
        return F.interpolate(self.out(y), scale_factor=0.5, mode="bilinear")


def unet() -> Model:
    return of_module(UNet(), randn(1, 1, 7, 6))


MODELS = {
    "resnet in evaluation": resnet_in_evaluation,
    "resnet in training": resnet_in_training,
    "resnet without running statistics": resnet_without_running_statistics,
    "u-net": unet,
}
