"""The decoder of nnU-Net's residual U-Net, run on the kernels of :mod:`headspark.decoder.upsample_concat_conv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from headspark.decoder.norm_act import norm_act, norm_act_of_blocks
from headspark.decoder.upsample_concat_conv import upsample_concat_conv
from headspark.encoder import EncoderConfig
from headspark.encoder.residual import ConvNormAct, initialise
from headspark.packed import MaskGeometry, PackedBlocks, TokenMap
from headspark.packed.conv import cast_for_autocast
from headspark.packed.layout import channels_last


class UNetDecoder(nn.Module):
    """nnU-Net's UNetDecoder with its state-dict keys: upsample, concatenate the skip, convolve once.

    Args:
        channels: Channels of the encoder's maps, finest first.
        strides: Their cumulative strides.
        out_channels: Channels of the prediction.

    Attributes:
        scales: Which of the encoder's maps are read: all.
        widths: Their channels.
        stride: Of its finest map, and of the prediction.
        outputs: Channels of what it predicts, by name, if that is something else than the volume.
    """

    outputs: Mapping[str, int]

    def __init__(self, channels: Sequence[int], strides: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.scales = list(range(len(channels)))
        self.widths = list(channels)
        self.stride = strides[0]
        self.outputs = {}
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

    def forward(self, maps: Sequence[TokenMap | Tensor], wanted: MaskGeometry | None = None) -> Tensor:
        """Predict the volume (B, C, D, H, W) from all maps, finest first: masked ones with tokens, or dense x_BCDHW.

        Args:
            maps: The maps; finer ones than it reads may stand before them.
            wanted: Hidden blocks. The finest map is decoded in them alone, normalised over them, and the prediction is
                zero elsewhere. None: everywhere.
        """
        return self.at_scales(maps, 1, wanted)[0]

    def at_scales(
        self, maps: Sequence[TokenMap | Tensor], count: int, wanted: MaskGeometry | None = None
    ) -> list[Tensor]:
        """Predict at several scales, for deep supervision; one alone is predicted at the memory of one map a scale.

        Args:
            maps: As for `forward`.
            count: At how many scales, the finest first; at most one less than the maps that are read.
            wanted: As for `forward`.

        Returns:
            (B, C, d, h, w) each.
        """
        token_maps = [TokenMap(PackedBlocks.whole(map_)) if isinstance(map_, Tensor) else map_ for map_ in maps]
        x = token_maps[-1].dense().permute(0, 2, 3, 4, 1)
        last = len(self.stages) - 1
        predicted: list[Tensor] = []
        for step, (upsample, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            layer = cast(nn.Conv3d, self.seg_layers[step])
            head, where = (layer, wanted) if step == last else (None, None)
            x = cast(UNetStage, stage)(x, token_maps[-2 - step], cast(nn.ConvTranspose3d, upsample), head, where)
            if step != last and step > last - count:
                predicted.append(F.linear(x, layer.weight.flatten(1), layer.bias))
        return [one.permute(0, 4, 1, 2, 3) for one in (x, *reversed(predicted))]


class UNetStage(nn.Module):
    """The weights of nnU-Net's StackedConvBlocks with one convolution, run by :mod:`.upsample_concat_conv`."""

    def __init__(self, shape: EncoderConfig, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormAct(shape, in_channels, channels))

    def forward(
        self,
        coarse_BdhwC: Tensor,
        skip: TokenMap,
        upsample: nn.ConvTranspose3d,
        head: nn.Conv3d | None,
        wanted: MaskGeometry | None = None,
    ) -> Tensor:
        """Decode one scale.

        Args:
            coarse_BdhwC: The decoded map of the next coarser scale.
            skip: The encoder's map of this scale.
            upsample: The transposed convolution that leads to this scale.
            head: The convolution that predicts, at the last scale.
            wanted: Hidden blocks that are decoded alone; None: everything.

        Returns:
            The decoded map (B, D, H, W, C) or the prediction.
        """
        block = cast(ConvNormAct, self.convs[0])
        norm, nonlin = cast(nn.InstanceNorm3d, block.norm), cast(nn.LeakyReLU, block.nonlin)
        map_ = skip.map_ if isinstance(skip.map_, PackedBlocks) else PackedBlocks.whole(skip.dense())
        # The weights are joined before they are rounded.
        coarse, _ = cast_for_autocast(coarse_BdhwC, upsample.weight)
        data, _ = cast_for_autocast(map_.data, block.conv.weight)
        x = upsample_concat_conv(
            coarse, data, map_.geometry, skip.token_C,
            upsample.weight, upsample.bias, block.conv.weight, block.conv.bias, wanted,
        )  # fmt: skip
        linear = None
        if head is not None:
            _, head_weight = cast_for_autocast(x, head.weight)
            linear = head_weight.flatten(1), None if head.bias is None else head.bias.to(x.dtype)
        eps, slope = norm.eps, nonlin.negative_slope
        if wanted is None:
            return norm_act(x, norm.weight, norm.bias, linear, eps=eps, slope=slope)
        rows = norm_act_of_blocks(x, wanted, norm.weight, norm.bias, linear, eps=eps, slope=slope)
        return channels_last(PackedBlocks(rows, wanted).dense())
