"""Losses of the labels of a series."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.base import LARGEST_WEIGHT, TermConfig
from finetune.tasks import Task
from harmonize.errors import WrongUse
from headspark.config.checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryConfig(TermConfig):
    """Binary cross-entropy of the labels, weighted among them as the task's score weighs them.

    Attributes:
        kind: ``bce``.
        positive_weight: Weight of a positive label. An aneurysm's place is positive in 2 to 7 % of series; the second
            place of the RSNA 2025 challenge used 8 to 15.
        present_weight: The same for the label that is positive where any other is.
        positive_weights: The same by the label's name, where one differs.
    """

    kind: Literal["bce"] = "bce"
    positive_weight: float = 8.0
    present_weight: float = 1.0
    positive_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        for name in ("positive_weight", "present_weight"):
            value = getattr(self, name)
            require(0 < value <= LARGEST_WEIGHT, f"losses: {name} {value}: must be more than 0, and finite")
        for label, value in self.positive_weights.items():
            require(0 < value <= LARGEST_WEIGHT, f"losses: positive_weights.{label} {value}: must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalConfig(BinaryConfig):
    """Binary cross-entropy whose easy labels count less (arXiv 1708.02002).

    Attributes:
        kind: ``focal``.
        gamma: Exponent of the factor.
    """

    kind: Literal["focal"] = "focal"  # type: ignore[assignment]
    gamma: float = 2.0

    def __post_init__(self) -> None:
        BinaryConfig.__post_init__(self)
        require(0 <= self.gamma <= 100, f"losses: gamma {self.gamma}: must lie between 0 and 100")


class BinaryLoss:
    """`BinaryConfig` and `FocalConfig`; a mean over series."""

    size = 1

    def __init__(self, config: BinaryConfig, task: Task) -> None:
        unknown = config.positive_weights.keys() - set(task.labels)
        if unknown:
            raise WrongUse(f"losses: positive_weights.{min(unknown)}: the task has no such label")
        positive = [
            config.positive_weights.get(
                label, config.present_weight if number == task.any_label else config.positive_weight
            )
            for number, label in enumerate(task.labels)
        ]
        self._positive_L = torch.tensor(positive)
        self._weights_L = torch.tensor(task.label_weights, dtype=torch.float32) / sum(task.label_weights)
        self._gamma = config.gamma if isinstance(config, FocalConfig) else 0.0

    def __call__(self, output: Tensor, target: Tensor, known_B: Tensor | None) -> Tensor:
        """The mean over series of a part."""
        positive_L, weights_L = self._positive_L.to(output), self._weights_L.to(output)
        entropy = F.binary_cross_entropy_with_logits(output, target, pos_weight=positive_L, reduction="none")
        if self._gamma > 0:
            probability = output.sigmoid()
            missed = target * (1 - probability) + (1 - target) * probability
            entropy = entropy * missed**self._gamma
        series_B = (entropy * weights_L).sum(1)
        if known_B is None:
            return series_B.mean()
        return (series_B * known_B).sum() / known_B.sum().clamp(min=1)

    def counts(self, target: Tensor, known_B: Tensor | None) -> Tensor:
        """How many series are scored."""
        count = torch.tensor(len(target), device=target.device) if known_B is None else known_B.sum()
        return count.double()[None]

    def denominator(self, counts_n: Tensor) -> Tensor:
        """The series."""
        return counts_n[..., 0].clamp(min=1)
