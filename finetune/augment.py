"""How samples of fine-tuning are varied: a pose for the voxels, and changes of intensity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.series import Pose
from harmonize.voxels.affines import turns
from headspark.config.checks import require
from headspark.data import augment
from headspark.data.augment import Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig(augment.AugmentConfig):
    """How training patches are varied: as in pretraining, and shifted. Mirroring swaps sides in labels and vessels too.

    Attributes:
        shift: Largest shift along each axis, in mm.
    """

    rotate: float = 10.0
    scale: Scale = 0.1
    shift: float = 6.0
    contrast: float = 0.1
    brightness: float = 0.1
    noise: float = 0.05

    def __post_init__(self) -> None:
        augment.AugmentConfig.__post_init__(self)
        require(self.shift >= 0, f"augment.shift {self.shift}: must be 0 or more")

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The section of a recipe with today's keys: version 0.1.0 called `mirror` ``flip``."""
        return {
            "mirror" if name == "flip" and "mirror" not in values else name: value for name, value in values.items()
        }


def draw_pose(config: AugmentConfig, generator: np.random.Generator) -> Pose:
    """A random pose."""
    about_x, about_y, about_z = turns(np.radians(generator.uniform(-1, 1, 3) * config.rotate))
    magnification = augment.draw_magnification(generator, config.scale)
    shift = generator.uniform(-1, 1, 3) * config.shift
    side = -1.0 if generator.random() < config.mirror else 1.0
    linear = about_z @ about_y @ about_x @ np.diag([side, 1.0, 1.0]) / magnification
    return Pose(linear=linear, shift=(float(shift[0]), float(shift[1]), float(shift[2])))


def vary_intensity(x_CDHW: Tensor, config: AugmentConfig, generator: np.random.Generator) -> Tensor:
    """Random contrast, brightness and noise on the network's input."""
    contrast = 1 + generator.uniform(-1, 1) * config.contrast
    brightness = generator.uniform(-1, 1) * config.brightness
    deviation = generator.uniform(0, 1) * config.noise
    varied = x_CDHW * contrast + brightness
    if deviation > 0:
        varied = varied + torch.from_numpy(generator.standard_normal(x_CDHW.shape, dtype=np.float32)) * deviation
    return varied
