"""Segmentations: the class of each voxel of a series, by tiles; what it is worth; and back on the grid of the scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.evaluation.overlap import CERTAINTY, DICE_PREFIX, DISTANCE_PREFIX, MISSED_PREFIX, overlap
from finetune.samples import DataConfig
from finetune.series import Region, groups_of
from finetune.sliding import sliding_maps
from finetune.tasks import MASKS, Task
from finetune.views import View
from finetune.views.box import mirror_image
from finetune.views.posing import pose_findings

MOST_POINTS = 2**22
"""Voxels that are looked up at once: their coordinates are 48 MB."""


@torch.inference_mode()
def segment(
    model: nn.Module, region: Region, config: DataConfig, task: Task, view: View, device: torch.device
) -> Tensor:
    """The probability of each class in each voxel of a series.

    Where tiles overlap, and of mirror images, the mean of the logits counts, as in nnU-Net: a tile that is sure weighs
    more than one that guesses.

    Args:
        model: A `finetune.models.assemble.Network` in eval mode that gives masks.
        region: Of the series, whole.
        config: Patch, overlap of the tiles, and whether each is averaged with its mirror image.
        task: What is asked.
        view: How the region becomes an input.
        device: The model's.

    Returns:
        (L + 1, X, Y, Z) float32 on the device, in the voxels of `View.whole`; the first class is none of the labels.
    """
    x_CDHW = view.whole(region.to(device))
    group_B = groups_of([region.unit], device)
    mirror = None if task.mirror is None or not config.mirror else [0, *(label + 1 for label in task.mirror)]

    def logits(x: Tensor) -> dict[str, Tensor]:
        x = x.to(memory_format=torch.channels_last_3d)
        found = model(x, group_B)[MASKS].float()
        if mirror is not None:
            flipped = model(mirror_image(x), group_B)[MASKS].float()
            found = (found + mirror_image(flipped)[:, mirror]) / 2
        return {MASKS: found}

    cell = int(getattr(model, "cells", {}).get(MASKS, 1))
    maps = sliding_maps(logits, x_CDHW[None], config.patch, config.overlap, stride=cell)[MASKS].softmax(1)
    if cell > 1:
        x, y, z = x_CDHW.shape[1:]
        maps = F.interpolate(maps, scale_factor=cell, mode="trilinear")[..., :x, :y, :z]
    return maps[0]


def segmented(
    model: nn.Module, region: Region, config: DataConfig, task: Task, view: View, device: torch.device
) -> dict[str, object]:
    """How the mask of a series and what is said of it overlap: columns of predictions.parquet.

    Args:
        model: In eval mode.
        region: Of the series, whole and with its mask.
        config: How its patches are cut.
        task: What is asked.
        view: How the region becomes an input.
        device: The model's.

    Returns:
        The mean probability of what was said, and for each label Dice, the average symmetric surface distance in mm,
        and whether it is there and nothing was said to be.
    """
    probability_XYZ, said_XYZ = segment(model, region, config, task, view, device).max(0)
    facts: dict[str, object] = {CERTAINTY: float(probability_XYZ.mean())}
    said, true = said_XYZ.cpu().numpy(), true_classes(region, tuple(said_XYZ.shape))
    for index, label in enumerate(task.labels, start=1):
        dice, distance_mm = overlap(said, true, index, region.spacing)
        facts |= {
            f"{DICE_PREFIX}{label}": dice,
            f"{DISTANCE_PREFIX}{label}": distance_mm,
            f"{MISSED_PREFIX}{label}": bool((true == index).any() and not (said == index).any()),
        }
    return facts


def said_columns(task: Task) -> tuple[str, ...]:
    """The columns of predictions.parquet that must hold numbers: what a network that has diverged cannot say."""
    return (CERTAINTY,) if task.answers == MASKS else task.labels


def true_classes(region: Region, shape: Sequence[int]) -> NDArray[np.uint8]:
    """What the mask says of each voxel of `View.whole`, uint8: 0 for none, else one more than the label's index."""
    found = pose_findings(region, shape).mask_XYZ
    return np.zeros(tuple(shape), np.uint8) if found is None else found.cpu().numpy()


@torch.inference_mode()
def on_raw_grid(
    probabilities_KXYZ: Tensor,
    affine: NDArray[np.float64],
    raw_affine: NDArray[np.float64],
    raw_shape: Sequence[int],
    *,
    slice_offsets: NDArray[np.float64] | None = None,
) -> NDArray[np.uint8]:
    """The likeliest class in each voxel of the grid that a scan was acquired on.

    The probabilities are interpolated, not the classes: borders stay smooth where the scan is finer.

    Args:
        probabilities_KXYZ: As `segment` gives them.
        affine: (4, 4), from their voxels to RAS+ mm.
        raw_affine: (4, 4), the scan's; may be oblique or sheared.
        raw_shape: Voxels of the scan.
        slice_offsets: (Z,) true positions of its slices in units of the third column, or None if even.

    Returns:
        uint8 of the scan's shape; 0 where the network saw nothing.
    """
    device, size = probabilities_KXYZ.device, np.array(probabilities_KXYZ.shape[1:])
    to_network = np.linalg.inv(affine) @ raw_affine
    x, y, z = (int(edge) for edge in raw_shape)
    depths = np.arange(z, dtype=np.float64) if slice_offsets is None else np.asarray(slice_offsets, dtype=np.float64)
    # grid_sample counts from -1 at the first voxel's centre to 1 at the last one's, the last axis first.
    scale = 2 / np.maximum(size - 1, 1)
    linear = (to_network[:3, :3] * scale[:, None])[::-1].copy()
    offset = (to_network[:3, 3] * scale - 1)[::-1].copy()
    in_plane = np.stack(np.meshgrid(np.arange(x), np.arange(y), indexing="ij"), -1) @ linear[:, :2].T + offset
    plane = torch.from_numpy(in_plane).to(device, torch.float32)
    found = np.empty((x, y, z), dtype=np.uint8)
    at_once = max(1, MOST_POINTS // (x * y))
    for first in range(0, z, at_once):
        depth = torch.from_numpy(depths[first : first + at_once, None] * linear[:, 2]).to(device, torch.float32)
        grid = plane[:, :, None] + depth
        sampled = F.grid_sample(
            probabilities_KXYZ[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=True
        )[0]
        found[:, :, first : first + at_once] = sampled.argmax(0).to(torch.uint8).cpu().numpy()
    return found
