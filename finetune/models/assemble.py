"""The classifier: any 3D encoder, a small top-down neck, and 14 labels pooled from a grid of cells.

Each cell of the grid says two things: how likely an aneurysm sits there (`presence`), and which of the 13 places of
the circle of Willis it belongs to (`territory`). The logit of an aneurysm at place l in a cell is ``presence +
log_softmax(territory)_l``, and a series' logit is the mean of its highest cells. So all places share one detector,
which matters where a place has a handful of positives, and territories can be learned from vessel masks of healthy
series too.

The size of the cells was worth more than the backbone in the competition (8^3 to 25^3 cells: leaderboard 0.77 to
0.81), hence `HeadConfig.stride`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from timm.models import group_modules
from torch import Tensor, nn
from torch.nn import functional as F

from harmonize.errors import WrongUse
from harmonize.labels import LABELS, LOCATIONS

PRESENCE_PRIOR = 0.01
"""Presence of an untrained cell: most cells are empty, and starting there keeps the first steps calm (RetinaNet)."""

EncoderLayers = tuple[tuple[nn.Module, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """The head on top of the encoder.

    Attributes:
        stride: Edge of a cell in input voxels; one of the encoder's strides.
        coarsest: Stride of the coarsest map that is used; None takes all. Coarse maps see the whole head, which lets a
            network that has few series to learn from remember them one by one.
        width: Channels of the neck.
        pooling: How cells become a series' logit: the mean of the `top` highest, a log-mean-exp, or the plain mean.
        top: Cells of ``topk`` pooling.
        coordinates: Tell the territory of each cell its place in the patch: left and right look alike without it.
            Presence never knows it, so that an aneurysm looks the same everywhere.
        dropout: On the neck's features.
    """

    stride: int = 4
    coarsest: int | None = None
    width: int = 64
    pooling: Literal["topk", "logmeanexp", "mean"] = "topk"
    top: int = 8
    coordinates: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.top < 1 or not 0 <= self.dropout < 1:
            raise WrongUse("head: width and top must be at least 1 and dropout in [0, 1)")


class Output(NamedTuple):
    """What the classifier says about a batch.

    Attributes:
        logits_B14: A series' logits, columns as `LABELS`.
        presence_Bdhw: Logit of an aneurysm in each cell.
        territory_B13dhw: Unnormalised log-probabilities of the 13 places in each cell.
    """

    logits_B14: Tensor
    presence_Bdhw: Tensor
    territory_B13dhw: Tensor


class AneurysmClassifier(nn.Module):
    """Encoder, neck, cells, pooling.

    Args:
        encoder: Maps x_BCDHW to feature maps, finest first, and has `channels`, `strides` (cumulative) and
            `group_matcher()` in timm's sense.
        config: The head.

    Raises:
        UserError: If the encoder has no map at `HeadConfig.stride`.
    """

    def __init__(self, encoder: nn.Module, config: HeadConfig) -> None:
        super().__init__()
        strides, channels = cast(Sequence[int], encoder.strides), cast(Sequence[int], encoder.channels)
        coarsest = strides[-1] if config.coarsest is None else config.coarsest
        for name, stride in (("stride", config.stride), ("coarsest", coarsest)):
            if stride not in strides:
                offered = ", ".join(map(str, strides))
                raise WrongUse(f"head.{name} {stride}: this encoder has maps at {offered}; use one")
        if coarsest < config.stride:
            raise WrongUse(f"head.coarsest {coarsest}: must not be finer than head.stride {config.stride}")
        self.config = config
        self.encoder = encoder
        self.maps = slice(list(strides).index(config.stride), list(strides).index(coarsest) + 1)
        self.neck = _Neck(channels[self.maps], config.width)
        self.presence_mix = _mix(config.width, config.width, config.dropout)
        self.presence = nn.Conv3d(config.width, 1, 1)
        self.territory_mix = _mix(config.width + (3 if config.coordinates else 0), config.width, config.dropout)
        self.territory = nn.Conv3d(config.width, len(LOCATIONS), 1)
        self.scale_14 = nn.Parameter(torch.ones(len(LABELS)))
        self.shift_14 = nn.Parameter(torch.zeros(len(LABELS)))
        prior = torch.full((1,), math.log(PRESENCE_PRIOR / (1 - PRESENCE_PRIOR)))
        self.presence.bias = nn.Parameter(prior)
        self.layers: EncoderLayers = encoder_layers(encoder)

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """Everything that is not the encoder."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    def forward(self, x_BCDHW: Tensor) -> Output:
        """Classify patches.

        Args:
            x_BCDHW: Network input as `headspark.channels.to_network_input` makes it.

        Returns:
            Series' logits and the cells behind them.
        """
        features = self.neck(self.encoder(x_BCDHW)[self.maps])
        presence_B1dhw = self.presence(self.presence_mix(features))
        if self.config.coordinates:
            grid = coordinates(features.shape[2:], features).expand(len(features), -1, -1, -1, -1)
            features = torch.cat([features, grid], dim=1)
        territory_B13dhw = self.territory(self.territory_mix(features))
        places_B13dhw = presence_B1dhw + F.log_softmax(territory_B13dhw, dim=1)
        evidence_B14dhw = torch.cat([places_B13dhw, presence_B1dhw], dim=1)
        logits_B14 = self.scale_14 * pool(evidence_B14dhw, self.config) + self.shift_14
        return Output(logits_B14, presence_B1dhw[:, 0], territory_B13dhw)


