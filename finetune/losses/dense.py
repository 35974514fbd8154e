"""Losses of dense outputs that are a mean over series: each weighs the same, whatever it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.base import LARGEST_WEIGHT, SeriesLoss, TermConfig
from finetune.targets import IGNORE
from headspark.config.checks import require

SMOOTH = 1.0
"""Added to numerator and denominator of Dice, in cells: a class of a few cells does not jump between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKConfig(TermConfig):
    """Binary cross-entropy of the hardest cells of each series.

    Attributes:
        kind: ``topk``.
        share: Of the cells, which are the hardest.
    """

    kind: Literal["topk"] = "topk"
    of: str = "spheres"
    share: float = 0.05

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        require(0 < self.share <= 1, f"losses: share {self.share}: must be more than 0, and 1 at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceCrossEntropyConfig(TermConfig):
    """Dice and cross-entropy together, as nnU-Net has them, of classes or of yes and no.

    Attributes:
        kind: ``dice_ce``.
        dice: What one minus the Dice of soft masks counts beside the cross-entropy: a mean over the classes but the
            first that a series has. A series that has none is taught by the cross-entropy alone.
    """

    kind: Literal["dice_ce"] = "dice_ce"
    of: str = "vessels"
    dice: float = 1.0

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        require(0 <= self.dice <= LARGEST_WEIGHT, f"losses: dice {self.dice}: must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class SquaredErrorConfig(TermConfig):
    """Squared error of probabilities in each cell, such as those of blobs.

    Attributes:
        kind: ``mse``.
        positive_weight: Of cells whose target is more than 0; a blob fills one cell of ten thousand.
    """

    kind: Literal["mse"] = "mse"
    of: str = "blobs"
    positive_weight: float = 100.0

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        value = self.positive_weight
        require(0 < value <= LARGEST_WEIGHT, f"losses: positive_weight {value}: must be more than 0, and finite")


class DenseLoss(SeriesLoss):
    """What looks at no cell whose target is `IGNORE`, and scores no series that has only such cells."""

    def scored(self, target: Tensor, known_B: Tensor | None) -> Tensor:
        """Which series have a cell to be scored."""
        any_B = (target != IGNORE).flatten(1).any(1)
        return any_B if known_B is None else any_B & known_B


class TopKLoss(DenseLoss):
    """`TopKConfig`."""

    def __init__(self, config: TopKConfig) -> None:
        self._share = config.share

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the hardest cells of each series.

        Args:
            output: Logits (B, ...).
            target: Probabilities of the same shape, or `IGNORE`.

        Example:
            >>> logits = torch.tensor([[0.0, -20.0, -20.0, 20.0]])
            >>> TopKLoss(TopKConfig(share=0.25)).each(logits, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
            tensor([0.6931])
        """
        known = target != IGNORE
        entropy = F.binary_cross_entropy_with_logits(output, target.clamp(min=0).to(output), reduction="none")
        entropy = entropy.masked_fill(~known, IGNORE).flatten(1)  # below what any known cell has
        hardest = entropy.topk(math.ceil(self._share * entropy.shape[1]), dim=1, sorted=False).values
        counted = hardest >= 0
        return (hardest * counted).sum(1) / counted.sum(1).clamp(min=1)


class DiceCrossEntropyLoss(DenseLoss):
    """`DiceCrossEntropyConfig`.

    MONAI's and nnU-Net's have no mean over the series whose target is known: their parts of a step do not add up.
    """

    def __init__(self, config: DiceCrossEntropyConfig) -> None:
        self._weight = config.dice

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over the known cells of each series, and one minus the mean Dice of its classes.

        Args:
            output: Unnormalised log-probabilities (B, K, ...) of classes (B, ...) int64; or logits (B, ...) of targets
                of the same shape.
            target: `IGNORE` where nothing is known.
        """
        known = target != IGNORE
        if output.ndim > target.ndim:
            entropy = F.cross_entropy(output, target, ignore_index=IGNORE, reduction="none")
            probabilities = output.softmax(1).unbind(1)[1:]
            wanted = [target == number + 1 for number in range(len(probabilities))]
        else:
            value = target.clamp(min=0).to(output)
            entropy = F.binary_cross_entropy_with_logits(output, value, reduction="none") * known
            probabilities, wanted = (output.sigmoid(),), [value]
        entropy_B = entropy.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
        if self._weight == 0:
            return entropy_B
        pairs = list(zip(probabilities, wanted, strict=True))
        dice_BK = torch.stack([soft_dice(p, one, known) for p, one in pairs], 1)
        there_BK = torch.stack([one.flatten(1).any(1) for one in wanted], 1)
        missed_B = ((1 - dice_BK) * there_BK).sum(1) / there_BK.sum(1).clamp(min=1)
        return entropy_B + self._weight * missed_B


class SquaredErrorLoss(DenseLoss):
    """`SquaredErrorConfig`."""

    def __init__(self, config: SquaredErrorConfig) -> None:
        self._positive = config.positive_weight

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """The weighted mean over the known cells of each series.

        Args:
            output: Logits (B, ...).
            target: Probabilities of the same shape, or `IGNORE`.
        """
        weights = torch.where(target > 0, self._positive, 1.0) * (target != IGNORE)
        error = (output.sigmoid() - target).square() * weights
        return error.flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def soft_dice(probability: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Overlap of a soft mask with the true one, over the known cells of each series.

    Args:
        probability: (B, ...).
        wanted: 0 to 1, or bool.
        known: bool.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
        >>> soft_dice(mask, mask, mask == mask), soft_dice(1 - mask, mask, mask == mask)
        (tensor([1.]), tensor([0.2000]))
    """
    both, said, true = (
        (one * known).flatten(1).sum(1, dtype=probability.dtype) for one in (probability * wanted, probability, wanted)
    )
    return (2 * both + SMOOTH) / (said + true + SMOOTH)
