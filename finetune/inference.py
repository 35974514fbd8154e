"""Predictions of an input, of a region in tiles, and of a labelled series beside its truth: what, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.candidates import CANDIDATES, Candidate, apart, find_candidates, heat_of, rows_of
from finetune.evaluation.predictions import BOX, TARGET_PREFIX
from finetune.samples import DataConfig
from finetune.series import LAID, Case, Findings, Region, told_of
from finetune.sliding import tiles_of
from finetune.tasks import LABELS, Link, Task
from finetune.views import View
from finetune.views.box import mirror_image


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
    return _ask(model, x, mirror=mirror, group_B=group_B, values=values, mirrored=mirrored).values_BL


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is said of a series.

    Attributes:
        values_L: Probabilities of the labels, or numbers; float32 on the CPU.
        candidates: Where something is, the surest first; None where the network does not say.
    """

    values_L: Tensor
    candidates: list[Candidate] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What is said of inputs: of their labels; and of each cell how likely something is there, and of which place."""

    values_BL: Tensor
    heat_Bdhw: Tensor | None = None
    places_BPdhw: Tensor | None = None


@torch.inference_mode()
def _ask(
    model: nn.Module,
    x: Tensor,
    *,
    mirror: Sequence[int] | None,
    group_B: Tensor | None,
    values: Callable[[Tensor], Tensor],
    mirrored: Callable[[Tensor], Tensor],
    where: bool = False,
) -> _Seen:
    """As `classify`; `where` asks for the cells too, which the same passes give."""
    if x.ndim == 5:
        x = x.to(memory_format=torch.channels_last_3d)
    outputs = model(x, group_B)
    values_BL, dense = values(outputs[LABELS].float()), _cells(outputs) if where else []
    if mirror is not None:
        outputs = model(mirrored(x), group_B)
        values_BL = (values_BL + values(outputs[LABELS].float())[:, list(mirror)]) / 2
        if dense:
            heat, *places = map(mirror_image, _cells(outputs))
            dense = [(dense[0] + heat) / 2, *((dense[1] + one[:, list(mirror[: one.shape[1]])]) / 2 for one in places)]
    heat_Bdhw = dense[0][:, 0] if dense else None
    return _Seen(values_BL=values_BL, heat_Bdhw=heat_Bdhw, places_BPdhw=dense[1] if len(dense) > 1 else None)


def _cells(outputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The heat (B, 1, d, h, w) of a network that gives one, and the places (B, P, d, h, w) on the same grid if any."""
    name = heat_of(outputs)
    if name is None:
        return []
    heat_B1dhw = outputs[name][:, None].float().sigmoid()
    places = outputs.get("territory")
    if places is None or places.shape[2:] != heat_B1dhw.shape[2:]:
        return [heat_B1dhw]
    return [heat_B1dhw, places.float().softmax(1)]


def look_at(
    model: nn.Module,
    regions: Sequence[Region],
    config: DataConfig,
    task: Task,
    view: View,
    device: torch.device,
    *,
    where: bool = True,
) -> list[Sight]:
    """What a network says of some series, and where it sees something.

    A bag of tiles says of each label what the surest tile says: one finding anywhere makes a series positive, and tiles
    without one are no evidence against it. Of one class of several, and of numbers, it says the mean. Each tile is
    averaged with its own mirror image. Candidates are those of all tiles.

    Args:
        model: As for `classify`.
        regions: Of the series, cut whole where `config.inference` is ``bag``; as many tiles are looked at at once.
        config: Which part of a series is looked at.
        task: What is asked; columns are its labels.
        view: How a region becomes an input.
        device: The model's.
        where: Look for candidates.
    """
    bags = [_tiles(region.to(device), config, view) for region in regions]
    tiles = [tile for bag in bags for tile in bag]
    mirror, at_once = task.mirror if config.mirror else None, max(len(regions), view.at_once)
    values: list[Tensor] = []
    seen: list[list[Candidate] | None] = []
    for first in range(0, len(tiles), at_once):
        some = tiles[first : first + at_once]
        x = torch.stack([view.sample(tile) for tile in some])
        group_B = told_of(some, device)
        said = _ask(model, x, mirror=mirror, group_B=group_B, values=task.values, mirrored=view.mirrored, where=where)
        values.append(said.values_BL.cpu())
        seen += _candidates(said, some, view, x.shape[2:])
    surest, ends = task.link is Link.SIGMOID, np.cumsum(list(map(len, bags))).tolist()
    found = []
    for bag_TL, bag, end in zip(torch.cat(values).split(list(map(len, bags))), bags, ends, strict=True):
        parts = [one for one in seen[end - len(bag) : end] if one is not None]
        candidates = parts[0] if len(parts) == 1 else apart([one for part in parts for one in part])
        values_L = bag_TL.amax(0) if surest else bag_TL.mean(0)
        found.append(Sight(values_L=values_L, candidates=candidates if parts else None))
    return found


