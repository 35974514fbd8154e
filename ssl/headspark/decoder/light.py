"""A decoder that works at coarse scales and predicts whole patches.

It runs on the kernels of packed blocks: PyTorch's own instance norm copies channels-last maps.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from headspark.decoder.config import DecoderConfig
from headspark.encoder import EncoderConfig
from headspark.encoder.residual import ConvNormAct, initialise
from headspark.packed import PackedBlocks, TokenMap


class LightDecoder(nn.Module):
    """From the coarsest map up to ``stop_stride``: upsample, add the map of that scale, convolve; then predict patches.

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

    def forward(self, maps: Sequence[TokenMap]) -> Tensor:
        """Predict the volume.

        Args:
            maps: The maps of ``scales`` and their tokens, finest first, with ``widths`` channels.

        Returns:
            The prediction (B, C, D, H, W).
        """
        skips = [PackedBlocks.whole(skip.dense()) for skip in maps]
        x = self.mixes[-1](skips[-1])
        for scale in reversed(range(len(self.ups))):
            x = self.mixes[scale](self.ups[scale](x) + skips[scale])
        return unpatchify(self.predict(x).dense(), self.patch)


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
