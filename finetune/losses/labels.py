"""Losses of the labels of a series."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.base import LARGEST_WEIGHT, SeriesLoss, TermConfig
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AsymmetricConfig(BinaryConfig):
    """Binary cross-entropy in which easy negatives count far less than easy positives (arXiv 2009.14119).

    Attributes:
        kind: ``asymmetric``.
        gamma_negative: Exponent of the factor of negative labels.
        gamma_positive: The same of positive ones.
        clip: A negative label whose probability is below this counts nothing.
    """

    kind: Literal["asymmetric"] = "asymmetric"  # type: ignore[assignment]
    positive_weight: float = 1.0
    gamma_negative: float = 4.0
    gamma_positive: float = 1.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        BinaryConfig.__post_init__(self)
        for name in ("gamma_negative", "gamma_positive"):
            value = getattr(self, name)
            require(0 <= value <= 100, f"losses: {name} {value}: must lie between 0 and 100")
        require(0 <= self.clip < 1, f"losses: clip {self.clip}: must be 0 or more, and less than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchyConfig(TermConfig):
    """By how much a label is more probable than the one that is positive where any is, squared, a mean over series.

    Without it a network may say that there is a finding at a place and none at all. It knows no truth, and only helps
    beside a loss that does.

    Attributes:
        kind: ``hierarchy``.
    """

    kind: Literal["hierarchy"] = "hierarchy"
    name: str = "hierarchy"


class LabelLoss(SeriesLoss):
    """A loss of labels that weighs positive ones, and among labels as the task's score does; a mean over series.

    Args:
        config: Weights of positive labels.
        task: Whose labels they are.

    Raises:
        WrongUse: The task has no label of a name.
    """

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

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """The weighted mean over the labels of each series."""
        # Moved once: a copy in every step would be waited for.
        self._positive_L, self._weights_L = (one.to(output) for one in (self._positive_L, self._weights_L))
        return (self.entropy(output, target, self._positive_L) * self._weights_L).sum(1)

    def entropy(self, output: Tensor, target: Tensor, positive_L: Tensor) -> Tensor:
        """What each label contributes, (B, L)."""
        raise NotImplementedError


class BinaryLoss(LabelLoss):
    """`BinaryConfig` and `FocalConfig`."""

    def __init__(self, config: BinaryConfig, task: Task) -> None:
        super().__init__(config, task)
        self._gamma = config.gamma if isinstance(config, FocalConfig) else 0.0

    def entropy(self, output: Tensor, target: Tensor, positive_L: Tensor) -> Tensor:
        """Binary cross-entropy, with the focal factor where there is one."""
        entropy = F.binary_cross_entropy_with_logits(output, target, pos_weight=positive_L, reduction="none")
        if self._gamma > 0:
            probability = output.sigmoid()
            missed = target * (1 - probability) + (1 - target) * probability
            entropy = entropy * missed**self._gamma
        return entropy


class AsymmetricLoss(LabelLoss):
    """`AsymmetricConfig`; timm's has no weights of labels, and a sum where this has a mean over series."""

    def __init__(self, config: AsymmetricConfig, task: Task) -> None:
        super().__init__(config, task)
        self._config = config

    def entropy(self, output: Tensor, target: Tensor, positive_L: Tensor) -> Tensor:
        """Cross-entropy with a factor for each of the two classes."""
        config = self._config
        probability = output.sigmoid()
        shifted = (probability - config.clip).clamp(min=0)
        hit = target * positive_L * F.logsigmoid(output) * (1 - probability) ** config.gamma_positive
        empty = (1 - target) * torch.log1p(-shifted.clamp(max=1 - 1e-6)) * shifted**config.gamma_negative
        return -(hit + empty)


class HierarchyLoss(SeriesLoss):
    """`HierarchyConfig`.

    Raises:
        WrongUse: The task has no label that stands above the others.
    """

    def __init__(self, config: HierarchyConfig, task: Task) -> None:
        if task.any_label is None:
            raise WrongUse("losses: hierarchy: the task has no label that is positive where any other is")
        self._any = task.any_label

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over labels of each series.

        Example:
            >>> from types import SimpleNamespace
            >>> loss = HierarchyLoss(HierarchyConfig(), SimpleNamespace(any_label=1))
            >>> loss.each(torch.tensor([[0.9, 0.5], [0.5, 0.9]]).logit(), torch.zeros(2, 2))
            tensor([0.1600, 0.0000])
        """
        probability = output.sigmoid()
        beyond = (probability - probability[:, self._any, None]).clamp(min=0)
        return beyond.square().sum(1)
