"""Batches for training: cubes cut from cached scans, each with its mask, in an order that is a function of the seed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from harmonize.pipeline import WINDOWED
from headspark.augment import AugmentConfig, Variation, draw_variation, turn, vary_intensity, within
from headspark.cache import Store
from headspark.channels import to_network_input
from headspark.cohort import Cohort
from headspark.crops import (
    CENTRAL,
    CROP,
    RATIO,
    VALIDATION,
    Crop,
    ScanOrder,
    box_mask,
    central_crop,
    cut,
    draw_crop,
    generator,
)  # fmt: skip
from headspark.masking import draw_visible, mask_grid
from headspark.recipe import Recipe

PREFETCH = 4
"""Batches that each worker makes ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One cube, before it becomes network input.

    Attributes:
        stored_XYZ: int16 as in the corpus.
        slope: Real value is ``stored * slope + inter``.
        inter: See above.
        unit: Of the real values.
        scored_XYZ: bool, where the loss may look.
        visible_dhw: bool, the blocks that the encoder sees.
        variation: What else was drawn for it.
        scan_id: Where it comes from.
    """

    stored_XYZ: np.ndarray
    slope: float
    inter: float
    unit: str
    scored_XYZ: np.ndarray
    visible_dhw: Tensor
    variation: Variation | None
    scan_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples stacked: int16 and bool only, so that little travels to the accelerator."""

    stored_BXYZ: Tensor
    slope_B: Tensor
    inter_B: Tensor
    scored_B1XYZ: Tensor
    visible_Bdhw: Tensor
    units: tuple[str, ...]
    variations: tuple[Variation | None, ...]
    scan_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scan_ids)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the mask over blocks stays on the CPU, where its geometry is worked out."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory: the DataLoader calls this."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})