def _candidates(said: _Seen, tiles: Sequence[Region], view: View, shape: Sequence[int]) -> list[list[Candidate] | None]:
    """Those of each tile; None where nothing is said of cells, or nobody knows where a region lies."""
    if said.heat_Bdhw is None:
        return [None] * len(tiles)
    heat_Bdhw = said.heat_Bdhw.cpu().numpy()
    places_BPdhw = None if said.places_BPdhw is None else said.places_BPdhw.cpu().numpy()
    cell_3 = np.array(shape) / np.array(heat_Bdhw.shape[1:])
    found: list[list[Candidate] | None] = []
    for number, tile in enumerate(tiles):
        affine = voxels_to_mm(view, tile)
        if affine is None:
            found.append(None)
            continue
        to_mm = affine.copy()
        to_mm[:3, 3] += affine[:3, :3] @ (cell_3 - 1) / 2  # the middle of the first cell
        to_mm[:3, :3] *= cell_3
        places = None if places_BPdhw is None else places_BPdhw[number]
        found.append(find_candidates(heat_Bdhw[number], to_mm, places))
    return found


def voxels_to_mm(view: View, region: Region) -> NDArray[np.float64] | None:
    """(4, 4) from voxels of a view's upright sample to RAS+ mm; None where nobody knows where the region lies."""
    if region.origin_mm is None:
        return None
    corners_43 = np.vstack([np.zeros(3), np.eye(3)])  # the view itself says where voxels of the region come to lie
    known = Findings(points_K3=corners_43, places_K=np.zeros(4, dtype=np.int64), mask_XYZ=None, labels_L=np.zeros(0))
    placed_43 = view.findings(replace(region, mask_XYZ=None, findings=known)).points_K3
    to_sample = np.eye(4)
    to_sample[:3, :3], to_sample[:3, 3] = (placed_43[1:] - placed_43[0]).T, placed_43[0]
    to_mm = np.diag([*region.spacing, 1.0])
    to_mm[:3, 3] = region.origin_mm
    affine: NDArray[np.float64] = to_mm @ np.linalg.inv(to_sample)
    return affine


def _tiles(region: Region, config: DataConfig, view: View) -> list[Region]:
    boxes = tiles_of(region, config.patch, config.overlap) if config.inference == "bag" else [region]
    return [part for box in boxes for part in view.parts(box)]


def predicted(
    model: nn.Module, case: Case, region: Region, config: DataConfig, task: Task, view: View, device: torch.device
) -> dict[str, object]:
    """What is said of a labelled series, and its truth: columns of predictions.parquet, and `CANDIDATES` if it can be.

    Args:
        model: In eval mode.
        case: The series.
        region: Of it.
        config: How its patch is cut.
        task: What is asked.
        view: How the region becomes an input.
        device: The model's.
    """
    (said,) = look_at(model, [region], config, task, view, device)
    targets = {f"{TARGET_PREFIX}{label}": value for label, value in zip(task.labels, case.labels, strict=True)}
    found: dict[str, object] = dict(zip(task.labels, said.values_L.tolist(), strict=True)) | targets
    if region.laid != LAID[0]:
        found[BOX] = region.laid
    if said.candidates is not None:
        found[CANDIDATES] = rows_of(said.candidates, task.labels)
    return found
