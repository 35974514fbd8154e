"""An encoder of pictures: a 2D network of timm that looks at each picture of a bag."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import Tensor, nn

from harmonize.errors import UserError, WrongUse
from headspark.config.checks import require
from headspark.encoder.base import MOST_CHANNELS

COORDINATES = 2
"""Of a point in a picture."""

TRIED_EDGE = 64
"""Pixels of the picture that a backbone is tried on."""

_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmConfig:
    """A 2D network of timm that looks at pictures: for views that show some.

    Attributes:
        kind: ``timm``.
        backbone: Its name in timm, such as ``efficientnet_b0``: a convolutional one, whose last map is used.
        pretrained: Begin with the weights that timm publishes for it, from the Hub or its cache; otherwise at random.
        in_channels: Of a picture; how many a view gives, a line says where they do not agree.
        streams: Pictures that belong together, each of which has a backbone of its own.
        coordinates: Features that are made of the point that a training sample is told about; 0: it is not told.
    """

    kind: Literal["timm"] = "timm"
    backbone: str = "efficientnet_b0"
    pretrained: bool = False
    in_channels: int = 3
    streams: int = 1
    coordinates: int = 0

    def __post_init__(self) -> None:
        # timm takes addresses and paths too (hf_hub:user/name, local-dir:...): strangers' code and files.
        require(bool(_NAME.fullmatch(self.backbone)), f"scratch.backbone {self.backbone!r}: must be a name of timm's")
        channels = self.in_channels
        require(1 <= channels <= MOST_CHANNELS, f"scratch.in_channels {channels}: must lie in 1 to {MOST_CHANNELS}")
        require(1 <= self.streams <= 4, f"scratch.streams {self.streams}: must lie in 1 to 4")
        width = self.coordinates
        require(0 <= width <= MOST_CHANNELS, f"scratch.coordinates {width}: must lie in 0 to {MOST_CHANNELS}")

    @property
    def cumulative_strides(self) -> tuple[int, ...]:
        """Pictures have a size of their own, so a box may have any."""
        return (1,)


class PictureEncoder(nn.Module):
    """Backbones over a bag of pictures.

    Args:
        config: The recipe's.
        weights: Whether published weights are wanted; False where others are loaded.

    Attributes:
        config: The same.
        channels: Of its one map: the features of all streams, and those of the coordinates.
        strides: Pixels that a cell of it spans.

    Raises:
        WrongUse: timm has no such network, or not one of maps.
        UserError: Its published weights cannot be had.
    """

    pictures = True

    def __init__(self, config: TimmConfig, *, weights: bool = True) -> None:
        super().__init__()
        self.config = config
        pretrained = config.pretrained and weights
        self.backbones = nn.ModuleList(_backbone(config, pretrained) for _ in range(config.streams))
        first: Any = self.backbones[0]
        features = int(first.num_features) * config.streams
        width = config.coordinates
        self.where = nn.Sequential(nn.Linear(COORDINATES, width), nn.ReLU()) if width else None
        self.channels = (features + width,)
        self.strides = (int(first.feature_info[-1]["reduction"]),)

    def forward(self, x_BNCHW: Tensor, where_BM2: Tensor | None = None) -> list[Tensor]:
        """The features of each picture, or of those that belong together.

        Args:
            x_BNCHW: Bags of pictures; streams lie side by side along N, which is M times their number.
            where_BM2: The points that samples are told about; None at prediction, when nobody knows any: zeros.

        Returns:
            One map (B, C, M, h, w).
        """
        bags, streams = len(x_BNCHW), self.config.streams
        x_nsCHW = x_BNCHW.flatten(0, 1).unflatten(0, (-1, streams))
        pairs = zip(self.backbones, x_nsCHW.unbind(1), strict=True)
        maps = [_features(backbone, x) for backbone, x in pairs]
        if self.where is not None:
            if where_BM2 is None:
                where_BM2 = x_BNCHW.new_zeros(bags, len(x_nsCHW) // bags, COORDINATES)
            told_nK = self.where(where_BM2.flatten(0, 1).to(x_BNCHW.dtype))
            maps.append(told_nK[:, :, None, None].expand(-1, -1, *maps[0].shape[2:]))
        return [torch.cat(maps, 1).unflatten(0, (bags, -1)).transpose(1, 2)]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layer of a module by its name, in timm's sense: those of the backbone, alike in all streams.

        Args:
            coarse: Take whole stages instead of blocks.
        """
        first: Any = self.backbones[0]
        from timm.models import group_modules

        groups = group_modules(first, first.group_matcher(coarse=coarse))
        layer_of = {name: number for number, layer in enumerate(groups.values()) for name in layer}
        last = len(groups) - 1

        def layer(name: str) -> int:
            part, _, inside = name.partition(".")
            return layer_of.get(inside.partition(".")[2], last) if part == "backbones" else last

        return layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, and recompute what is in between."""
        backbone: Any
        for backbone in self.backbones:
            backbone.set_grad_checkpointing(enable)


def _features(backbone: Any, x_nCHW: Tensor) -> Tensor:
    features: Tensor = backbone.forward_features(x_nCHW.contiguous(memory_format=torch.channels_last))
    return features


def _backbone(config: TimmConfig, pretrained: bool) -> nn.Module:
    name = config.backbone
    import timm  # slow to load, and no volume needs it

    from harmonize.hub import HUB_ERRORS, first_line, reached  # slow as well, and no part of a prediction

    if not timm.is_model(name.partition(".")[0]):
        nearest = ", ".join(timm.list_models(f"*{name.partition('_')[0]}*")[:5]) or "none like it"
        raise WrongUse(f"scratch.backbone {name}: timm has no such network; it has {nearest}")
    hub_id = timm.get_pretrained_cfg_value(name, "hf_hub_id") if pretrained else None
    try:
        wanted = "scratch.pretrained wants its weights, "
        with reached(hub_id, SAFETENSORS_SINGLE_FILE, else_=wanted) if hub_id else nullcontext():
            network = timm.create_model(
                name, pretrained=pretrained, in_chans=config.in_channels, num_classes=0, global_pool=""
            )
    except HUB_ERRORS as error:
        raise UserError(
            f"scratch.pretrained: the weights of {name} cannot be had ({first_line(error)}); connect, or give "
            "--scratch.pretrained false"
        ) from error
    except RuntimeError as error:
        raise WrongUse(f"scratch.backbone {name}: {first_line(error)}") from error
    _check_maps(network, config)
    return network


def _check_maps(network: Any, config: TimmConfig) -> None:
    """Refuse networks whose last features are no map: transformers, for the most part."""
    tried = torch.zeros(1, config.in_channels, TRIED_EDGE, TRIED_EDGE)
    try:
        with torch.no_grad():
            found = network.eval().forward_features(tried)
    except (AssertionError, RuntimeError):  # one that takes pictures of a certain size alone
        found = None
    network.train()
    if found is None or found.ndim != tried.ndim or found.shape[1] != network.num_features:
        raise WrongUse(
            f"scratch.backbone {config.backbone}: gives no map of features for pictures of any size; take a "
            "convolutional network, such as efficientnet_b0"
        )
