"""The fine-tuning loss: the 14 labels of a series, and where its aneurysms and vessels are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.models.assemble import Output
from finetune.tasks.aneurysm import WEIGHTS
from harmonize.errors import WrongUse

IGNORE = -1
"""Territory of a cell that nothing is known about."""

HEAT_POWER, MISS_POWER = 4, 2
"""Exponents of the penalty-reduced focal loss on centre heat maps (CornerNet, arXiv 1808.01244, equation 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights of the parts.

    Attributes:
        labels: Weight of the 14 labels of a series. Small beside `presence`: a label says little about a volume of
            millions of voxels, and a network with few series learns them by heart. The competition's winner had 0.15.
        presence: Weight of the heat map of aneurysms, learned from the localizer points.
        territory: Weight of the 13 places of cells, learned from points and vessel masks.
        positive_weight: Weight of a positive location label. A location is positive in 2 to 7 % of series; the
            second place of the competition used 8 to 15.
        present_weight: The same for `Aneurysm Present`.
        focal: Exponent of the focal factor on the labels; 0 gives plain cross-entropy.
    """

    labels: float = 0.15
    presence: float = 1.0
    territory: float = 0.5
    positive_weight: float = 8.0
    present_weight: float = 1.0
    focal: float = 0.0

    def __post_init__(self) -> None:
        for name in ("labels", "presence", "territory", "focal"):
            if not 0 <= getattr(self, name) < math.inf:
                raise WrongUse(f"loss.{name} {getattr(self, name)}: must be 0 or more, and finite")
        for name in ("positive_weight", "present_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise WrongUse(f"loss.{name} {getattr(self, name)}: must be more than 0, and finite")


class Targets(NamedTuple):
    """What a batch should have said.

    Attributes:
        labels_B14: 0 or 1, float.
        heat_Bdhw: 1 in the cell of an aneurysm, falling to 0 around it.
        territory_Bdhw: Index of the location of each cell, int64, or `IGNORE`.
        located_B: Whether the series' aneurysms are all in `heat_Bdhw`; False leaves its heat map out.
    """

    labels_B14: Tensor
    heat_Bdhw: Tensor
    territory_Bdhw: Tensor
    located_B: Tensor


class Losses(NamedTuple):
    """The total and its unweighted parts, as scalars."""

    total: Tensor
    labels: Tensor
    presence: Tensor
    territory: Tensor


def finetune_loss(output: Output, targets: Targets, config: LossConfig, shares_3: Tensor | float = 1.0) -> Losses:
    """The loss of a batch, computed in float32.

    Args:
        output: Of the model.
        targets: Of the data.
        config: Weights.
        shares_3: Weight of the batch's labels, presence and territory in a step of several batches: their
            `denominators` by those of the step. So the sum over the batches is the loss of the step's samples in one
            batch.

    Returns:
        Total and parts.
    """
    labels = label_loss(output.logits_B14.float(), targets.labels_B14, config)
    presence = heat_loss(output.presence_Bdhw.float(), targets.heat_Bdhw, targets.located_B)
    territory = territory_loss(output.territory_B13dhw.float(), targets.territory_Bdhw)
    labels, presence, territory = torch.stack([labels, presence, territory]) * shares_3
    total = config.labels * labels + config.presence * presence + config.territory * territory
    return Losses(total, labels, presence, territory)


def count(targets: Targets) -> Tensor:
    """What a batch's means are over: series, aneurysms, located series, cells whose place is known; (4,) float64."""
    located_B = targets.located_B
    centres_B = (targets.heat_Bdhw == 1).flatten(1).sum(1)
    known = (targets.territory_Bdhw != IGNORE).sum()
    series = torch.tensor(len(located_B), device=located_B.device)
    return torch.stack([series, (centres_B * located_B).sum(), located_B.sum(), known]).double()


def denominators(counts_4: Tensor) -> Tensor:
    """By what the sums over samples are divided for the means of labels, presence and territory.

    Args:
        counts_4: As `count` gives it, or the sum of several; (..., 4).

    Returns:
        (..., 3), as counts_4.

    Example:
        >>> denominators(torch.tensor([4.0, 1.0, 3.0, 0.0]))
        tensor([4., 3., 1.])
    """
    series, centres, located, known = counts_4.unbind(-1)
    return torch.stack([series, torch.maximum(centres, located).clamp(min=1), known.clamp(min=1)], dim=-1)


def label_loss(logits_B14: Tensor, labels_B14: Tensor, config: LossConfig) -> Tensor:
    """Binary cross-entropy over the 14 labels, weighted among them as the competition's metric weighs their areas."""
    positive_14 = logits_B14.new_tensor([config.positive_weight] * 13 + [config.present_weight])
    weights_14 = logits_B14.new_tensor(WEIGHTS) / sum(WEIGHTS)
    entropy = F.binary_cross_entropy_with_logits(logits_B14, labels_B14, pos_weight=positive_14, reduction="none")
    if config.focal > 0:
        probability = logits_B14.sigmoid()
        missed = labels_B14 * (1 - probability) + (1 - labels_B14) * probability
        entropy = entropy * missed**config.focal
    return (entropy * weights_14).sum(1).mean()


def heat_loss(presence_Bdhw: Tensor, heat_Bdhw: Tensor, located_B: Tensor) -> Tensor:
    """Penalty-reduced focal loss of the aneurysm heat map, a mean per aneurysm.

    Args:
        presence_Bdhw: Logits.
        heat_Bdhw: Targets in [0, 1]; exactly 1 at centres.
        located_B: False leaves a series out.

    Returns:
        Scalar; divided by the number of centres, or by the number of series where there are fewer centres.
    """
    log_p, log_not_p = F.logsigmoid(presence_Bdhw), F.logsigmoid(-presence_Bdhw)
    centre = (heat_Bdhw == 1).to(presence_Bdhw.dtype)
    hit = centre * (1 - log_p.exp()) ** MISS_POWER * log_p
    empty = (1 - centre) * (1 - heat_Bdhw) ** HEAT_POWER * log_p.exp() ** MISS_POWER * log_not_p
    counted = located_B.to(presence_Bdhw.dtype)
    sums_B = -(hit + empty).flatten(1).sum(1) * counted
    centres = (centre.flatten(1).sum(1) * counted).sum()
    return sums_B.sum() / torch.clamp(torch.maximum(centres, counted.sum()), min=1)


def territory_loss(territory_B13dhw: Tensor, territory_Bdhw: Tensor) -> Tensor:
    """Cross-entropy of the 13 places over the cells where the place is known; 0 where it is nowhere known."""
    known = (territory_Bdhw != IGNORE).sum()
    summed = F.cross_entropy(territory_B13dhw, territory_Bdhw, ignore_index=IGNORE, reduction="sum")
    return summed / known.clamp(min=1)
