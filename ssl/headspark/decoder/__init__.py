"""Decoders that predict the hidden voxels from the densified maps of an encoder.

They work on whole volumes. ``light`` runs on the kernels of packed blocks (PyTorch's own instance norm copies
channels-last maps), ``unet`` on those of :mod:`headspark.decoder.upsample_concat_conv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from harmonize.errors import UserError
from headspark.decoder.norm_act import norm_act
from headspark.decoder.upsample_concat_conv import enlarge_and_convolve
from headspark.encoder import EncoderConfig
from headspark.encoder.residual import ConvNormAct, initialise
from headspark.packed import FilledMap
from headspark.packed.blocks import PackedBlocks
from headspark.packed.ops import cast_for_autocast


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """What stands behind the encoder while it is pretrained.

    Attributes:
        kind: ``light`` works at coarse scales only and predicts whole patches; ``unet`` is the decoder of nnU-Net's
            ResEncL, as costly as the encoder and worth having only where it is to be fine-tuned too.
        stop_stride: ``light``: stride of the finest map that is decoded; each of its cells predicts a cube of that
            edge. Decoding finer costs most of a decoder's time, and the encoder's finer maps are trained through the
            coarser ones all the same.
        width: ``light``: channels at the finest decoded map; they double with every coarser one.
        max_width: ``light``: at most so many channels.
    """

    kind: Literal["light", "unet"] = "light"
    stop_stride: int = 4
    width: int = 64
    max_width: int = 256

    def __post_init__(self) -> None:
        if min(self.stop_stride, self.width, self.max_width) < 1:
            raise UserError("decoder.stop_stride, width and max_width are positive whole numbers", exit_code=2)


def build_decoder(
    config: DecoderConfig, channels: Sequence[int], strides: Sequence[int], out_channels: int
) -> LightDecoder | UNetDecoder:
    """Build a decoder for an encoder's maps.

    Args:
        config: The kind of decoder.
        channels: Channels of each map, finest first.
        strides: Cumulative stride of each map.
        out_channels: Channels of the prediction.
    """
    if config.kind == "unet":
        return UNetDecoder(channels, strides, out_channels)
    return LightDecoder(config, channels, strides, out_channels)


class LightDecoder(nn.Module):
    """From the coarsest map up to ``stop_stride``: enlarge, add the map of that scale, convolve; then predict patches.

    Args:
        config: Widths and where to stop.
        channels: Channels of the encoder's maps, finest first.
        strides: Their cumulative strides.
        out_channels: Channels of the prediction.

    Attributes:
        scales: Which of the encoder's maps are read.
        widths: Channels of each of them, as this decoder wants them.
    """

    def __init__(
        self, config: DecoderConfig, channels: Sequence[int], strides: Sequence[int], out_channels: int
    ) -> None:
        super().__init__()
        stop = min(config.stop_stride, strides[-1])
        self.scales = [scale for scale, stride in enumerate(strides) if stride >= stop]
        self.patch = strides[self.scales[0]]
        self.out_channels = out_channels
        self.widths = [min(config.width * (strides[scale] // self.patch), config.max_width) for scale in self.scales]
        shape = EncoderConfig(in_channels=out_channels)
        factors = [strides[coarse] // strides[fine] for fine, coarse in zip(self.scales, self.scales[1:], strict=False)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(wide, narrow, factor, factor)
            for narrow, wide, factor in zip(self.widths, self.widths[1:], factors, strict=False)
        )
        self.mixes = nn.ModuleList(ConvNormAct(shape, width, width) for width in self.widths)
        self.predict = nn.Conv3d(self.widths[0], out_channels * self.patch**3, 1)
        self.apply(initialise)
        # The voxels of a cell have filters of their own: drawn at random, these would show as a checkerboard for long.
        nn.init.zeros_(self.predict.weight)

    def forward(self, maps: Sequence[FilledMap]) -> Tensor:
        """Predict the volume.

        Args:
            maps: The maps of ``scales`` and their tokens, finest first, with ``widths`` channels.

        Returns:
            The prediction (B, C, D, H, W).
        """
        skips = [PackedBlocks.whole(map_.dense()) for map_ in maps]
        x = self.mixes[-1](skips[-1])
        for scale in reversed(range(len(self.ups))):
            x = self.mixes[scale](self.ups[scale](x) + skips[scale])
        return unpatchify(self.predict(x).dense(), self.patch)


class UNetDecoder(nn.Module):
    """nnU-Net's UNetDecoder with its state-dict keys: enlarge, concatenate the skip, convolve once.

    Args:
        channels: Channels of the encoder's maps, finest first.
        strides: Their cumulative strides.
        out_channels: Channels of the prediction.

    Attributes:
        scales: Which of the encoder's maps are read: all.
        widths: Their channels.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.scales = list(range(len(channels)))
        self.widths = list(channels)
        shape = EncoderConfig(in_channels=out_channels)
        coarse_to_fine = list(reversed(self.scales[:-1]))
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(channels[s + 1], channels[s], strides[s + 1] // strides[s], strides[s + 1] // strides[s])
            for s in coarse_to_fine
        )
        self.stages = nn.ModuleList(UNetStage(shape, 2 * channels[s], channels[s]) for s in coarse_to_fine)
        # Like nnU-Net, one prediction layer a scale, so that its checkpoints load whole; the finest is used.
        self.seg_layers = nn.ModuleList(nn.Conv3d(channels[s], out_channels, 1) for s in coarse_to_fine)
        for unused in self.seg_layers[:-1]:
            unused.requires_grad_(False)
        self.apply(initialise)

    def forward(self, maps: Sequence[FilledMap]) -> Tensor:
        """Predict the volume (B, C, D, H, W) from all maps and their tokens, finest first."""
        x = maps[-1].dense().permute(0, 2, 3, 4, 1)
        last = len(self.stages) - 1
        for step, (enlarge, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            head = cast(nn.Conv3d, self.seg_layers[step]) if step == last else None
            x = cast(UNetStage, stage)(x, maps[-2 - step], cast(nn.ConvTranspose3d, enlarge), head)
        return x.permute(0, 4, 1, 2, 3)


class UNetStage(nn.Module):
    """The weights of nnU-Net's StackedConvBlocks with one convolution, run by :mod:`.upsample_concat_conv`."""

    def __init__(self, shape: EncoderConfig, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormAct(shape, in_channels, channels))

    def forward(
        self, coarse_BdhwC: Tensor, skip: FilledMap, enlarge: nn.ConvTranspose3d, head: nn.Conv3d | None
    ) -> Tensor:
        """Decode one scale.

        Args:
            coarse_BdhwC: The decoded map of the scale below.
            skip: The encoder's map of this scale.
            enlarge: The transposed convolution that leads to this scale.
            head: The convolution that predicts, at the last scale.

        Returns:
            The decoded map (B, D, H, W, C) or the prediction.
        """
        block = cast(ConvNormAct, self.convs[0])
        norm, nonlin = cast(nn.InstanceNorm3d, block.norm), cast(nn.LeakyReLU, block.nonlin)
        visible = skip.visible if isinstance(skip.visible, PackedBlocks) else PackedBlocks.whole(skip.dense())
        data, weight, bias = cast_for_autocast(visible.data, block.conv.weight, block.conv.bias)
        coarse, up_weight, up_bias = cast_for_autocast(coarse_BdhwC, enlarge.weight, enlarge.bias)
        x = enlarge_and_convolve(coarse, data, visible.geometry, skip.token_C, up_weight, up_bias, weight, bias)
        linear = None
        if head is not None:
            _, head_weight, head_bias = cast_for_autocast(x, head.weight, head.bias)
            linear = head_weight.flatten(1), head_bias
        return norm_act(x, norm.weight, norm.bias, linear, eps=norm.eps, slope=nonlin.negative_slope)


def unpatchify(patches_BPdhw: Tensor, patch: int) -> Tensor:
    """Spread the channels of coarse cells over the cubes that they stand for (a pixel shuffle in three dimensions).

    Args:
        patches_BPdhw: (B, C * patch**3, d, h, w).
        patch: Edge of the cubes.

    Returns:
        (B, C, d * patch, h * patch, w * patch).

    Example:
        >>> import torch
        >>> unpatchify(torch.arange(8.0).view(1, 8, 1, 1, 1), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    batch, _, d, h, w = patches_BPdhw.shape
    cubes = patches_BPdhw.view(batch, -1, patch, patch, patch, d, h, w)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, d * patch, h * patch, w * patch)
