"""A U-Net decoder over the encoder's maps that segments vessels by their place, and spheres around findings.

It is the decoder that a pretraining of `decoder.kind: unet` leaves beside its encoder, and begins with its weights
where they are there; only the layer that predicts is new. Its kernels keep one map a scale for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from finetune.models.heads.cells import PRESENCE_PRIOR
from finetune.models.maps import Maps
from finetune.tasks import Task
from harmonize.errors import WrongUse
from headspark.config.checks import require
from headspark.decoder import UNetDecoder

VESSELS: Literal["vessels"] = "vessels"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder that helps to train; at prediction it is asked only for what another head makes use of.

    Attributes:
        kind: ``decoder``.
        gives: What it says of each cell: ``vessels``, which place's vessel lies there if any; ``spheres``, whether it
            lies within `task.radius` of a finding; ``blobs``, how near one is. Each wants a loss of its own.
        stride: Edge of a cell in input voxels; one of the encoder's strides, finer than its coarsest.
    """

    kind: Literal["decoder"] = "decoder"
    gives: tuple[Literal["vessels", "spheres", "blobs"], ...] = ("vessels", "spheres")
    stride: int = 2

    def __post_init__(self) -> None:
        named = bool(self.gives) and len(set(self.gives)) == len(self.gives)
        require(named, f"auxiliary: gives {list(self.gives)}: one or more are needed, each once")


class DecodingHead(nn.Module):
    """What heads with a decoder share.

    Args:
        maps: What the encoder gives.
        stride: Edge of a cell in input voxels.
        channels: Of what is predicted in each cell, by name.
        key: Of the recipe, that says the stride.

    Raises:
        WrongUse: The encoder has no map at this stride, or only its coarsest.

    Attributes:
        decoder: The network, from the encoder's coarsest map to that of the stride.
        note: How it begins, for people.
    """

    outputs: tuple[str, ...]
    cells: Mapping[str, int]

    def __init__(self, maps: Maps, stride: int, channels: Mapping[str, int], *, key: str) -> None:
        super().__init__()
        if stride not in maps.strides[:-1]:
            offered = ", ".join(map(str, maps.strides[:-1]))
            raise WrongUse(f"{key} {stride} of the decoder: this encoder offers {offered}; use one")
        first = maps.strides.index(stride)
        self.decoder = UNetDecoder(maps.channels[first:], maps.strides[first:], sum(channels.values()))
        self.decoder.outputs = dict(channels)
        self.note = "the decoder begins at random"

    def begin_with(self, pretrained: UNetDecoder) -> None:
        """Take over the weights of a decoder of the same encoder, from the coarsest scale on.

        The layer that predicts is taken too where it said the same before.

        Args:
            pretrained: As `headspark.load_encoder` gives it.
        """
        own, other = self.decoder.state_dict(), pretrained.state_dict()
        outputs = [list(decoder.outputs.items()) for decoder in (pretrained, self.decoder)]
        same = outputs[0] == outputs[1] and pretrained.widths == self.decoder.widths
        taken = {name: other[name] for name in own if name in other and (same or not name.startswith("seg_layers."))}
        self.decoder.load_state_dict({**own, **taken})
        scales, count = len(self.decoder.stages), min(len(self.decoder.stages), len(pretrained.stages))
        of_all = "" if count == scales else f", {count} of its {scales} scales"
        last = "" if same else "; the layer that predicts is new"
        self.note = f"the decoder begins as it was pretrained{of_all}{last}"


class DecoderHead(DecodingHead):
    """Decoder, and the split of what it predicts into outputs.

    They are logits: ``vessels`` (B, P + 1, d, h, w), the first for none; ``spheres`` and ``blobs`` (B, d, h, w).

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: Whose places are segmented.

    Raises:
        WrongUse: The encoder has no map at `DecoderConfig.stride`, or only its coarsest; the task has no places.
    """

    def __init__(self, config: DecoderConfig, maps: Maps, task: Task) -> None:
        if VESSELS in config.gives and task.places < 1:
            raise WrongUse("auxiliary: the decoder gives vessels: wants a task with labels for places")
        channels: dict[str, int] = {name: task.places + 1 if name == VESSELS else 1 for name in config.gives}
        super().__init__(maps, config.stride, channels, key="auxiliary: stride")
        self.outputs = config.gives
        self.cells = dict.fromkeys(config.gives, config.stride)
        with torch.no_grad():
            bias = cast(nn.Conv3d, self.decoder.seg_layers[-1]).bias
            assert bias is not None
            for name, own in zip(channels, bias.split(list(channels.values())), strict=True):
                if name != VESSELS:
                    own.fill_(math.log(PRESENCE_PRIOR / (1 - PRESENCE_PRIOR)))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        predicted = self.decoder(maps[-len(self.decoder.widths) :])
        parts = predicted.split(list(self.decoder.outputs.values()), dim=1)
        return {
            name: part if name == VESSELS else part[:, 0]
            for name, part in zip(self.decoder.outputs, parts, strict=True)
        }
