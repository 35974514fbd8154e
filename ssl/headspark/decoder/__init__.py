"""Decoders that predict the hidden voxels from the maps of an encoder and their tokens, on whole volumes."""

from __future__ import annotations

from collections.abc import Sequence

from headspark.decoder.config import DecoderConfig
from headspark.decoder.light import LightDecoder
from headspark.decoder.unet import UNetDecoder

__all__ = ["DecoderConfig", "LightDecoder", "UNetDecoder", "build_decoder"]


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
