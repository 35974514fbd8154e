"""Which encoder a run from scratch has: one of volumes, which are headspark's, or one of pictures."""

from __future__ import annotations

from typing import Any

from finetune.models.pictures import PictureEncoder, TimmConfig
from headspark.encoder import EncoderConfig, build_encoder

ENCODERS: dict[str, type] = {
    "resenc": EncoderConfig,
    "segresnet": EncoderConfig,
    "mednext": EncoderConfig,
    "timm": TimmConfig,
}
"""Configuration of each encoder, by its kind."""

DEFAULT = "resenc"

Shape = EncoderConfig | TimmConfig


def make_encoder(config: Shape, *, weights: bool = True) -> Any:
    """The encoder that a part of a recipe describes.

    Args:
        config: That part.
        weights: Whether it shall begin with published weights, if it asks for some; False where others are loaded.
    """
    return PictureEncoder(config, weights=weights) if isinstance(config, TimmConfig) else build_encoder(config)
