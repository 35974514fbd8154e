"""An adversary that guesses where a series is from, so that the encoder learns not to show it.

Between encoder and head the gradient is reversed (arXiv 1505.07818): the head learns to guess, the encoder to make it
guess wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune.models.maps import Maps
from finetune.tasks import Task
from harmonize.errors import WrongUse
from headspark.config.checks import require

LARGEST_STRENGTH = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainConfig:
    """A head that guesses the domain, against the encoder.

    Attributes:
        kind: ``domain``.
        of: What is guessed: the ``modality`` or the ``source`` of the series; the target of its loss.
        strength: Factor on the reversed gradient that the encoder gets.
        width: Channels between its two layers.
    """

    kind: Literal["domain"] = "domain"
    of: Literal["modality", "source"] = "modality"
    strength: float = 0.1
    width: int = 64

    def __post_init__(self) -> None:
        strength = self.strength
        fits = 0 <= strength <= LARGEST_STRENGTH
        require(fits, f"auxiliary domain: strength {strength} must be 0 or more, and no more than {LARGEST_STRENGTH:g}")
        require(self.width >= 1, f"auxiliary domain: width {self.width} must be at least 1")


class DomainHead(nn.Module):
    """Two layers on the mean of the deepest map. Its output is ``domain`` (B, K), unnormalised log-probabilities.

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: With the classes that are guessed.

    Raises:
        WrongUse: There is only one class, which nobody needs to guess.
    """

    outputs = ("domain",)
    cells: Mapping[str, int] = {}
    conditioned = False

    def __init__(self, config: DomainConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        classes = task.modalities if config.of == "modality" else task.sources
        if len(classes) < 2:
            known = f"all series of this task are {classes[0]}" if classes else "this task does not tell it"
            raise WrongUse(f"auxiliary domain: of {config.of}: {known}; there is nothing to guess")
        self.only_targets = {"domain": config.of}
        self.strength = config.strength
        self.guess = nn.Sequential(
            nn.Linear(maps.channels[-1], config.width), nn.GELU(), nn.Linear(config.width, len(classes))
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The guess."""
        return {"domain": self.guess(_Reversed.apply(maps[-1].mean((2, 3, 4)), self.strength))}


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None
