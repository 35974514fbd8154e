"""What every encoder is: its shape, the protocol that the rest of headspark asks for, and its norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harmonize.errors import WrongUse

NORM_EPS = 1e-5
"""Added to the variance by every norm layer (nnU-Net)."""

MOST_STAGES, MOST_BLOCKS, MOST_CHANNELS, LARGEST_KERNEL = 12, 1024, 65_536, 31
"""Beyond any 3D encoder: a config.json of a hundred bytes must not name a network without end."""

GROUPS = 8
"""Groups of the group norm, where that is chosen."""

KINDS = {
    "resenc": "headspark.encoder.residual:ResidualEncoder",
    "segresnet": "headspark.encoder.monai:build_monai_encoder",
    "mednext": "headspark.encoder.monai:build_monai_encoder",
}
"""What builds each kind from its configuration; imported when it is asked for, because MONAI takes seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The shape of an encoder; one entry a stage in ``features``, ``blocks`` and ``strides``.

    Attributes:
        kind: ``resenc`` (nnU-Net's residual encoder), ``segresnet`` or ``mednext`` (MONAI's).
        in_channels: Input channels: three windows of a CT, or an MRI three times.
        features: Channels of each stage.
        blocks: Residual blocks of each stage.
        strides: Stride of the first block of each stage; the first is 1 so that the finest map has the input's grid.
        kernel: Edge of the convolution kernels, odd.
        norm: ``instance``, ``batch`` (turned into SyncBatchNorm on several ranks by the trainer) or ``group``.
        conv_bias: Whether convolutions carry a bias, as nnU-Net's do.
        drop_path: Probability with which a residual branch is dropped, rising linearly over the blocks.
    """

    kind: Literal["resenc", "segresnet", "mednext"] = "resenc"
    in_channels: int = 3
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    strides: tuple[int, ...] = (1, 2, 2, 2, 2, 2)
    kernel: int = 3
    norm: Literal["instance", "batch", "group"] = "instance"
    conv_bias: bool = True
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        stages = len(self.features)
        for name in ("blocks", "strides"):
            if len(getattr(self, name)) != stages:
                raise WrongUse(
                    f"encoder.{name} has {len(getattr(self, name))} entries, encoder.features has {stages}: "
                    "one entry a stage",
                )
        if stages == 0 or self.strides[0] != 1:
            raise WrongUse("encoder.strides must begin with 1: the finest map has the grid of the input")
        if min((*self.features, *self.blocks, *self.strides, self.in_channels)) < 1:
            raise WrongUse("encoder.features, blocks, strides and in_channels are positive whole numbers")
        for name, value, most in (
            ("features", max(self.features), MOST_CHANNELS),
            ("in_channels", self.in_channels, MOST_CHANNELS),
            ("features", stages, MOST_STAGES),
            ("blocks", sum(self.blocks), MOST_BLOCKS),
            ("strides", max(self.strides), LARGEST_KERNEL),
            ("kernel", self.kernel, LARGEST_KERNEL),
        ):
            if value > most:
                raise WrongUse(f"encoder.{name}: {value} are more than the {most} that are taken")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise WrongUse(f"encoder.kernel is {self.kernel}: an odd number is needed")
        if not 0 <= self.drop_path < 1:
            raise WrongUse(f"encoder.drop_path is {self.drop_path}: it is a probability below 1")

    @property
    def cumulative_strides(self) -> tuple[int, ...]:
        """Voxels of the input that one cell of each map spans, along an axis."""
        spans, span = [], 1
        for stride in self.strides:
            span *= stride
            spans.append(span)
        return tuple(spans)


PRESETS: dict[str, EncoderConfig] = {
    "demo": EncoderConfig(features=(16, 32, 64, 128), blocks=(1, 1, 1, 1), strides=(1, 2, 2, 2)),
    "resenc_s": EncoderConfig(features=(16, 32, 64, 128, 256), blocks=(1, 2, 2, 2, 2), strides=(1, 2, 2, 2, 2)),
    "resenc_m": EncoderConfig(features=(32, 64, 128, 256, 320), blocks=(1, 2, 3, 4, 4), strides=(1, 2, 2, 2, 2)),
    # nnssl's ResEncL (arXiv 2412.17041): 90.3 million parameters.
    "resenc_l": EncoderConfig(),
}


class MaskableEncoder(nn.Module):
    """What the rest of headspark asks of an encoder, whoever wrote its layers.

    Attributes:
        config: The shape.
        channels: Channels of each map, finest first.
        strides: Cumulative stride of each map.
        preprocessing: Of a pretrained one: what a scan must have gone through before (spacing in mm, region, the
            windows of CT, the normaliser and the scaling of MRI), as config.json says it.
        checkpointing: Whether activations are recomputed in the backward pass instead of kept.
    """

    config: EncoderConfig
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    preprocessing: dict[str, Any]

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = config.features
        self.strides = config.cumulative_strides
        self.checkpointing = False

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Encode a volume, or its visible blocks.

        Args:
            x_BCDHW: A dense volume whose edges are multiples of the total stride, or a
                :class:`headspark.packed.PackedBlocks`.

        Returns:
            One map a stage, finest first, of the input's type.
        """
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layers, for layer-wise learning rates: the stem, then every block.

        Args:
            coarse: Take whole stages instead of blocks.
        """
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, and recompute what is in between."""
        self.checkpointing = enable

    def run(self, layer: nn.Module, x_BCDHW: Tensor) -> Tensor:
        """Call a layer, under activation checkpointing where that is on."""
        # Not by `training`: an encoder of which some layers are frozen is in eval mode, and trains.
        if self.checkpointing and torch.is_grad_enabled():
            if isinstance(x_BCDHW, Tensor):
                return checkpoint(layer, x_BCDHW, use_reentrant=False)
            # PyTorch restores the random numbers of the GPU whose tensors it finds among the arguments: in visible
            # blocks it would find none, and the recomputation would drop other branches.
            return checkpoint(lambda _, x: layer(x), x_BCDHW.data, x_BCDHW, use_reentrant=False)
        return layer(x_BCDHW)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Build a norm layer for maps of so many channels."""
    if kind == "instance":
        return nn.InstanceNorm3d(channels, eps=NORM_EPS, affine=True)
    if kind == "batch":
        return nn.BatchNorm3d(channels, eps=NORM_EPS)
    if kind == "group":
        if channels % GROUPS:
            raise WrongUse(f"encoder.norm 'group' needs features that are multiples of {GROUPS}")
        return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS)
    raise WrongUse(f"encoder.norm '{kind}' is not known: instance, batch or group")
