"""Random rotation, scaling and intensity changes of a batch, on whichever device it lies (mirroring is in the crop)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harmonize.errors import UserError
from harmonize.voxels.affines import turns
from headspark.config import WRONG_USE

TURN_MARGIN = 1.25
"""A cube turned by 15 degrees about one axis fits into one 1.22 times as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How samples are varied; the defaults only mirror.

    Attributes:
        mirror: Flip each axis with chance 1/2.
        rotate_degrees: Largest rotation about each axis.
        scale: Smallest and largest magnification.
        gain: Largest relative change of contrast: inputs are multiplied by a number in [1 - gain, 1 + gain].
        shift: Largest change of brightness, in units of the network's input.
        noise: Largest standard deviation of added white noise, in units of the network's input.
    """

    mirror: bool = True
    rotate_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    gain: float = 0.0
    shift: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotate_degrees", "gain", "shift", "noise"):
            if not getattr(self, name) >= 0:
                raise UserError(f"augment.{name} {getattr(self, name)}: must be 0 or more", exit_code=WRONG_USE)
        if self.gain >= 1:
            raise UserError(f"augment.gain {self.gain}: must be less than 1", exit_code=WRONG_USE)
        low, high = self.scale
        if not 0 < low <= high:
            raise UserError(
                f"augment.scale {self.scale}: give the smallest and the largest, above 0", exit_code=WRONG_USE
            )

    @property
    def turns(self) -> bool:
        """Whether cubes are resampled."""
        return self.rotate_degrees > 0 or self.scale != (1.0, 1.0)

    def read_size(self, patch: int) -> int:
        """Edge of the cube that is read for a patch: with turns, a larger one, so that few corners are made up."""
        return round(patch * TURN_MARGIN) if self.turns else patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What was drawn for one sample.

    Attributes:
        matrix: (3, 3) output to input offsets from the cube's centre, in array-index order, or None for no turn.
        gain: Factor.
        shift: Summand.
        noise: Standard deviation.
        noise_seed: Seed of the noise.
    """

    matrix: np.ndarray | None
    gain: float
    shift: float
    noise: float
    noise_seed: int


def draw_variation(rng: np.random.Generator, config: AugmentConfig) -> Variation:
    """Draw one sample's variation; the count of numbers drawn does not depend on the configuration."""
    about_x, about_y, about_z = turns(np.deg2rad(config.rotate_degrees) * rng.uniform(-1, 1, 3))
    low, high = (math.log(edge) for edge in config.scale)
    scale = math.exp(rng.uniform(low, high))
    gain, shift = rng.uniform(-1, 1, 2)
    noise = rng.uniform(0, 1)
    return Variation(
        matrix=about_x @ about_y @ about_z / scale if config.turns else None,
        gain=1 + config.gain * gain,
        shift=config.shift * shift,
        noise=config.noise * noise,
        noise_seed=int(rng.integers(2**31)),
    )


def turn(x_BCDHW: Tensor, matrix_B33: Tensor, *, size: int, mode: str) -> Tensor:
    """Resample cubes about their centres.

    Args:
        x_BCDHW: Cubes; beyond them the nearest border value is taken.
        matrix_B33: As in `Variation`.
        size: Edge of the cubes that come out, voxels; the voxel size stays, but for the magnification.
        mode: ``bilinear`` (which in three dimensions is trilinear) or ``nearest``.
    """
    grid_BDHW3 = _sampling_grid(matrix_B33.to(x_BCDHW), size=size, source_size=x_BCDHW.shape[-1])
    return F.grid_sample(x_BCDHW, grid_BDHW3, mode=mode, padding_mode="border", align_corners=False)


def within(matrix_B33: Tensor, *, size: int, source_size: int) -> Tensor:
    """Where `turn` reads inside the cubes, bool (B, 1, size, size, size): the rest is made up, not to be scored."""
    return (_sampling_grid(matrix_B33.float(), size=size, source_size=source_size).abs() <= 1).all(-1).unsqueeze(1)


def _sampling_grid(matrix_B33: Tensor, *, size: int, source_size: int) -> Tensor:
    # affine_grid wants x (the last axis) first: reverse both sides of the matrix.
    theta_B34 = F.pad(matrix_B33.flip(1, 2) * (size / source_size), (0, 1))
    return F.affine_grid(theta_B34, [len(matrix_B33), 1, size, size, size], align_corners=False)


def vary_intensity(x_BCDHW: Tensor, variations: list[Variation]) -> Tensor:
    """Change contrast, brightness and noise of each sample.

    The noise is drawn on the CPU, so that it is the same whatever the device.
    """
    shape = (-1, 1, 1, 1, 1)
    gain = torch.tensor([v.gain for v in variations], dtype=x_BCDHW.dtype, device=x_BCDHW.device).view(shape)
    shift = torch.tensor([v.shift for v in variations], dtype=x_BCDHW.dtype, device=x_BCDHW.device).view(shape)
    x_BCDHW = x_BCDHW * gain + shift
    for sample, variation in enumerate(variations):
        if variation.noise > 0:
            source = torch.Generator().manual_seed(variation.noise_seed)
            noise = torch.randn(x_BCDHW.shape[1:], generator=source) * variation.noise
            x_BCDHW[sample] += noise.to(x_BCDHW)
    return x_BCDHW
