"""3D encoders: plain modules that run dense or packed. A new kind is one file here, and one line in `build_encoder`."""

from __future__ import annotations

from headspark.encoder.base import PRESETS, EncoderConfig, MaskableEncoder
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
    if config.kind == "resenc":
        return ResidualEncoder(config)
    from headspark.encoder.monai import build_monai_encoder  # MONAI's import takes seconds that most runs do not need

    return build_monai_encoder(config)
