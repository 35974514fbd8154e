"""Which modality a series is, from the mean of the deepest map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from finetune.models.maps import Maps
from finetune.tasks import Task
from harmonize.errors import WrongUse


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityConfig:
    """A head that tells the modality; `condition` can make use of its answer.

    Attributes:
        kind: ``modality``.
    """

    kind: Literal["modality"] = "modality"


class ModalityHead(nn.Module):
    """One linear layer. Its output is ``modality`` (B, M), unnormalised log-probabilities of the task's modalities.

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: With modalities.

    Raises:
        WrongUse: The task has fewer than two.
    """

    outputs = ("modality",)
    cells: Mapping[str, int] = {}
    conditioned = False

    def __init__(self, config: ModalityConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        if len(task.modalities) < 2:
            raise WrongUse("auxiliary.kind modality: wants a task with two modalities or more")
        self.linear = nn.Linear(maps.channels[-1], len(task.modalities))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The modality."""
        return {"modality": self.linear(maps[-1].mean((2, 3, 4)))}
