"""Labels from a bag of pictures by attention: each label looks at the pictures that matter for it (arXiv 1802.04712).

A place counts only as far as anything is there at all: its probability is multiplied by a power of that of the label
that is positive where any other is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models.maps import Maps
from finetune.models.readout import LabelReadout
from finetune.tasks import Task
from headspark.config.checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class MilConfig:
    """Labels by attention over the pictures of a bag.

    Attributes:
        kind: ``mil``.
        width: Features of a picture.
        pooling: Of the cells of a picture: their mean, or mean and maximum (``mean_max``).
        alpha: Exponent of the probability that there is anything, by which that of each place is multiplied; 0 leaves
            places alone.
        dropout: On the features.
    """

    kind: Literal["mil"] = "mil"
    width: int = 128
    pooling: Literal["mean", "mean_max"] = "mean"
    alpha: float = 0.5
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require(self.width >= 1, f"head.width {self.width}: must be at least 1")
        require(0 <= self.alpha <= 10, f"head.alpha {self.alpha}: must lie between 0 and 10")
        require(0 <= self.dropout < 1, f"head.dropout {self.dropout}: must lie in [0, 1)")


class MilHead(nn.Module):
    """Gated attention over pictures, readout. Its output is the logits ``labels`` (B, L).

    Args:
        config: Of the recipe.
        maps: What the encoder gives; the last is used.
        task: What is asked.
    """

    outputs = ("labels",)
    cells: Mapping[str, int] = {}

    def __init__(self, config: MilConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        self.with_maximum, self.alpha, self.any_label = config.pooling == "mean_max", config.alpha, task.any_label
        features, width, labels = maps.channels[-1] * (2 if self.with_maximum else 1), config.width, len(task.labels)
        self.embed = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Dropout(config.dropout))
        self.content, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.Linear(width, labels)
        self.readout = LabelReadout(labels, width, config.dropout)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Labels."""
        pictures_BCN = maps[-1].mean((3, 4))
        if self.with_maximum:
            pictures_BCN = torch.cat([pictures_BCN, maps[-1].amax((3, 4))], 1)
        seen_BNC = self.embed(pictures_BCN.transpose(1, 2))
        weights_BNL = self.attention(self.content(seen_BNC).tanh() * self.gate(seen_BNC).sigmoid()).softmax(1)
        logits_BL = self.readout(weights_BNL.transpose(1, 2) @ seen_BNC)
        if self.any_label is None or self.alpha == 0:
            return {"labels": logits_BL}
        any_B1 = logits_BL[:, self.any_label, None]
        is_any_L = torch.arange(logits_BL.shape[1], device=logits_BL.device) == self.any_label
        return {"labels": torch.where(is_any_L, logits_BL, product_logit(logits_BL, any_B1, self.alpha))}


def product_logit(places: Tensor, anything: Tensor, alpha: float) -> Tensor:
    """The logit of ``sigmoid(places) * sigmoid(anything) ** alpha``, in float32.

    Example:
        >>> found = product_logit(torch.tensor(0.8).logit(), torch.tensor(0.25).logit(), 0.5)
        >>> round(found.sigmoid().item(), 4)
        0.4
    """
    log = F.logsigmoid(places.float()) + alpha * F.logsigmoid(anything.float())
    # Not quite 1, for float32 has no logit of that.
    log = log.clamp(max=-torch.finfo(torch.float32).eps)
    return log - torch.log(-torch.expm1(log))
