"""Losses of what a user's table asks: classes that are weighted by their rarity, and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.base import SeriesLoss, TermConfig
from finetune.tasks import Link, Task
from harmonize.errors import WrongUse
from headspark.config.checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesConfig(TermConfig):
    """Cross-entropy of the labels: of one class of several by softmax, of labels that are true or not by sigmoid.

    Classes count as the task's `class_weights` say.

    Attributes:
        kind: ``classes``.
        smoothing: Share of the truth that is spread over all classes.
    """

    kind: Literal["classes"] = "classes"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        TermConfig.__post_init__(self)
        require(0 <= self.smoothing < 1, f"losses: smoothing {self.smoothing}: must lie in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NumbersConfig(TermConfig):
    """Distance of numbers from the truth, in units of their deviation over the training series.

    Attributes:
        kind: ``numbers``.
        distance: ``squared``, ``absolute``, or ``huber``, which is squared up to one deviation and goes on straight.
    """

    kind: Literal["numbers"] = "numbers"
    distance: Literal["squared", "absolute", "huber"] = "huber"


_DISTANCES: Mapping[str, Callable[..., Tensor]] = {
    "squared": F.mse_loss,
    "absolute": F.l1_loss,
    "huber": F.huber_loss,
}


class ClassesLoss(SeriesLoss):
    """`ClassesConfig`.

    Raises:
        WrongUse: The task asks for numbers.
    """

    def __init__(self, config: ClassesConfig, task: Task) -> None:
        if task.link is Link.IDENTITY:
            raise WrongUse("losses: classes: the task asks for numbers; use kind numbers")
        self._softmax, self._smoothing = task.link is Link.SOFTMAX, config.smoothing
        self._weights_L = torch.tensor(task.class_weights, dtype=torch.float32)

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """What each series contributes, (B,).

        Example:
            >>> from types import SimpleNamespace
            >>> loss = ClassesLoss(ClassesConfig(), SimpleNamespace(link=Link.SOFTMAX, class_weights=(1.0, 3.0)))
            >>> loss.each(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
            tensor([0.6931, 2.0794])
        """
        self._weights_L = self._weights_L.to(output)  # once: a copy in every step would be waited for
        weights_L, share = self._weights_L, self._smoothing
        if self._softmax:
            smooth = target * (1 - share) + share / target.shape[1]
            return -(weights_L * smooth * output.log_softmax(1)).sum(1)
        smooth = target * (1 - share) + share / 2
        entropy = F.binary_cross_entropy_with_logits(output, smooth, pos_weight=weights_L, reduction="none")
        return entropy.mean(1)


class NumbersLoss(SeriesLoss):
    """`NumbersConfig`.

    Raises:
        WrongUse: The task asks for classes.
    """

    def __init__(self, config: NumbersConfig, task: Task) -> None:
        if task.link is not Link.IDENTITY:
            raise WrongUse("losses: numbers: the task asks for classes; use kind classes")
        self._distance = _DISTANCES[config.distance]

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the numbers of each series, (B,)."""
        return self._distance(output, target, reduction="none").mean(1)