def pool(evidence_BKdhw: Tensor, config: HeadConfig) -> Tensor:
    """One number a channel from a grid of cells.

    Args:
        evidence_BKdhw: Logits of the cells.
        config: Which pooling.

    Returns:
        (B, K).

    Example:
        >>> cells = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 1, 2, 2)
        >>> pool(cells, HeadConfig(pooling="topk", top=2)).item()
        2.5
    """
    cells = evidence_BKdhw.flatten(2).float()
    if config.pooling == "mean":
        return cells.mean(-1)
    if config.pooling == "logmeanexp":
        return cells.logsumexp(-1) - math.log(cells.shape[-1])
    return cells.topk(min(config.top, cells.shape[-1]), dim=-1).values.mean(-1)


def encoder_layers(encoder: nn.Module) -> EncoderLayers:
    """The encoder's modules that own parameters, grouped by its `group_matcher`, shallowest first.

    Raises:
        UserError: If the encoder does not say what its layers are.
    """
    matcher = getattr(encoder, "group_matcher", None)
    if matcher is None:
        raise WrongUse(f"encoder {type(encoder).__name__}: no group_matcher(), so its layers are unknown")
    named = dict(encoder.named_modules())
    groups = group_modules(encoder, matcher(coarse=True))
    layers = (
        tuple(named[name] for name in groups[layer] if any(True for _ in named[name].parameters(recurse=False)))
        for layer in sorted(groups)
    )
    return tuple(layer for layer in layers if layer)


def coordinates(shape: Sequence[int], like: Tensor) -> Tensor:
    """Centres of the cells of a grid in [-1, 1] along each axis, as 3 channels.

    Args:
        shape: (d, h, w).
        like: Gives dtype and device.

    Returns:
        (1, 3, d, h, w).
    """
    axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n * 2 - 1 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


class _Neck(nn.Module):
    """Top-down fusion of maps at the finest one's stride (a feature pyramid with one output)."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(count, width, 1) for count in channels)
        self.norm = _CellNorm(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        laterals = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        fused = laterals[-1]
        for finer in reversed(laterals[:-1]):
            fused = finer + F.interpolate(fused, size=finer.shape[2:], mode="trilinear", align_corners=False)
        return self.norm(fused)


class _CellNorm(nn.Module):
    """Layer norm over the channels of each cell. An instance norm would tie a cell to everything else in the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCdhw: Tensor) -> Tensor:
        return self.norm(x_BCdhw.movedim(1, -1)).movedim(-1, 1)


def _mix(channels: int, width: int, dropout: float) -> nn.Module:
    """Two layers that look at a cell and its neighbours."""
    return nn.Sequential(
        nn.Conv3d(channels, width, 3, padding=1),
        nn.GELU(),
        nn.Dropout3d(dropout),
        nn.Conv3d(width, width, 1),
        nn.GELU(),
    )
