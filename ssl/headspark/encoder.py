"""The residual encoder of nnU-Net as plain modules: they run dense or packed, and their weights travel both ways."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harmonize.errors import UserError

LEAKY_SLOPE = 0.01
"""Negative slope of the activation, and of the He initialisation that goes with it (nnU-Net)."""

NORM_EPS = 1e-5
"""Added to the variance by every norm layer (nnU-Net)."""

MOST_STAGES, MOST_BLOCKS, MOST_CHANNELS, LARGEST_KERNEL = 12, 1024, 65_536, 31
"""Beyond any 3D encoder: a config.json of a hundred bytes must not name a network without end."""

GROUPS = 8
"""Groups of the group norm, where that is chosen."""


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
                raise UserError(
                    f"encoder.{name} has {len(getattr(self, name))} entries, encoder.features has {stages}: "
                    "one entry a stage",
                    exit_code=2,
                )
        if stages == 0 or self.strides[0] != 1:
            raise UserError("encoder.strides must begin with 1: the finest map has the grid of the input", exit_code=2)
        if min((*self.features, *self.blocks, *self.strides, self.in_channels)) < 1:
            raise UserError("encoder.features, blocks, strides and in_channels are positive whole numbers", exit_code=2)
        for name, value, most in (
            ("features", max(self.features), MOST_CHANNELS),
            ("in_channels", self.in_channels, MOST_CHANNELS),
            ("features", stages, MOST_STAGES),
            ("blocks", sum(self.blocks), MOST_BLOCKS),
            ("strides", max(self.strides), LARGEST_KERNEL),
            ("kernel", self.kernel, LARGEST_KERNEL),
        ):
            if value > most:
                raise UserError(f"encoder.{name}: {value} are more than the {most} that are taken", exit_code=2)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"encoder.kernel is {self.kernel}: an odd number is needed", exit_code=2)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"encoder.drop_path is {self.drop_path}: it is a probability below 1", exit_code=2)

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
        checkpointing: Whether activations are computed again in the backward pass instead of kept.
    """

    config: EncoderConfig
    channels: tuple[int, ...]
    strides: tuple[int, ...]

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
        """Keep only the inputs of blocks for the backward pass, and compute what is in between again."""
        self.checkpointing = enable

    def run(self, layer: nn.Module, x_BCDHW: Tensor) -> Tensor:
        """Call a layer, under activation checkpointing where that is on."""
        if self.checkpointing and self.training:
            return checkpoint(layer, x_BCDHW, use_reentrant=False)
        return layer(x_BCDHW)


def build_encoder(config: EncoderConfig) -> MaskableEncoder:
    """Build the encoder that a config describes.

    Args:
        config: The shape.

    Returns:
        The encoder.

    Raises:
        UserError: The kind cannot be built in that shape.
    """
    if config.kind == "resenc":
        return ResidualEncoder(config)
    from headspark.encoder_monai import build_monai_encoder  # MONAI's import takes seconds that most runs do not need

    return build_monai_encoder(config)


class ResidualEncoder(MaskableEncoder):
    """nnU-Net's ResidualEncoder: a stem, then stages of two-convolution residual blocks (ResNet-D skips).

    The state-dict keys are those of ``dynamic_network_architectures`` 0.4 without its duplicates under
    ``all_modules``, and the function is the same.

    Args:
        config: The shape.

    Example:
        >>> encoder = ResidualEncoder(PRESETS["demo"])
        >>> [tuple(map_.shape) for map_ in encoder(torch.zeros(1, 3, 16, 16, 16))]
        [(1, 16, 16, 16, 16), (1, 32, 8, 8, 8), (1, 64, 4, 4, 4), (1, 128, 2, 2, 2)]
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.stem = Stem(config)
        total = sum(config.blocks)
        drop_rates = iter(config.drop_path * index / max(total - 1, 1) for index in range(total))
        stages, channels = [], config.features[0]
        for features, blocks, stride in zip(config.features, config.blocks, config.strides, strict=True):
            stages.append(Stage(config, channels, features, blocks, stride, [next(drop_rates) for _ in range(blocks)]))
            channels = features
        self.stages = nn.Sequential(*stages)
        self.apply(initialise)

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return one map a stage, finest first; see :meth:`MaskableEncoder.forward`."""
        maps = []
        x = self.stem(x_BCDHW)
        for stage in self.stages:
            for block in stage.get_submodule("blocks").children():
                x = self.run(block, x)
            maps.append(x)
        return maps

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layers: the stem, then every block (or every stage, if ``coarse``)."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None)]}


