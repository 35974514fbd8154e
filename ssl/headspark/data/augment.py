"""Random rotation, scaling and intensity changes of a batch, on whichever device it lies (mirroring is in the crop)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harmonize.voxels.affines import turns
from headspark.config.checks import require

TURN_MARGIN = 1.25
"""A patch turned by 15 degrees about one axis fits into one 1.22 times as large."""


Scale = float | tuple[float, float]
"""How much sizes vary: the largest relative change, or the smallest and the largest magnification."""

_RENAMED = {"rotate_degrees": "rotate", "gain": "contrast", "shift": "brightness"}
"""Keys of pretraining in version 0.1.0, and what they are called since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How samples are varied, in pretraining and in fine-tuning; the defaults only mirror.

    Attributes:
        mirror: Chance that an axis is mirrored: each of the three in pretraining, left and right in fine-tuning.
        rotate: Largest rotation about each axis, in degrees.
        scale: Largest relative change of size: with 0.1 a sample spans 0.9 to 1.1 times the patch. Or the smallest and
            the largest magnification, such as [0.8, 1.25], drawn evenly by their logarithm.
        contrast: Largest relative change of contrast: inputs are multiplied by a number in [1 - it, 1 + it].
        brightness: Largest change of brightness, in units of the network's input.
        noise: Largest standard deviation of added white noise, in units of the network's input.
    """

    mirror: float = 0.5
    rotate: float = 0.0
    scale: Scale = (1.0, 1.0)
    contrast: float = 0.0
    brightness: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotate", "contrast", "brightness", "noise"):
            require(getattr(self, name) >= 0, f"augment.{name} {getattr(self, name)}: must be 0 or more")
        require(0 <= self.mirror <= 1, f"augment.mirror {self.mirror}: must lie in [0, 1]")
        require(self.contrast < 1, f"augment.contrast {self.contrast}: must be less than 1")
        if isinstance(self.scale, tuple):
            low, high = self.scale
            require(0 < low <= high, f"augment.scale {self.scale}: give the smallest and the largest, above 0")
        else:
            require(0 <= self.scale < 1, f"augment.scale {self.scale}: must be 0 or more, and less than 1")

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The section of a recipe with today's keys; version 0.1.0's of pretraining are known by those it had alone."""
        upgraded = dict(values)
        if values.keys() & {"rotate_degrees", "gain"}:
            upgraded = {
                _RENAMED.get(name, name) if _RENAMED.get(name) not in values else name: value
                for name, value in values.items()
            }
        if isinstance(values.get("mirror"), bool):
            upgraded["mirror"] = 0.5 if values["mirror"] else 0.0
        return upgraded

    @property
    def turns(self) -> bool:
        """Whether patches are resampled."""
        return self.rotate > 0 or self.scale not in (0, (1.0, 1.0))

    def read_size(self, patch: int) -> int:
        """Edge of the crop that is read for a patch: with turns, a larger one, so that few corners are made up."""
        return round(patch * TURN_MARGIN) if self.turns else patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What was drawn for one sample.

    Attributes:
        matrix: (3, 3) output to input offsets from the patch's centre, in array-index order, or None for no turn.
        contrast: Factor.
        brightness: Summand.
        noise: Standard deviation.
        noise_seed: Seed of the noise.
    """

    matrix: np.ndarray | None
    contrast: float
    brightness: float
    noise: float
    noise_seed: int


def draw_variation(rng: np.random.Generator, config: AugmentConfig) -> Variation:
    """Draw one sample's variation; the count of numbers drawn does not depend on the configuration."""
    about_x, about_y, about_z = turns(np.deg2rad(config.rotate) * rng.uniform(-1, 1, 3))
    magnification = draw_magnification(rng, config.scale)
    contrast, brightness = rng.uniform(-1, 1, 2)
    noise = rng.uniform(0, 1)
    return Variation(
        matrix=about_x @ about_y @ about_z / magnification if config.turns else None,
        contrast=1 + config.contrast * contrast,
        brightness=config.brightness * brightness,
        noise=config.noise * noise,
        noise_seed=int(rng.integers(2**31)),
    )


def draw_magnification(rng: np.random.Generator, scale: Scale) -> float:
    """How many times as large a sample appears: one number is drawn, whatever `scale` is."""
    if isinstance(scale, tuple):
        low, high = (math.log(edge) for edge in scale)
        return math.exp(rng.uniform(low, high))
    return 1 / (1 + scale * rng.uniform(-1, 1))


def turn(x_BCDHW: Tensor, matrix_B33: Tensor, *, size: int, mode: str) -> Tensor:
    """Resample patches about their centres.

    Args:
        x_BCDHW: Patches; beyond them the nearest border value is taken.
        matrix_B33: As in `Variation`.
        size: Edge of the patches that come out, voxels; the voxel size stays, but for the magnification.
        mode: ``bilinear`` (which in three dimensions is trilinear) or ``nearest``.
    """
    grid_BDHW3 = _sampling_grid(matrix_B33.to(x_BCDHW), size=size, source_size=x_BCDHW.shape[-1])
    return F.grid_sample(x_BCDHW, grid_BDHW3, mode=mode, padding_mode="border", align_corners=False)


def within(matrix_B33: Tensor, *, size: int, source_size: int) -> Tensor:
    """Where `turn` reads inside the patches, bool (B, 1, size, size, size): the rest is made up, not to be scored."""
    return (_sampling_grid(matrix_B33.float(), size=size, source_size=source_size).abs() <= 1).all(-1).unsqueeze(1)


def _sampling_grid(matrix_B33: Tensor, *, size: int, source_size: int) -> Tensor:
    # affine_grid wants x (the last axis) first: reverse both sides of the matrix.
    theta_B34 = F.pad(matrix_B33.flip(1, 2) * (size / source_size), (0, 1))
    return F.affine_grid(theta_B34, [len(matrix_B33), 1, size, size, size], align_corners=False)


def numbers_of(variations: Sequence[Variation]) -> Tensor:
    """What is drawn for samples, as one tensor that is copied to the accelerator at once: float32 (B, 11).

    Contrast and brightness, then the rows of the matrix; that of no turn is the identity.
    """
    rows = [
        [one.contrast, one.brightness, *(np.eye(3) if one.matrix is None else one.matrix).ravel()] for one in variations
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


def vary_intensity(x_BCDHW: Tensor, numbers_BN: Tensor, variations: Sequence[Variation]) -> Tensor:
    """Change contrast, brightness and noise of each sample, on its own device, which draws the noise.

    Args:
        x_BCDHW: Network input.
        numbers_BN: `numbers_of` the variations, on the same device.
        variations: As they were drawn.
    """
    contrast, brightness = numbers_BN[:, :2].T.reshape(2, -1, 1, 1, 1, 1).to(x_BCDHW.dtype)
    x_BCDHW = x_BCDHW * contrast + brightness
    for sample, variation in enumerate(variations):
        if variation.noise > 0:
            source = torch.Generator(x_BCDHW.device).manual_seed(variation.noise_seed)
            noise = torch.randn(x_BCDHW.shape[1:], generator=source, device=x_BCDHW.device) * variation.noise
            x_BCDHW[sample] += noise.to(x_BCDHW.dtype)
    return x_BCDHW


def matrices_of(numbers_BN: Tensor) -> Tensor:
    """The matrices in `numbers_of` variations, (B, 3, 3)."""
    return numbers_BN[:, 2:].reshape(-1, 3, 3)
