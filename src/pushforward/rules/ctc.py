"""Connectionist temporal classification: minus the log-likelihood of a label sequence under all alignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pushforward.linear.kinds.contract import Contract
from pushforward.linear.map import AbstractLinearMap
from pushforward.rules.registry import rule, with_output

aten = torch.ops.aten

# Stands for log 0, so that sums and derivatives of logarithms stay finite.
IMPOSSIBLE = -1e30


def _padded_targets(targets: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return targets as (batch, longest): they may come joined end to end."""
    if targets.ndim == 2:
        return targets
    longest = max(lengths, default=0)
    place = torch.arange(longest, device=targets.device)
    starts = torch.tensor([0, *lengths[:-1]], device=targets.device).cumsum(0)
    index = (starts[: len(lengths)].unsqueeze(1) + place).clamp(max=max(targets.numel() - 1, 0))
    if not targets.numel():
        return targets.new_zeros(index.shape)
    return targets[index]


def _integers(lengths: Sequence[int] | Tensor) -> list[int]:
    return [int(n) for n in torch.as_tensor(lengths).reshape(-1).tolist()]


class _Alignments:
    """The lattice of one batch: states are blanks and labels in turn, ``2 · longest + 1`` of them.

    Math: α_t(s), β_t(s) the log-probabilities of arriving at and leaving from state s at time t, both with the
    factor of time t (Graves et al. 2006, section 4.1).
    """

    def __init__(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Sequence[int] | Tensor,
        target_lengths: Sequence[int] | Tensor,
        blank: int,
    ) -> None:
        device = log_probs.device
        lengths = _integers(target_lengths)
        labels = _padded_targets(targets.to(device).long(), lengths)
        batch, longest = labels.shape
        blanks = torch.full((batch, longest + 1), blank, device=device)
        states = torch.stack([blanks[:, :-1], labels], -1).reshape(batch, 2 * longest)
        place = torch.arange(2 * longest + 1, device=device)
        self.last = 2 * torch.tensor(lengths, device=device).unsqueeze(1)
        # Padding is no label at all: it may lie outside the classes.
        states = torch.cat([states, blanks[:, -1:]], -1)
        self.states = torch.where(place <= self.last, states, blank)
        self.ends = torch.tensor(_integers(input_lengths), device=device).unsqueeze(1)
        self.place = place
        # From a label one may go to the next without a blank between, if it is another one.
        other = self.states[:, 2:] != self.states[:, :-2]
        self.skips = torch.nn.functional.pad(other & (place[2:] % 2 == 1), [2, 0])
        index = self.states.expand(log_probs.shape[0], *self.states.shape)
        self.index = index
        self.scores = log_probs.gather(2, index).clamp(min=IMPOSSIBLE)

    def _before(self, score: Tensor, step: int) -> Tensor:
        """Return the scores of the states ``step`` places before (behind, where negative)."""
        size = score.shape[1]
        pad = [step, 0] if step > 0 else [0, -step]
        moved = torch.nn.functional.pad(score, pad, value=IMPOSSIBLE)
        return moved[:, :size] if step > 0 else moved[:, -step:]

    def arrivals(self) -> Tensor:
        """Return α: (time, batch, states)."""
        none = torch.full_like(self.scores[0], IMPOSSIBLE)
        alpha = torch.where(self.place < 2, self.scores[0], none)
        found = [alpha]
        for score in self.scores[1:]:
            skipped = torch.where(self.skips, self._before(alpha, 2), none)
            alpha = torch.stack([alpha, self._before(alpha, 1), skipped]).logsumexp(0) + score
            found.append(alpha)
        return torch.stack(found)

    def departures(self) -> Tensor:
        """Return β: (time, batch, states)."""
        none = torch.full_like(self.scores[0], IMPOSSIBLE)
        is_end = (self.place == self.last) | (self.place == self.last - 1)
        beta, found = none, []
        for t in reversed(range(len(self.scores))):
            may_skip = torch.where(self.skips, beta, none)
            onward = torch.stack([beta, self._before(beta, -1), self._before(may_skip, -2)])
            later = onward.logsumexp(0) + self.scores[t]
            end = torch.where(is_end, self.scores[t], none)
            beta = torch.where(self.ends == t + 1, end, torch.where(self.ends > t, later, none))
            found.append(beta)
        return torch.stack(found[::-1])

    def expected(self, log_probs: Tensor) -> Tensor:
        """Return the probability that time t is aligned with class c: (time, batch, classes)."""
        share = (self.arrivals() + self.departures() - self.scores).softmax(-1)
        time = torch.arange(len(self.scores), device=share.device).reshape(-1, 1, 1)
        share = torch.where(time < self.ends, share, torch.zeros_like(share))
        return torch.zeros_like(log_probs).scatter_add(2, self.index, share)


def _slope(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int,
    zero_infinity: bool,
    loss: Tensor,
) -> Tensor:
    """Return ∂ loss / ∂ log_probs: minus the expected alignment."""
    if not log_probs.numel():
        return torch.zeros_like(log_probs)
    lattice = _Alignments(log_probs, targets, input_lengths, target_lengths, blank)
    impossible = loss.isinf().reshape(1, -1, 1)
    instead = log_probs.new_full((), 0.0 if zero_infinity else float("nan"))
    return torch.where(impossible, instead, -lattice.expected(log_probs))


@with_output
def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    zero_infinity: bool = False,
    *,
    out: tuple[Tensor, Tensor],
) -> tuple[AbstractLinearMap, None]:
    """Differentiate with respect to the log-probabilities themselves.

    PyTorch's own formula has exp(log_probs) added, which is the same only after a log_softmax.
    """
    slope = _slope(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity, out[0])
    return Contract(tuple(slope.shape), tuple(out[0].shape), "tnc", "tnc", "n", slope), None


@with_output
def _cudnn_ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int,
    deterministic: bool,
    zero_infinity: bool,
    *,
    out: tuple[Tensor, Tensor],
) -> tuple[AbstractLinearMap, None]:
    return _ctc_loss(
        log_probs, targets, input_lengths, target_lengths, blank, zero_infinity, out=out
    )


rule(aten._ctc_loss, _ctc_loss)
rule(aten._cudnn_ctc_loss, _cudnn_ctc_loss)
