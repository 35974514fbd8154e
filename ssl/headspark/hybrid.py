"""The second term of hybrid pretraining: two maskings of one head shall be told to be the same head.

Variance, invariance and covariance (VICReg, arXiv 2105.04906) of embeddings of pooled visible cells. The second masking
shows little, so it costs little; its blocks are hidden under the first, so what the two share is the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from headspark.config.checks import require
from headspark.packed.masked_map import MaskedMap

MEMORY = 256
"""Heads seen before whose embeddings count in the statistics: a batch of volumes alone is too few."""

COVARIANCE_WEIGHT = 0.04
"""Of the covariance term, beside 1 for each of the others: VICReg's 25, 25 and 1."""

STD_EPS = 1e-4
"""Added to variances (VICReg)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """A second objective beside the masked one: that two maskings of a head have like embeddings, and heads differ.

    Attributes:
        weight: Of that term; 0: there is none.
        share: Visible blocks of the second masking, by those of the first: what the encoder costs more.
        width: Of the embeddings.
    """

    weight: float = 0.0
    share: float = 0.15
    width: int = 128

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, f"hybrid.weight {self.weight}: must be 0 or more, and finite")
        require(
            0 < self.share <= 1,
            f"hybrid.share {self.share}: must lie above 0, and be 1 at most; the nearest is "
            f"{1 if self.share > 1 else 0.05:g}",
        )
        require(2 <= self.width <= 8192, f"hybrid.width {self.width}: must lie in 2 to 8192; the nearest is "
                f"{2 if self.width < 2 else 8192}")  # fmt: skip


class Agreement(NamedTuple):
    """How embeddings of a pass agree, over all ranks.

    Attributes:
        loss: The term; its gradient is this rank's part of that of all ranks.
        spread: Mean standard deviation of the embeddings' numbers, without a gradient; near 0 if they have collapsed.
        voxels: Scored voxels of all ranks.
    """

    loss: Tensor
    spread: Tensor
    voxels: Tensor


class EmbeddingHead(nn.Module):
    """Embeddings of the two maskings, and what they should be.

    Args:
        channels: Of the encoder's coarsest map.
        config: Width of embeddings.
    """

    memory_M2K: Tensor
    held: Tensor

    def __init__(self, channels: int, config: HybridConfig) -> None:
        super().__init__()
        width = config.width
        self.project = nn.Sequential(
            nn.Linear(channels, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )
        # Of the run's state: a run that is taken up again goes on with the same statistics.
        self.register_buffer("memory_M2K", torch.zeros(MEMORY, 2, width))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    def forward(self, first: MaskedMap, second: MaskedMap, voxels: Tensor) -> Agreement:
        """Compare the two maskings of the heads of a pass.

        Args:
            first: Coarsest map of the first.
            second: Of the second; the same heads in the same order.
            voxels: Scored voxels of this rank.
        """
        with torch.autocast(first.device.type, enabled=False):
            embedded_B2K = torch.stack(
                [self.project(pooled(map_).to(self.memory_M2K.dtype)) for map_ in (first, second)], dim=1
            )
            all_N2K, all_voxels = _of_all_ranks(embedded_B2K, voxels)
            loss, spread = vicreg(all_N2K, self.memory_M2K, self.held)
        if self.training:
            self._remember(all_N2K.detach())
        return Agreement(loss, spread, all_voxels)

    @torch.no_grad()
    def _remember(self, new_N2K: Tensor) -> None:
        """Keep the newest; what is not finite, as a step that will be skipped has it, is not kept."""
        fine = new_N2K.isfinite().all()
        longer_M2K = torch.cat([new_N2K, self.memory_M2K])[:MEMORY]
        held = (self.held + len(new_N2K)).clamp(max=MEMORY)
        self.memory_M2K.copy_(torch.where(fine, longer_M2K, self.memory_M2K))
        self.held.copy_(torch.where(fine, held, self.held))


def pooled(map_: MaskedMap) -> Tensor:
    """The mean of a map over its visible cells, x_BC."""
    seen_B1DHW = map_.voxel_mask()
    total_BC = map_.dense().sum((2, 3, 4), dtype=torch.promote_types(map_.dtype, torch.float32))
    return total_BC / seen_B1DHW.sum((2, 3, 4)).clamp(min=1)


def vicreg(embedded_N2K: Tensor, memory_M2K: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Invariance, variance and covariance of embeddings.

    Variance and covariance are those of the embeddings together with what is held of earlier ones. These have no
    gradient; that of the others is made as large as if all had one.

    Args:
        embedded_N2K: Of N heads, both maskings.
        memory_M2K: Of earlier heads, the newest first.
        held: How many of them count.

    Returns:
        The loss, and the mean standard deviation.
    """
    invariance = F.mse_loss(embedded_N2K[:, 0], embedded_N2K[:, 1])
    new, width = len(embedded_N2K), embedded_N2K.shape[-1]
    counted_L = torch.cat([held.new_ones(new), torch.arange(len(memory_M2K), device=held.device) < held])
    count = counted_L.sum()
    counted_L11 = counted_L.view(-1, 1, 1)
    every_L2K = torch.cat([embedded_N2K, memory_M2K])
    mean_2K = (every_L2K * counted_L11).sum(0) / count
    centred_L2K = (every_L2K - mean_2K) * counted_L11
    covariance_2KK = torch.einsum("lvi,lvj->vij", centred_L2K, centred_L2K) / (count - 1).clamp(min=1)
    variance_2K = covariance_2KK.diagonal(dim1=1, dim2=2)
    deviation_2K = (variance_2K + STD_EPS).sqrt()
    variance = F.relu(1 - deviation_2K).mean(1).sum()
    between = covariance_2KK.square().sum((1, 2)) - variance_2K.square().sum(1)
    statistics = variance + COVARIANCE_WEIGHT * between.sum() / width
    # A lone head says nothing about how heads differ.
    statistics = torch.where(count > 1, statistics, statistics.detach() * 0)
    statistics = statistics + (count / new - 1) * (statistics - statistics.detach())
    return invariance + statistics, deviation_2K.detach().mean()


def _of_all_ranks(embedded_B2K: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings of all ranks in their order, of which this rank's have a gradient; and the sum of their voxels.

    The loss of all is the same on every rank, and each takes its gradient by its own embeddings: added up, as gradients
    of ranks are, that is the gradient by all of them.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embedded_B2K, voxels
    batch = len(embedded_B2K)
    sent = torch.cat([embedded_B2K.detach().flatten(), voxels.view(1).to(embedded_B2K.dtype)])
    got = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(got, sent)
    parts = [one[:-1].view(batch, *embedded_B2K.shape[1:]) for one in got]
    parts[dist.get_rank()] = embedded_B2K
    return torch.cat(parts), cast(Tensor, sum(one[-1] for one in got))