_TENSORS = ("stored_BXYZ", "slope_B", "inter_B", "scored_B1XYZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which samples each step uses, on each rank.

    A step always uses the samples ``step * effective ... (step + 1) * effective - 1``, however they are dealt out to
    ranks and forward passes.

    Attributes:
        steps: Of the run.
        batch: Samples in a forward pass of a rank.
        accumulate: Forward passes in a step.
        rank: This process.
        ranks: All of them.
    """

    steps: int
    batch: int
    accumulate: int
    rank: int
    ranks: int

    @property
    def effective(self) -> int:
        """Samples in a step."""
        return self.batch * self.accumulate * self.ranks

    def batches(self, first_step: int) -> Iterator[list[int]]:
        """Sample numbers of this rank's batches, from `first_step` to the end.

        Example:
            >>> list(Plan(steps=3, batch=1, accumulate=2, rank=1, ranks=2).batches(2))
            [[9], [11]]
        """
        for step in range(first_step, self.steps):
            for part in range(self.accumulate):
                start = step * self.effective + (part * self.ranks + self.rank) * self.batch
                yield list(range(start, start + self.batch))


class TrainSamples(Dataset[Sample]):
    """The sample of any number: random scan, cube, flips, mask; nothing about it depends on what was asked before.

    Args:
        cohort: Scans.
        store: Their voxels.
        recipe: Sizes, shares, seed.
        effective: Samples in a step: those of one step share their mask ratio.
    """

    def __init__(self, cohort: Cohort, store: Store, recipe: Recipe, *, effective: int) -> None:
        self._cohort, self._store, self._recipe, self._effective = cohort, store, recipe, effective
        self._order = ScanOrder(cohort.weights, seed=recipe.train.seed)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, from 0 on without end."""
        recipe, seed = self._recipe, self._recipe.train.seed
        scan = self._cohort.train[self._order(index)]
        item = self._cohort.scans[scan]
        rng = generator(seed, CROP, index)
        crop = draw_crop(
            rng,
            shape=item.shape,
            box=item.box,
            size=recipe.augment.read_size(recipe.data.patch),
            foreground_share=recipe.data.foreground_share,
            mirror=recipe.augment.mirror,
        )
        variation = draw_variation(rng, recipe.augment)
        ratio = float(generator(seed, RATIO, index // self._effective).uniform(*recipe.ratio))
        visible_dhw = _mask(rng, recipe, ratio)
        return cut_sample(self._cohort, self._store, scan, crop, visible_dhw=visible_dhw, variation=variation)


class ValidationSamples(Dataset[Sample]):
    """The same cubes of held-out scans, with the same masks, every time: unvaried, in the foreground.

    Args:
        cohort: Scans; without held-out ones this is empty.
        store: Their voxels.
        recipe: Sizes.
    """

    def __init__(self, cohort: Cohort, store: Store, recipe: Recipe) -> None:
        self._cohort, self._store, self._recipe = cohort, store, recipe

    def __len__(self) -> int:
        return self._recipe.train.val_samples if self._cohort.val else 0

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`: the held-out scans in turn."""
        recipe = self._recipe
        scan = self._cohort.val[index % len(self._cohort.val)]
        item = self._cohort.scans[scan]
        rng = generator(recipe.data.val_seed, VALIDATION, index)
        crop = draw_crop(
            rng, shape=item.shape, box=item.box, size=recipe.data.patch, foreground_share=1.0, mirror=False
        )
        visible_dhw = _mask(rng, recipe, sum(recipe.ratio) / 2)
        return cut_sample(self._cohort, self._store, scan, crop, visible_dhw=visible_dhw, variation=None)


class CentralSamples(Dataset[Sample]):
    """The cube in the middle of each of a few scans, unvaried, with a mask: for pictures and probes.

    Args:
        cohort: Scans.
        store: Their voxels.
        recipe: Sizes.
        limit: At most so many scans that are trained on, and so many held-out ones.
    """

    def __init__(self, cohort: Cohort, store: Store, recipe: Recipe, *, limit: int) -> None:
        self._cohort, self._store, self._recipe = cohort, store, recipe
        self._scans = [*_spread(cohort.val, limit), *_spread(cohort.train, limit)]
        self.held_out = [scan in set(cohort.val) for scan in self._scans]

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`; held-out scans come first."""
        recipe, item = self._recipe, self._cohort.scans[self._scans[index]]
        crop = central_crop(shape=item.shape, box=item.box, size=recipe.data.patch)
        rng = generator(recipe.data.val_seed, CENTRAL, index)
        visible_dhw = _mask(rng, recipe, sum(recipe.ratio) / 2)
        return cut_sample(self._cohort, self._store, self._scans[index], crop, visible_dhw=visible_dhw, variation=None)

    def label(self, index: int, name: str) -> str | None:
        """A column of the manifest for sample number `index`."""
        return self._cohort.scans[self._scans[index]].labels[name]


def cut_sample(
    cohort: Cohort, store: Store, scan: int, crop: Crop, *, visible_dhw: Tensor, variation: Variation | None
) -> Sample:
    """Cut one cube of a scan, and the part of it where the loss may look."""
    item, decoded = cohort.scans[scan], store[scan]
    fill = round((item.fill - decoded.inter) / decoded.slope)
    limits = np.iinfo(np.int16)
    if decoded.scored_XYZ is None:
        scored_XYZ = box_mask(crop, item.box)
    else:
        scored_XYZ = cut(decoded.scored_XYZ, crop, fill=False)
    return Sample(
        stored_XYZ=cut(decoded.stored_XYZ, crop, fill=min(max(fill, limits.min), limits.max)),
        slope=decoded.slope,
        inter=decoded.inter,
        unit=item.unit,
        scored_XYZ=scored_XYZ,
        visible_dhw=visible_dhw,
        variation=variation,
        scan_id=item.scan_id,
    )


def stack(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples of one size."""
    stored = [sample.stored_XYZ for sample in samples]
    if any(array.ndim == 4 for array in stored):  # windows that were baked in, perhaps beside MRI
        stored = [
            np.broadcast_to(array if array.ndim == 4 else array[..., None], (*array.shape[:3], 3)) for array in stored
        ]
    return Batch(
        stored_BXYZ=torch.from_numpy(np.stack(stored)),
        slope_B=torch.tensor([sample.slope for sample in samples], dtype=torch.float32),
        inter_B=torch.tensor([sample.inter for sample in samples], dtype=torch.float32),
        scored_B1XYZ=torch.from_numpy(np.stack([sample.scored_XYZ for sample in samples])).unsqueeze(1),
        visible_Bdhw=torch.stack([sample.visible_dhw for sample in samples]),
        units=tuple(sample.unit for sample in samples),
        variations=tuple(sample.variation for sample in samples),
        scan_ids=tuple(sample.scan_id for sample in samples),
    )


def network_input(batch: Batch, windows: Sequence[str], augment: AugmentConfig, *, patch: int) -> tuple[Tensor, Tensor]:
    """What the network sees, made on the batch's own device: windows first, then the variations.

    Returns:
        x_BCDHW: float32, array axes X, Y, Z of the corpus.
        scored_B1DHW: bool.
    """
    x_BCDHW = torch.stack([_sample_input(batch, sample, windows) for sample in range(len(batch))])
    scored_B1DHW = batch.scored_B1XYZ
    variations = [variation for variation in batch.variations if variation is not None]
    if not variations:
        return x_BCDHW, scored_B1DHW
    if augment.turns:
        source_size = x_BCDHW.shape[-1]
        matrix_B33 = torch.tensor(np.array([v.matrix for v in variations])).to(x_BCDHW)
        x_BCDHW = turn(x_BCDHW, matrix_B33, size=patch, mode="bilinear")
        scored_B1DHW = turn(scored_B1DHW.float(), matrix_B33, size=patch, mode="nearest") > 0.5
        scored_B1DHW &= within(matrix_B33, size=patch, source_size=source_size)
    return vary_intensity(x_BCDHW, variations), scored_B1DHW


def train_loader(samples: TrainSamples, plan: Plan, recipe: Recipe, *, first_step: int, pin: bool) -> DataLoader[Any]:
    """All batches of this rank from `first_step` to the end of the run, in order."""
    return DataLoader(
        samples,
        batch_sampler=_Batches(plan, first_step),
        collate_fn=stack,
        num_workers=recipe.data.workers,
        pin_memory=pin,
        **_worker_options(recipe.data.workers),
    )


def _sample_input(batch: Batch, sample: int, windows: Sequence[str]) -> Tensor:
    values = batch.stored_BXYZ[sample] * batch.slope_B[sample] + batch.inter_B[sample]
    if values.ndim == 4 and batch.units[sample] != WINDOWED:
        values = values[..., 0]
    return to_network_input(values, batch.units[sample], windows)


class _Batches(Sampler[list[int]]):
    def __init__(self, plan: Plan, first_step: int) -> None:
        self._plan, self._first_step = plan, first_step

    def __iter__(self) -> Iterator[list[int]]:
        return self._plan.batches(self._first_step)

    def __len__(self) -> int:
        return (self._plan.steps - self._first_step) * self._plan.accumulate


def _worker_options(workers: int) -> dict[str, Any]:
    if workers == 0:
        return {}
    # Forked workers read the cache's pages; spawned ones would each be sent a copy of it.
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    return {"prefetch_factor": PREFETCH, "multiprocessing_context": context}


def _spread(scans: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of them, evenly spread: the manifest is ordered by source."""
    return [scans[place * len(scans) // limit] for place in range(limit)] if len(scans) > limit else list(scans)


def _mask(rng: np.random.Generator, recipe: Recipe, ratio: float) -> Tensor:
    grid = mask_grid((recipe.data.patch,) * 3, recipe.mask.block)
    return draw_visible(1, grid, ratio, torch.Generator().manual_seed(int(rng.integers(2**63))))[0]
