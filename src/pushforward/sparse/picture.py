"""A sparsity pattern as text: braille characters, eight dots each."""

from __future__ import annotations

import torch
from torch import Tensor

WIDEST = 80  # dots, two a character
HIGHEST = 80  # dots, four a character

# The weight of each dot of a braille character, four rows of two (Unicode, block 2800).
DOTS = torch.tensor([[1, 8], [2, 16], [4, 32], [64, 128]])


def picture(shape: tuple[int, int], rows: Tensor, cols: Tensor) -> list[str]:
    """Return lines in which a dot is set where at least one entry falls.

    Example:
        >>> picture((4, 4), torch.arange(4), torch.arange(4))
        ['⠑⢄']
    """
    scale = max(shape[0] / HIGHEST, shape[1] / WIDEST, 1.0)
    height, width = (max(1, min(round(size / scale), size)) for size in shape)
    num_lines, num_chars = -(-height // 4), -(-width // 2)
    dots = torch.zeros(num_lines * 4, num_chars * 2, dtype=torch.int64)
    dots[rows * height // max(shape[0], 1), cols * width // max(shape[1], 1)] = 1
    cells = dots.reshape(num_lines, 4, num_chars, 2).transpose(1, 2)
    codes = 0x2800 + (cells * DOTS).sum((2, 3))
    return ["".join(map(chr, line)) for line in codes.tolist()]
