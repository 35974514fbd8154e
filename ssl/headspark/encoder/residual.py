"""The residual encoder of nnU-Net as plain modules: they run dense or packed, and their weights travel both ways."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from headspark.encoder.base import EncoderConfig, MaskableEncoder, make_norm

LEAKY_SLOPE = 0.01
"""Negative slope of the activation, and of the He initialisation that goes with it (nnU-Net)."""


class ResidualEncoder(MaskableEncoder):
    """nnU-Net's ResidualEncoder: a stem, then stages of two-convolution residual blocks (ResNet-D skips).

    The state-dict keys are those of ``dynamic_network_architectures`` 0.4 without its duplicates under
    ``all_modules``, and the function is the same.

    Args:
        config: The shape.

    Example:
        >>> from headspark.encoder import PRESETS
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


def initialise(module: nn.Module) -> None:
    """Initialise one module as nnU-Net does: He for LeakyReLU, and residual branches that begin as zero."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        for parameter in module.conv2.norm.parameters():
            nn.init.zeros_(parameter)
