"""Pretrain 3D head encoders by masked modelling that computes only what is visible."""

from headspark.hub import Encoder, save_encoder

__all__ = ["Encoder", "save_encoder"]
