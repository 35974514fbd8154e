"""Pretrain 3D head encoders by masked modelling that computes only what is visible."""

import harmonize.launcher  # noqa: F401  # first, because what follows loads torch; see there

# isort: split
from headspark.hub import Encoder, load_encoder, save_encoder

__all__ = ["Encoder", "load_encoder", "save_encoder"]
