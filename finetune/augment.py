"""How samples of fine-tuning are varied: a pose for the voxels, and changes of intensity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.series import Pose
from harmonize.voxels.affines import turns
from headspark.config.checks import require
from headspark.data import augment
from headspark.data.augment import Scale

NODES_MM = 32.0
"""The least distance between the nodes of an elastic deformation."""

MOST = {"elastic": 5.0, "gamma": 3.0, "blur": 31.0, "low_resolution": 7.0}
"""Beyond these nothing can be recognised; an elastic deformation would fold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig(augment.AugmentConfig):
    """How training patches are varied: as in pretraining, and shifted. Mirroring swaps sides in labels and vessels too.

    Attributes:
        shift: Largest shift along each axis, in mm.
        elastic: Largest displacement of a smooth deformation along each axis, in mm.
        gamma: Largest relative change of the exponent on the intensities: with 0.3 it lies in [1 / 1.3, 1.3].
        blur: Longest motion during the scan, in voxels along one axis.
        low_resolution: How much larger voxels may become: with 1 they have up to twice the size.
        invert: Share of samples whose contrast is turned round, bright for dark: what is bright in one modality and
            dark in another then teaches both.
    """

    rotate: float = 10.0
    scale: Scale = 0.1
    shift: float = 6.0
    contrast: float = 0.1
    brightness: float = 0.1
    noise: float = 0.05
    elastic: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    low_resolution: float = 0.0
    invert: float = 0.0

    def __post_init__(self) -> None:
        augment.AugmentConfig.__post_init__(self)
        require(self.shift >= 0, f"augment.shift {self.shift}: must be 0 or more")
        for name, most in MOST.items():
            value = getattr(self, name)
            require(0 <= value <= most, f"augment.{name} {value}: must lie between 0 and {most:g}")
        require(0 <= self.invert <= 1, f"augment.invert {self.invert}: must lie between 0 and 1")

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The section of a recipe with today's keys: version 0.1.0 called `mirror` ``flip``."""
        return {
            "mirror" if name == "flip" and "mirror" not in values else name: value for name, value in values.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """How the intensities of one sample are changed; what is 0 or 1 changes nothing.

    Attributes:
        contrast: Factor.
        brightness: Summand.
        noise: Standard deviation of white noise.
        noise_source: Its seed; or, for runs that version 0.1.0 began, NumPy's generator.
        gamma: Exponent on the values between the sample's smallest and largest.
        blur: Length of a motion in voxels.
        blur_axis: Its axis.
        low_resolution: Factor on the voxel size.
        inverted: Whether bright is dark.
    """

    contrast: float
    brightness: float
    noise: float
    noise_source: int | np.random.Generator
    gamma: float = 1.0
    blur: int = 1
    blur_axis: int = 0
    low_resolution: float = 1.0
    inverted: bool = False


def draw_pose(
    config: AugmentConfig,
    generator: np.random.Generator,
    *,
    extent_mm: Sequence[float] | None = None,
    more: np.random.Generator | None = None,
) -> Pose:
    """A random pose.

    Args:
        config: How far it goes.
        generator: Draws what version 0.1.0 drew.
        extent_mm: Of the input along X, Y and Z; needed for elastic deformation.
        more: Draws what came later.
    """
    about_x, about_y, about_z = turns(np.radians(generator.uniform(-1, 1, 3) * config.rotate))
    magnification = augment.draw_magnification(generator, config.scale)
    shift = generator.uniform(-1, 1, 3) * config.shift
    side = -1.0 if generator.random() < config.mirror else 1.0
    linear = about_z @ about_y @ about_x @ np.diag([side, 1.0, 1.0]) / magnification
    elastic_mm_3DHW = None
    if config.elastic > 0 and extent_mm is not None and more is not None:
        nodes = [max(2, int(edge // NODES_MM) + 1) for edge in extent_mm]
        largest = config.elastic * more.random()
        elastic_mm_3DHW = (more.uniform(-1, 1, (3, *nodes)) * largest).astype(np.float32)
    return Pose(
        linear=linear, shift=(float(shift[0]), float(shift[1]), float(shift[2])), elastic_mm_3DHW=elastic_mm_3DHW
    )


def draw_variation(
    config: AugmentConfig, generator: np.random.Generator, more: np.random.Generator, *, legacy_noise: bool = False
) -> Variation:
    """Random changes of intensity.

    Args:
        config: How far they go.
        generator: Draws what version 0.1.0 drew.
        more: Draws what came later.
        legacy_noise: Let NumPy draw the noise too, on the CPU.
    """
    contrast = 1 + generator.uniform(-1, 1) * config.contrast
    brightness = generator.uniform(-1, 1) * config.brightness
    noise = generator.uniform(0, 1) * config.noise
    gamma, blur, low_resolution = more.uniform(-1, 1), more.uniform(0, 1), more.uniform(0, 1)
    seed, axis = int(more.integers(2**62)), int(more.integers(3))
    return Variation(
        contrast=contrast,
        brightness=brightness,
        noise=noise,
        noise_source=generator if legacy_noise else seed,
        gamma=float(np.exp(gamma * np.log1p(config.gamma))),
        blur=1 + round(blur * config.blur),
        blur_axis=axis,
        low_resolution=1 + low_resolution * config.low_resolution,
        inverted=bool(more.random() < config.invert),
    )


def vary_intensity(x_CDHW: Tensor, variation: Variation) -> Tensor:
    """The network's input with changed intensities, on its own device.

    Resolution and motion first, as the scanner would have them; noise last, for it is not blurred.

    Args:
        x_CDHW: Network input.
        variation: As it was drawn.
    """
    if variation.low_resolution > 1:
        x_CDHW = _coarser(x_CDHW, variation.low_resolution)
    if variation.blur > 1:
        x_CDHW = _moved(x_CDHW, variation.blur, variation.blur_axis)
    if variation.gamma != 1:
        low, high = x_CDHW.amin(), x_CDHW.amax()
        span = (high - low).clamp(min=1e-6)
        x_CDHW = ((x_CDHW - low) / span).pow(variation.gamma) * span + low
    contrast = -variation.contrast if variation.inverted else variation.contrast
    x_CDHW = x_CDHW * contrast + variation.brightness
    if variation.noise > 0:
        x_CDHW = x_CDHW + _white_noise(x_CDHW, variation.noise_source) * variation.noise
    return x_CDHW


def vary_pictures(x_NCHW: Tensor, variation: Variation) -> Tensor:
    """The same of a bag of pictures, which has N x H x W voxels; what goes along an axis goes along its lines.

    Args:
        x_NCHW: Network input.
        variation: As it was drawn.
    """
    in_plane = replace(variation, blur_axis=1 + variation.blur_axis % 2)
    shape_CNHW = x_NCHW.transpose(0, 1)
    if variation.low_resolution > 1:  # each picture for itself
        shape_CNHW = torch.stack([_coarser(one[:, None], variation.low_resolution)[:, 0] for one in x_NCHW], 1)
    return vary_intensity(shape_CNHW, replace(in_plane, low_resolution=1.0)).transpose(0, 1)


def _coarser(x_CDHW: Tensor, factor: float) -> Tensor:
    """As if it had been scanned with larger voxels: means over them, and linear in between."""
    shape = x_CDHW.shape[1:]
    small = [max(1, round(edge / factor)) for edge in shape]
    means = F.interpolate(x_CDHW[None], size=small, mode="area")
    return F.interpolate(means, size=tuple(shape), mode="trilinear", align_corners=False)[0]


def _moved(x_CDHW: Tensor, voxels: int, axis: int) -> Tensor:
    """As if the head had moved evenly by so many voxels along an axis: the mean of that many neighbours."""
    kernel = x_CDHW.new_full([1, 1, *(voxels if n == axis else 1 for n in range(3))], 1 / voxels)
    before = (voxels - 1) // 2
    sides = [(before, voxels - 1 - before) if n == axis else (0, 0) for n in range(3)]
    padded = F.pad(x_CDHW[:, None], [side for pair in reversed(sides) for side in pair], mode="replicate")
    return F.conv3d(padded, kernel)[:, 0]


def _white_noise(like_CDHW: Tensor, source: int | np.random.Generator) -> Tensor:
    if isinstance(source, int):
        drawn = torch.Generator(like_CDHW.device).manual_seed(source)
        return torch.randn(like_CDHW.shape, generator=drawn, device=like_CDHW.device)
    return torch.from_numpy(source.standard_normal(like_CDHW.shape, dtype=np.float32)).to(like_CDHW.device)
