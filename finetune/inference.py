"""Predictions: the probabilities of an input, of a region in tiles, and of a labelled series beside its truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from finetune.evaluation.predictions import BOX, TARGET_PREFIX
from finetune.samples import DataConfig
from finetune.series import LAID, Case, Region, told_of
from finetune.sliding import tiles_of
from finetune.tasks import LABELS, Link, Task
from finetune.views import View
from finetune.views.box import mirror_image


@torch.inference_mode()
def classify(
    model: nn.Module,
    x: Tensor,
    *,
    mirror: Sequence[int] | None,
    group_B: Tensor | None = None,
    values: Callable[[Tensor], Tensor] = torch.sigmoid,
    mirrored: Callable[[Tensor], Tensor] = mirror_image,
) -> Tensor:
    """The probabilities of the labels of each input, or what else they stand for.

    Args:
        model: A `finetune.models.assemble.Network` in eval mode.
        x: Network input x_BCDHW on the model's device, or x_BNCHW of pictures.
        mirror: Average with the mirror image, in which each label becomes this one; None: do not look at it.
        group_B: What models are told, as `finetune.series.told_of` says it.
        values: What outputs say of the labels, as `Task.values`.
        mirrored: The input of the mirror image, as `View.mirrored`.

    Returns:
        (B, L) float32, columns as the task's labels.
    """
    if x.ndim == 5:
        x = x.to(memory_format=torch.channels_last_3d)
    probabilities_BL = values(model(x, group_B)[LABELS].float())
    if mirror is not None:
        flipped_BL = values(model(mirrored(x), group_B)[LABELS].float())
        probabilities_BL = (probabilities_BL + flipped_BL[:, list(mirror)]) / 2
    return probabilities_BL


def classify_regions(
    model: nn.Module, regions: Sequence[Region], config: DataConfig, task: Task, view: View, device: torch.device
) -> Tensor:
    """The probabilities of the labels of some series.

    A bag of tiles says of each label what the surest tile says: one finding anywhere makes a series positive, and tiles
    without one are no evidence against it. Of one class of several, and of numbers, it says the mean. Each tile is
    averaged with its own mirror image.

    Args:
        model: As for `classify`.
        regions: Of the series, cut whole where `config.inference` is ``bag``; as many tiles are looked at at once.
        config: Which part of a series is looked at.
        task: What is asked.
        view: How a region becomes an input.
        device: The model's.

    Returns:
        (B, L) float32 on the CPU, columns as the task's labels.
    """
    bags = [_tiles(region.to(device), config, view) for region in regions]
    tiles = [tile for bag in bags for tile in bag]
    mirror, at_once = task.mirror if config.mirror else None, max(len(regions), view.at_once)
    found = []
    for first in range(0, len(tiles), at_once):
        some = tiles[first : first + at_once]
        x = torch.stack([view.sample(tile) for tile in some])
        group_B = told_of(some, device)
        said_BL = classify(model, x, mirror=mirror, group_B=group_B, values=task.values, mirrored=view.mirrored)
        found.append(said_BL.cpu())
    surest = task.link is Link.SIGMOID
    return torch.stack(
        [bag_TL.amax(0) if surest else bag_TL.mean(0) for bag_TL in torch.cat(found).split(list(map(len, bags)))]
    )


def _tiles(region: Region, config: DataConfig, view: View) -> list[Region]:
    boxes = tiles_of(region, config.patch, config.overlap) if config.inference == "bag" else [region]
    return [part for box in boxes for part in view.parts(box)]


def predicted(
    model: nn.Module, case: Case, region: Region, config: DataConfig, task: Task, view: View, device: torch.device
) -> dict[str, object]:
    """What is said of a labelled series, and its truth: columns of predictions.parquet.

    Args:
        model: In eval mode.
        case: The series.
        region: Of it.
        config: How its patch is cut.
        task: What is asked.
        view: How the region becomes an input.
        device: The model's.
    """
    (said_L,) = classify_regions(model, [region], config, task, view, device).tolist()
    targets = {f"{TARGET_PREFIX}{label}": value for label, value in zip(task.labels, case.labels, strict=True)}
    box = {BOX: region.laid} if region.laid != LAID[0] else {}
    return dict(zip(task.labels, said_L, strict=True)) | targets | box
