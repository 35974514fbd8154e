"""Losses of cells: where something is, and what each cell belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.base import TermConfig
from finetune.targets import IGNORE

HEAT_POWER, MISS_POWER = 4, 2
"""Exponents of the penalty-reduced focal loss on centre heat maps (CornerNet, arXiv 1808.01244, equation 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatConfig(TermConfig):
    """Penalty-reduced focal loss of a heat map, a mean per centre.

    Attributes:
        kind: ``heat``.
    """

    kind: Literal["heat"] = "heat"
    of: str = "presence"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropyConfig(TermConfig):
    """Cross-entropy of classes, over the cells (or series) whose class is known.

    Attributes:
        kind: ``cross_entropy``.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"
    of: str = "territory"


class HeatLoss:
    """`HeatConfig`; divided by the number of centres, or by that of located series where there are fewer centres."""

    size = 2

    def __call__(self, output: Tensor, target: Tensor, known_B: Tensor | None) -> Tensor:
        """The mean of a part.

        Args:
            output: Logits (B, d, h, w).
            target: Heat in [0, 1]; exactly 1 at centres.
            known_B: False leaves a series out.
        """
        log_p, log_not_p = F.logsigmoid(output), F.logsigmoid(-output)
        centre = (target == 1).to(output.dtype)
        hit = centre * (1 - log_p.exp()) ** MISS_POWER * log_p
        empty = (1 - centre) * (1 - target) ** HEAT_POWER * log_p.exp() ** MISS_POWER * log_not_p
        counted = _all_of(target, known_B).to(output.dtype)
        sums_B = -(hit + empty).flatten(1).sum(1) * counted
        centres = (centre.flatten(1).sum(1) * counted).sum()
        return sums_B.sum() / torch.clamp(torch.maximum(centres, counted.sum()), min=1)

    def counts(self, target: Tensor, known_B: Tensor | None) -> Tensor:
        """Centres, and located series."""
        known_B = _all_of(target, known_B)
        return torch.stack([((target == 1).flatten(1).sum(1) * known_B).sum(), known_B.sum()]).double()

    def denominator(self, counts_n: Tensor) -> Tensor:
        """The larger of the two.

        Example:
            >>> HeatLoss().denominator(torch.tensor([1.0, 3.0]))
            tensor(3.)
        """
        return counts_n.amax(-1).clamp(min=1)


class CrossEntropyLoss:
    """`CrossEntropyConfig`; 0 where no class is known."""

    size = 1

    def __call__(self, output: Tensor, target: Tensor, known_B: Tensor | None) -> Tensor:
        """The mean of a part.

        Args:
            output: Unnormalised log-probabilities (B, K, ...).
            target: Classes (B, ...) int64, or `IGNORE`.
            known_B: False leaves a series out.
        """
        target = _ignoring(target, known_B)
        summed = F.cross_entropy(output, target, ignore_index=IGNORE, reduction="sum")
        return summed / (target != IGNORE).sum().clamp(min=1)

    def counts(self, target: Tensor, known_B: Tensor | None) -> Tensor:
        """Cells whose class is known."""
        return (_ignoring(target, known_B) != IGNORE).sum().double()[None]

    def denominator(self, counts_n: Tensor) -> Tensor:
        """The cells."""
        return counts_n[..., 0].clamp(min=1)


def _all_of(target: Tensor, known_B: Tensor | None) -> Tensor:
    return torch.ones(len(target), dtype=torch.bool, device=target.device) if known_B is None else known_B


def _ignoring(target: Tensor, known_B: Tensor | None) -> Tensor:
    if known_B is None:
        return target
    return target.masked_fill(~known_B.view(-1, *[1] * (target.ndim - 1)), IGNORE)
