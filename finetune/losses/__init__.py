"""What a network is trained to say: the terms of the loss, each about one output, and their sum over a step.

A loss of a new kind is an entry in `LOSSES`. A recipe's `losses` is a list of ``{kind, of, target, weight}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.losses.answers import ClassesConfig, ClassesLoss, NumbersConfig, NumbersLoss
from finetune.losses.base import Loss, TermConfig, check_names, check_outputs
from finetune.losses.cells import CrossEntropyConfig, CrossEntropyLoss, HeatConfig, HeatLoss
from finetune.losses.dense import (
    DiceCrossEntropyConfig,
    DiceCrossEntropyLoss,
    SquaredErrorConfig,
    SquaredErrorLoss,
    TopKConfig,
    TopKLoss,
)
from finetune.losses.labels import (
    AsymmetricConfig,
    AsymmetricLoss,
    BinaryConfig,
    BinaryLoss,
    FocalConfig,
    HierarchyConfig,
    HierarchyLoss,
)
from finetune.tasks import Task, known

__all__ = [
    "DEFAULT_LOSSES",
    "LOSSES",
    "Loss",
    "TermConfig",
    "TotalLoss",
    "check_names",
    "check_outputs",
    "loss_configs",
]

LOSSES: dict[str, tuple[type, Callable[[Any, Task], Loss]]] = {
    "bce": (BinaryConfig, BinaryLoss),
    "focal": (FocalConfig, BinaryLoss),
    "asymmetric": (AsymmetricConfig, AsymmetricLoss),
    "hierarchy": (HierarchyConfig, HierarchyLoss),
    "classes": (ClassesConfig, ClassesLoss),
    "numbers": (NumbersConfig, NumbersLoss),
    "heat": (HeatConfig, lambda config, task: HeatLoss()),
    "cross_entropy": (CrossEntropyConfig, lambda config, task: CrossEntropyLoss()),
    "topk": (TopKConfig, lambda config, task: TopKLoss(config)),
    "dice_ce": (DiceCrossEntropyConfig, lambda config, task: DiceCrossEntropyLoss(config)),
    "mse": (SquaredErrorConfig, lambda config, task: SquaredErrorLoss(config)),
}
"""Configuration and builder of each loss, by its kind."""

DEFAULT_LOSSES: tuple[TermConfig, ...] = (
    # Small beside presence: a label says little about a volume of millions of voxels, and a network with few series
    # learns them by heart. The winner of the RSNA 2025 aneurysm challenge had 0.15.
    BinaryConfig(weight=0.15),
    HeatConfig(),
    CrossEntropyConfig(weight=0.5),
)


def loss_configs() -> dict[str, type]:
    """The configuration of each loss, by its kind."""
    return {kind: config for kind, (config, _) in LOSSES.items()}


class TotalLoss:
    """The terms of a recipe.

    Args:
        terms: `losses` of the recipe.
        task: What is asked.

    Attributes:
        names: Of the terms, in order.
    """

    def __init__(self, terms: Sequence[Any], task: Task) -> None:
        self._terms = [(term, LOSSES[term.kind][1](term, task)) for term in terms]
        self.names = tuple(term.shown for term in terms)

    def counts(self, targets: Mapping[str, Tensor]) -> Tensor:
        """What the means of the terms are over in one part of a step, (n,) float64; those of several parts add up."""
        counts = [loss.counts(targets[term.wanted], known(targets, term.wanted)) for term, loss in self._terms]
        return torch.cat(counts)

    def denominators(self, counts_n: Tensor) -> Tensor:
        """By what each term's sum is divided, of counts that were added up; (..., n) to (..., T)."""
        parts = counts_n.split([loss.size for _, loss in self._terms], dim=-1)
        return torch.stack([loss.denominator(part) for part, (_, loss) in zip(parts, self._terms, strict=True)], -1)

    def __call__(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], shares_T: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The loss of a part, computed in float32.

        Args:
            outputs: Of the network.
            targets: Of the task.
            shares_T: Each term's share of the step: its denominator here by that of the step. So the sum over the
                parts is the loss of the step's samples in one batch.

        Returns:
            The total, and the terms before they are weighted (T,).
        """
        means = [
            loss(outputs[term.of].float(), targets[term.wanted], known(targets, term.wanted))
            for term, loss in self._terms
        ]
        terms_T = torch.stack(means) * shares_T
        total = sum(term.weight * one for (term, _), one in zip(self._terms, terms_T.unbind(), strict=True))
        return torch.as_tensor(total), terms_T