class Stem(nn.Module):
    """The first convolution, at full resolution."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormAct(config, config.in_channels, config.features[0]))

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the first map, at the grid of the input."""
        return self.convs(x_BCDHW)


class Stage(nn.Module):
    """Residual blocks at one resolution; the first of them strides."""

    def __init__(
        self, config: EncoderConfig, in_channels: int, channels: int, blocks: int, stride: int, drop_rates: list[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    config,
                    in_channels if index == 0 else channels,
                    channels,
                    stride if index == 0 else 1,
                    drop_rates[index],
                )
                for index in range(blocks)
            )
        )

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the map of this stage."""
        return self.blocks(x_BCDHW)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip; the skip averages where the block strides and projects where channels change.

    Bag of Tricks (arXiv 1812.01187) calls this ResNet-D.
    """

    def __init__(
        self, config: EncoderConfig, in_channels: int, channels: int, stride: int, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(config, in_channels, channels, stride=stride)
        self.conv2 = ConvNormAct(config, channels, channels, activate=False)
        self.nonlin2 = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
        self.drop_path = DropPath(drop_rate) if drop_rate > 0 else nn.Identity()

        # Numbered as nnU-Net numbers them: the projection is skip.1 behind a pool and skip.0 without one.
        skip: OrderedDict[str, nn.Module] = OrderedDict()
        if stride != 1:
            skip["0"] = nn.AvgPool3d(stride, stride)
        if in_channels != channels:
            skip[str(len(skip))] = ConvNormAct(config, in_channels, channels, kernel=1, bias=False, activate=False)
        self.skip = nn.Sequential(skip)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the sum of branch and skip, activated."""
        residual = self.skip(x_BCDHW)
        out = self.drop_path(self.conv2(self.conv1(x_BCDHW)))
        out += residual
        return self.nonlin2(out)


class ConvNormAct(nn.Module):
    """Convolution, norm, LeakyReLU."""

    def __init__(
        self,
        config: EncoderConfig,
        in_channels: int,
        channels: int,
        *,
        kernel: int | None = None,
        stride: int = 1,
        bias: bool | None = None,
        activate: bool = True,
    ) -> None:
        super().__init__()
        kernel = config.kernel if kernel is None else kernel
        bias = config.conv_bias if bias is None else bias
        self.conv = nn.Conv3d(in_channels, channels, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
        self.norm = make_norm(config.norm, channels)
        self.nonlin = nn.LeakyReLU(LEAKY_SLOPE, inplace=True) if activate else nn.Identity()

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the convolved, normalised and activated map."""
        return self.nonlin(self.norm(self.conv(x_BCDHW)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop the whole branch of a sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the branch, zeroed for some samples and scaled up for the others."""
        if not self.training:
            return x_BCDHW
        keep = 1 - self.rate
        kept_B1111 = torch.rand(x_BCDHW.shape[0], 1, 1, 1, 1, device=x_BCDHW.device) < keep
        return x_BCDHW * (kept_B1111 / keep).to(x_BCDHW.dtype)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Build a norm layer for maps of so many channels."""
    if kind == "instance":
        return nn.InstanceNorm3d(channels, eps=NORM_EPS, affine=True)
    if kind == "batch":
        return nn.BatchNorm3d(channels, eps=NORM_EPS)
    if kind == "group":
        if channels % GROUPS:
            raise UserError(f"encoder.norm 'group' needs features that are multiples of {GROUPS}", exit_code=2)
        return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS)
    raise UserError(f"encoder.norm '{kind}' is not known: instance, batch or group", exit_code=2)


def initialise(module: nn.Module) -> None:
    """Initialise one module as nnU-Net does: He for LeakyReLU, and residual branches that begin as zero."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        for parameter in module.conv2.norm.parameters():
            nn.init.zeros_(parameter)
