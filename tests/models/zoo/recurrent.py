"""Recurrent networks: by layers, by cells, and by hand."""

from __future__ import annotations

import torch
from models.zoo.model import Model, of_module, randn
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A recurrent layer; the output sequence and the final states, side by side."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.net = kind(2, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        sequence, state = self.net(x)
        states = state if isinstance(state, tuple) else (state,)
        return torch.cat([sequence.flatten(), *(s.flatten() for s in states)])


def lstm() -> Model:
    return of_module(Recurrent(nn.LSTM, bidirectional=True), randn(2, 3, 2))


def gru() -> Model:
    return of_module(Recurrent(nn.GRU, num_layers=2), randn(2, 3, 2))


class LSTMByHand(nn.Module):
    """A cell in a loop, its states written into a preallocated sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2, 3)
        self.project = nn.Linear(2, 12)
        self.recur = nn.Linear(3, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 3)
        c = x.new_zeros(x.shape[0], 3)
        sequence = x.new_zeros(x.shape[0], x.shape[1], 3)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            i, f, g, o = (self.project(x[:, t]) + self.recur(h)).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            sequence[:, t] = h
        return sequence


class Cells(nn.Module):
    """A GRU's cell that feeds an LSTM's, step by step, until the sequence ends."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRUCell(2, 2)
        self.lstm = nn.LSTMCell(2, 2)
        self.start = nn.Parameter(randn(2))

    def forward(self, x: Tensor) -> Tensor:
        first = self.start.expand(x.shape[0], -1)
        state = (first.tanh(), first)
        for step in x.unbind(1):
            first = self.gru(step, first)
            state = self.lstm(first, state)
        return torch.cat(state, dim=-1)


def cells() -> Model:
    return of_module(Cells(), randn(2, 3, 2))


def lstm_by_hand() -> Model:
    return of_module(LSTMByHand(), randn(2, 3, 2))


MODELS = {
    "lstm": lstm,
    "gru": gru,
    "gru and lstm cells": cells,
    "lstm by hand": lstm_by_hand,
}
