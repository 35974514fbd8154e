"""The sample of any number: which patch, from where, with which mask; and the fixed ones that a model is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from harmonize.voxels.stored import INT16, StoredVoxels, stored_value
from headspark.data.augment import AugmentConfig, Variation, draw_variation
from headspark.data.blocks import marked_in_blocks, thinned
from headspark.data.cache import Store
from headspark.data.cohort import Cohort
from headspark.data.config import DataConfig
from headspark.data.crops import (
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
from headspark.hybrid import HybridConfig
from headspark.masking import (
    MaskConfig,
    draw_mask,
    draw_second_mask,
    draw_uneven_mask,
    mask_grid,
    ratio_bounds,
)  # fmt: skip
from headspark.vessels import NEAR_SHARE, UNKNOWN, VesselConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One patch, before it becomes network input.

    Attributes:
        voxels: int16 as in the corpus.
        unit: Of the real values.
        scored_XYZ: bool, where the loss may look.
        mask_dhw: bool, the blocks that the encoder sees.
        variation: What else was drawn for it.
        scan_id: Where it comes from.
        steps_XYZ: uint8, distances to vessels as of `headspark.vessels.distance_map`; None: nobody asks for them.
        second_dhw: bool, the blocks that the encoder sees the second time; None: it does not.
    """

    voxels: StoredVoxels
    unit: str
    scored_XYZ: np.ndarray
    mask_dhw: Tensor
    variation: Variation | None
    scan_id: str
    steps_XYZ: np.ndarray | None = None
    second_dhw: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        data: Patch size, channels, held-out subjects.
        augment: How training samples are varied.
        mask: What the encoder does not see.
        seed: Of scans, crops, masks and variations.
        val_samples: Samples of a validation.
        vessels: What is hidden more often, and whether distances are asked for.
        hybrid: Whether training samples are seen twice.
    """

    data: DataConfig
    augment: AugmentConfig
    mask: MaskConfig
    seed: int
    val_samples: int
    vessels: VesselConfig
    hybrid: HybridConfig


class TrainSamples(Dataset[Sample]):
    """The sample of any number: random scan, patch, flips, mask; nothing about it depends on what was asked before.

    Args:
        cohort: Scans.
        store: Their voxels.
        sampling: Sizes, shares, seed.
        samples_per_step: Those of one step share their mask ratio.
    """

    def __init__(self, cohort: Cohort, store: Store, sampling: Sampling, *, samples_per_step: int) -> None:
        self._cohort, self._store, self._sampling, self._samples_per_step = cohort, store, sampling, samples_per_step
        self._order = ScanOrder(cohort.weights, seed=sampling.seed)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, from 0 on without end."""
        how = self._sampling
        scan = self._cohort.train[self._order(index)]
        item = self._cohort.scans[scan]
        rng = generator(how.seed, CROP, index)
        crop = draw_crop(
            rng,
            shape=item.shape,
            box=item.box,
            size=how.augment.read_size(how.data.patch),
            foreground_share=how.data.foreground_share,
            mirror=how.augment.mirror,
        )
        variation = draw_variation(rng, how.augment)
        ratio = float(
            generator(how.seed, RATIO, index // self._samples_per_step).uniform(*ratio_bounds(how.mask.ratio))
        )
        twice = how.hybrid.weight > 0
        return cut_sample(
            self._cohort, self._store, scan, crop, how=how, rng=rng, ratio=ratio, variation=variation, twice=twice
        )


class ValidationSamples(Dataset[Sample]):
    """The same patches of held-out scans, with the same masks, every time: unvaried, in the foreground.

    Where there are more scans than samples, these are spread over them: those of a source lie together.

    Args:
        cohort: Scans; without held-out ones this is empty.
        store: Their voxels.
        sampling: Sizes.
    """

    def __init__(self, cohort: Cohort, store: Store, sampling: Sampling) -> None:
        self._cohort, self._store, self._sampling = cohort, store, sampling
        self._scans = _spread(cohort.val, sampling.val_samples)

    def __len__(self) -> int:
        return self._sampling.val_samples if self._scans else 0

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`: the held-out scans in turn."""
        how = self._sampling
        scan = self._scans[index % len(self._scans)]
        item = self._cohort.scans[scan]
        rng = generator(how.data.val_seed, VALIDATION, index)
        crop = draw_crop(rng, shape=item.shape, box=item.box, size=how.data.patch, foreground_share=1.0, mirror=0.0)
        return cut_sample(self._cohort, self._store, scan, crop, how=how, rng=rng, ratio=_mean_ratio(how))


class CentralSamples(Dataset[Sample]):
    """The patch in the middle of each of a few scans, unvaried, with a mask: for pictures and probes.

    Args:
        cohort: Scans.
        store: Their voxels.
        sampling: Sizes.
        limit: At most so many scans that are trained on, and so many held-out ones.
    """

    def __init__(self, cohort: Cohort, store: Store, sampling: Sampling, *, limit: int) -> None:
        self._cohort, self._store, self._sampling = cohort, store, sampling
        self._scans = [*_spread(cohort.val, limit), *_spread(cohort.train, limit)]
        self.held_out = [scan in set(cohort.val) for scan in self._scans]

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`; held-out scans come first."""
        how, item = self._sampling, self._cohort.scans[self._scans[index]]
        crop = central_crop(shape=item.shape, box=item.box, size=how.data.patch)
        rng = generator(how.data.val_seed, CENTRAL, index)
        return cut_sample(self._cohort, self._store, self._scans[index], crop, how=how, rng=rng, ratio=_mean_ratio(how))

    def label(self, index: int, name: str) -> str | None:
        """A column of the manifest for sample number `index`."""
        return self._cohort.scans[self._scans[index]].labels[name]


def cut_sample(
    cohort: Cohort,
    store: Store,
    scan: int,
    crop: Crop,
    *,
    how: Sampling,
    rng: np.random.Generator,
    ratio: float,
    variation: Variation | None = None,
    twice: bool = False,
) -> Sample:
    """Cut one patch of a scan, and the part of it where the loss may look; and draw what is hidden of it.

    Args:
        cohort: The scans.
        store: Their voxels.
        scan: Number of the scan in both.
        crop: The patch; outside of the scan lies its `fill`, which is not scored.
        how: Patch, blocks, and which of them are hidden more often.
        rng: Of the sample; the masks are drawn from it.
        ratio: Share of blocks that is hidden.
        variation: How the patch is varied later, on the accelerator; None: not at all.
        twice: Whether there is a second mask.
    """
    item, decoded = cohort.scans[scan], store[scan]
    voxels = decoded.voxels
    fill = round(stored_value(item.fill, voxels.slope, voxels.inter))
    if decoded.scored_XYZ is None:
        scored_XYZ = box_mask(crop, item.box)
    else:
        scored_XYZ = cut(decoded.scored_XYZ, crop, fill=False)
    steps_XYZ = None if decoded.steps_XYZ is None else cut(decoded.steps_XYZ, crop, fill=UNKNOWN)
    near_dhw = None if steps_XYZ is None else _blocks(how, variation, steps_XYZ == 0, NEAR_SHARE * how.mask.block**3)
    draws = torch.Generator().manual_seed(int(rng.integers(2**63)))
    mask_dhw, second_dhw = _mask(how, ratio, near_dhw, draws), None
    if twice:
        second_dhw = draw_second_mask(
            mask_dhw, _blocks(how, variation, thinned(scored_XYZ), 0), how.hybrid.share, draws
        )
    if how.vessels.distance_weight == 0:
        steps_XYZ = None
    elif steps_XYZ is None:
        steps_XYZ = np.full(scored_XYZ.shape, UNKNOWN, dtype=np.uint8)
    return Sample(
        voxels=StoredVoxels(
            stored_XYZ=cut(voxels.stored_XYZ, crop, fill=min(max(fill, INT16.min), INT16.max)),
            slope=voxels.slope,
            inter=voxels.inter,
        ),
        unit=item.unit,
        scored_XYZ=scored_XYZ,
        mask_dhw=mask_dhw,
        variation=variation,
        scan_id=item.scan_id,
        steps_XYZ=steps_XYZ,
        second_dhw=second_dhw,
    )


def _spread(scans: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of them, evenly spread: the manifest is ordered by source."""
    return [scans[place * len(scans) // limit] for place in range(limit)] if len(scans) > limit else list(scans)


def _mean_ratio(how: Sampling) -> float:
    return sum(ratio_bounds(how.mask.ratio)) / 2


def _mask(how: Sampling, ratio: float, near_dhw: Tensor | None, draws: torch.Generator) -> Tensor:
    """The blocks that are seen: those near vessels less often, where the recipe says so and vessels are known."""
    if near_dhw is None or how.vessels.mask_odds == 1:
        return draw_mask(1, mask_grid((how.data.patch,) * 3, how.mask.block), ratio, draws)[0]
    return draw_uneven_mask(near_dhw, ratio, how.vessels.mask_odds, draws)


def _blocks(how: Sampling, variation: Variation | None, marked_XYZ: NDArray[np.bool_], more_than: float) -> Tensor:
    """The blocks of a patch that hold more marked voxels than so many, bool (d, h, w)."""
    matrix = None if variation is None else variation.matrix
    counts = marked_in_blocks(marked_XYZ, patch=how.data.patch, block=how.mask.block, matrix=matrix)
    return torch.from_numpy(counts > more_than)
