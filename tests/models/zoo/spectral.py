"""Layers in frequency space: Fourier neural operators, long convolutions, spectrograms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models.zoo.model import Model, Params, of_module, randn
from torch import Tensor, nn


class FourierLayer1d(nn.Module):
    """Multiply the lowest modes by complex matrices, beside a pointwise layer."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.spectrum = nn.Parameter(randn(channels, channels, modes, 2, scale=0.5))
        self.beside = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        kept = torch.einsum(
            "bim,iom->bom", spectrum[..., : self.modes], torch.view_as_complex(self.spectrum)
        )
        out = torch.zeros_like(spectrum)
        out[..., : self.modes] = kept
        return F.gelu(torch.fft.irfft(out, n=x.shape[-1]) + self.beside(x))


def fourier_operator() -> Model:
    net = nn.Sequential(
        nn.Conv1d(1, 2, 1), FourierLayer1d(2, 2), FourierLayer1d(2, 2), nn.Conv1d(2, 1, 1)
    )
    return of_module(net, randn(1, 1, 7))


class FourierLayer2d(nn.Module):
    """Low modes of both signs along the first axis, of one sign along the second."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(randn(2, 2, 2, 2, 2, scale=0.5))
        self.high = nn.Parameter(randn(2, 2, 2, 2, 2, scale=0.5))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        low, high = torch.view_as_complex(self.low), torch.view_as_complex(self.high)
        out = spectrum.new_zeros(spectrum.shape)
        out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :2, :2], low)
        out[:, :, -2:, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -2:, :2], high)
        return torch.fft.irfft2(out, s=x.shape[-2:], norm="ortho").tanh() + x


def fourier_operator_2d() -> Model:
    return of_module(FourierLayer2d(), randn(1, 2, 5, 4))


def long_convolution() -> Model:
    """A gated convolution as long as the sequence, by transforms of twice its length."""
    params = {"kernel": randn(2, 5), "decay": randn(2), "gate": randn(2, 2)}

    def call(p: Params, x: Tensor) -> Tensor:
        length = x.shape[-1]
        time = torch.arange(length, dtype=x.dtype)
        kernel = p["kernel"] * (-F.softplus(p["decay"])[:, None] * time).exp()
        product = torch.fft.rfft(kernel, n=2 * length) * torch.fft.rfft(x, n=2 * length)
        y = torch.fft.irfft(product, n=2 * length)[..., :length]
        return y * (p["gate"] @ x).sigmoid()

    return Model(call, params, randn(2, 5))


def spectrogram() -> Model:
    """A filtered signal's logarithmic power at each frequency and time."""
    params = {"window": randn(4).exp(), "bank": randn(3, 2).exp()}

    def call(p: Params, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 4, hop_length=3, window=p["window"], return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (p["bank"].mT @ power + 0.1).log() + 0.1 * (spectrum[1].real + spectrum[1].imag)

    return Model(call, params, randn(9))


MODELS = {
    "fourier neural operator": fourier_operator,
    "fourier neural operator in the plane": fourier_operator_2d,
    "long convolution": long_convolution,
    "spectrogram": spectrogram,
}
