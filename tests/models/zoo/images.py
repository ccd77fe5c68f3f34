"""Networks on images: residual, bottleneck and ConvNeXt blocks, U-Nets; normalization by batches in both modes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from models.zoo.model import Model, of_module, randn, switched
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


def resnet_in_turns() -> Model:
    """Trained and evaluated by turns: what evaluation gives depends on how often it was trained."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), ResidualBlock(3, 3, 2), nn.Flatten())
    return switched(net, randn(2, 2, 5, 6), has_vmap=False)


class Bottleneck(nn.Module):
    """Narrow, convolve by groups, weigh the channels (squeeze and excitation), widen, and add."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(4, 2, 1)
        self.convolve = nn.Conv2d(2, 2, 3, padding=2, dilation=2, groups=2)
        self.squeeze = nn.Linear(2, 3)
        self.excite = nn.Linear(3, 2)
        self.widen = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.convolve(F.relu6(self.narrow(x))))
        # A hardsigmoid, whose own derivative PyTorch rounds to single precision.
        gate = F.relu6(self.excite(F.mish(self.squeeze(y.mean((-2, -1))))) + 3) / 6
        y = self.widen(y * gate[..., None, None]).add_(x)
        return F.avg_pool2d(F.leaky_relu_(y, 0.1), 3, stride=2, padding=1)


def bottleneck() -> Model:
    return of_module(Bottleneck(), randn(1, 4, 4, 3))


class ConvNeXtBlock(nn.Module):
    """A deep convolution, channels last, a normalization and two layers with a gain, and the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(2 * channels, channels)
        self.gain = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.gain * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> Model:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2, stride=2),
        ConvNeXtBlock(3),
        nn.Conv2d(3, 4, 2, stride=2),
        ConvNeXtBlock(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(4),
    )
    return of_module(net, randn(2, 1, 4, 8))


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


class TimedBlock(nn.Module):
    """Normalize by groups, scale and shift by the embedded time, convolve, and add."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.time = nn.Linear(time, 2 * channels)
        self.convolve = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(time))[..., None, None].chunk(2, dim=1)
        return x + self.convolve(F.silu(self.norm(x) * (1 + scale) + shift))


class DiffusionUNet(nn.Module):
    """Two levels with a sinusoidal embedding of time, and attention among the pixels of the lower one."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Parameter(torch.tensor([0.3]))
        self.embed = nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 3))
        self.into = nn.Conv2d(1, 2, 1)
        self.first = TimedBlock(2, 3)
        self.down = nn.Conv2d(2, 4, 2, stride=2)
        self.lower = TimedBlock(4, 3)
        self.qkv = nn.Conv1d(4, 12, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.last = TimedBlock(4, 3)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(2, dtype=x.dtype) * math.log(100.0) / 2)
        phase = self.time[:, None] * rates * 10
        time = self.embed(torch.cat([phase.sin(), phase.cos()], dim=-1)).expand(x.shape[0], -1)
        skip = self.first(self.into(x), time)
        y = self.lower(self.down(skip), time)
        q, k, v = self.qkv(y.flatten(2)).mT.chunk(3, dim=-1)
        y = y + F.scaled_dot_product_attention(q, k, v).mT.reshape(y.shape)
        y = torch.cat([F.pixel_shuffle(self.up(y), 2), skip], dim=1)
        return self.out(self.last(y, time))


def diffusion_unet() -> Model:
    return of_module(DiffusionUNet(), randn(1, 1, 4, 4))


MODELS = {
    "resnet in evaluation": resnet_in_evaluation,
    "resnet in training": resnet_in_training,
    "resnet without running statistics": resnet_without_running_statistics,
    "resnet in training and evaluation": resnet_in_turns,
    "bottleneck": bottleneck,
    "convnext": convnext,
    "u-net": unet,
    "diffusion u-net": diffusion_unet,
}
