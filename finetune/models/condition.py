"""What a network is told of the modality, without which features and scores of bright and dark vessels do not compare;
and of the size of its voxels, where boxes are resized to one shape.

Scale and shift, one pair a channel and group (FiLM, arXiv 1709.07871), both the identity at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models.maps import Maps
from finetune.series import HEADER_GROUPS
from finetune.tasks import LABELS, Task
from harmonize.errors import WrongUse

AXES = 3
DEFAULT = "none"
"""The condition of recipes and models that name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCondition:
    """Nothing is told.

    Attributes:
        kind: ``none``.
    """

    kind: Literal["none"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderCondition:
    """CT or MR, as the header says: known of every series, at prediction too.

    Attributes:
        kind: ``header``.
        of: What is scaled and shifted: the encoder's ``maps``, or the logits of the ``labels``.
    """

    kind: Literal["header"] = "header"
    of: Literal["maps", "labels"] = "maps"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedCondition:
    """The modality that an auxiliary head of kind ``modality`` sees: finer than a header, and it may be wrong.

    Attributes:
        kind: ``predicted``.
        of: What is scaled and shifted: the encoder's ``maps``, or the logits of the ``labels``.
    """

    kind: Literal["predicted"] = "predicted"
    of: Literal["maps", "labels"] = "maps"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacingCondition:
    """The size of a voxel in mm along R, A and S, and CT or MR; for `view.kind` ``resized``.

    Attributes:
        kind: ``spacing``.
        of: What is scaled and shifted: the encoder's ``maps``, or the logits of the ``labels``.
    """

    kind: Literal["spacing"] = "spacing"
    of: Literal["maps", "labels"] = "maps"


class ConditionConfig(Protocol):
    """The part of a recipe that picks a condition."""

    @property
    def kind(self) -> str:
        """Its name."""
        ...


CONDITIONS: dict[str, type] = {
    "none": NoCondition,
    "header": HeaderCondition,
    "predicted": PredictedCondition,
    "spacing": SpacingCondition,
}
"""Configuration of each condition, by its kind."""


class Condition(nn.Module):
    """Scales and shifts of every group.

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: What is asked.

    Attributes:
        needs: Names of the outputs that it asks for.
    """

    def __init__(self, config: ConditionConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        self.kind = config.kind
        self.needs: tuple[str, ...] = ("modality",) if self.kind == "predicted" else ()
        headers = len(HEADER_GROUPS)
        groups = {"none": 0, "header": headers, "predicted": len(task.modalities), "spacing": headers + AXES}[self.kind]
        of = getattr(config, "of", None)
        if of == LABELS and task.answers != LABELS:
            raise WrongUse("condition.of labels: this task has no logits of labels; use maps")
        self.maps = Film(groups, maps.channels if of == "maps" else ())
        self.labels = Film(groups, (len(task.labels),) if of == "labels" else ())

    def shares(self, outputs: Mapping[str, Tensor], group_B: Tensor | None) -> Tensor | None:
        """How much of each group a series is, (B, G); None where nothing is told.

        Args:
            outputs: Those of `needs`.
            group_B: As `finetune.series.told_of` says it.
        """
        if self.kind == "none":
            return None
        if self.kind == "predicted":
            return outputs["modality"].detach().float().softmax(1)
        if group_B is None:
            raise ValueError("this network wants to know of each series whether it is a CT")
        groups_B = group_B if group_B.ndim == 1 else group_B[:, 0].long()
        shares_BG = F.one_hot(groups_B, len(HEADER_GROUPS)).float()
        if self.kind == "header":
            return shares_BG
        if group_B.ndim == 1:
            raise ValueError("this network wants to know the size of the voxels, and the view says none")
        return torch.cat([shares_BG, group_B[:, 1:]], 1)

    def of_maps(self, maps: Sequence[Tensor], shares_BG: Tensor | None) -> Sequence[Tensor]:
        """The encoder's maps, told."""
        return self.maps(maps, shares_BG)

    def of_outputs(self, outputs: dict[str, Tensor], shares_BG: Tensor | None) -> dict[str, Tensor]:
        """Outputs with labels that were told."""
        if LABELS not in outputs:
            return outputs
        (labels_BL,) = self.labels([outputs[LABELS]], shares_BG)
        return {**outputs, LABELS: labels_BL}


class Film(nn.Module):
    """``x * (1 + scale) + shift`` of some tensors, the pair being that of the series' group.

    Args:
        groups: How many.
        channels: Of each tensor; empty leaves all as they are.
    """

    def __init__(self, groups: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.scale = nn.ParameterList(torch.zeros(groups, count) for count in channels)
        self.shift = nn.ParameterList(torch.zeros(groups, count) for count in channels)

    def forward(self, tensors: Sequence[Tensor], shares_BG: Tensor | None) -> Sequence[Tensor]:
        """The tensors (B, C, ...), scaled and shifted."""
        if shares_BG is None or not len(self.scale):
            return tensors
        told = []
        for x, scale_GC, shift_GC in zip(tensors, self.scale, self.shift, strict=True):
            as_x = (len(x), -1, *[1] * (x.ndim - 2))
            scale, shift = ((shares_BG @ one).to(x.dtype).view(as_x) for one in (scale_GC, shift_GC))
            told.append(x * (1 + scale) + shift)
        return told
