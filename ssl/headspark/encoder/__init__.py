"""3D encoders: plain modules that run dense or packed. A new kind is one file here, and its name in `base`."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from headspark.encoder.base import KINDS, PRESETS, EncoderConfig, MaskableEncoder
from headspark.encoder.residual import ResidualEncoder

__all__ = ["PRESETS", "EncoderConfig", "MaskableEncoder", "ResidualEncoder", "build_encoder"]


def build_encoder(config: EncoderConfig) -> MaskableEncoder:
    """Build the encoder that a config describes.

    Args:
        config: The shape.

    Returns:
        The encoder.

    Raises:
        UserError: The kind cannot be built in that shape.
    """
    module, _, builder = KINDS[config.kind].partition(":")
    return cast(MaskableEncoder, getattr(import_module(module), builder)(config))
