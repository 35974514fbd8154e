"""From a vector of features for each label to the labels' logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelReadout(nn.Module):
    """Two layers, the first of which all labels share: a finding looks alike at every place.

    Args:
        labels: How many.
        width: Of the features.
        dropout: Between the layers.
    """

    def __init__(self, labels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.weight_LC = nn.Parameter(torch.randn(labels, width) / width**0.5)
        self.bias_L = nn.Parameter(torch.zeros(labels))

    def forward(self, features_BLC: Tensor) -> Tensor:
        """Logits (B, L)."""
        return (self.shared(features_BLC) * self.weight_LC).sum(-1) + self.bias_L
