"""The regions of series in headspark's caches: the arrays that a cache keeps, and the region made of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.series import LAID, Case, Findings, Region
from finetune.views import View
from headspark.data.decoders import Part
from headspark.data.stores import FileStore, Store

FACTS = 10 + 4 + 3
"""Numbers of a region in a cache, before those of its points."""


class RegionDecoder:
    """How series become the arrays that headspark's caches keep, and these a region; methods as of `Decoder`.

    Args:
        view: What is kept of each series.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def parts(self, item: Case) -> list[Part]:
        """Voxels, a list of numbers, and where there are any the mask and the guide."""
        name = hashlib.sha256(f"{FACTS} {self._view.key(item)}".encode()).hexdigest()
        name = f"{name[:2]}/{name}"
        shape = self._view.region_shape(item)
        parts = [
            Part(name=f"{name}.npy", dtype=np.dtype(np.int16), shape=shape),
            Part(name=f"{name}.region.npy", dtype=np.dtype(np.float64), shape=(FACTS + 3 * len(item.spots),)),
        ]
        if item.mask is not None:
            parts.append(Part(name=f"{name}.labels.npy", dtype=np.dtype(np.uint8), shape=shape))
        guide_shape = self._view.guide_shape(item)
        if guide_shape is not None:
            parts.append(Part(name=f"{name}.guide.npy", dtype=np.dtype(np.int16), shape=guide_shape))
        return parts

    def decode(self, item: Case, *, row_major: bool) -> list[NDArray[Any]]:
        """Read a series and cut its region.

        Raises:
            UserError: A file is gone or damaged, or not the one of the manifest; names the series.
        """
        region = self._view.load(item)
        findings = region.findings
        origin_mm = (np.nan,) * 3 if region.origin_mm is None else region.origin_mm
        facts = [region.slope, region.inter, region.fill, *region.spacing, *region.start, findings.points_complete]
        facts += [*((0.0,) * 3 if region.zoom is None else region.zoom), LAID.index(region.laid)]
        facts += origin_mm
        arrays = [region.stored_XYZ.numpy(), np.array([*facts, *findings.points_K3.ravel()], dtype=np.float64)]
        if region.mask_XYZ is not None:
            arrays.append(region.mask_XYZ.numpy())
        if region.guide_XYZ is not None:
            arrays.append(region.guide_XYZ.numpy())
        return [np.ascontiguousarray(array) for array in arrays]  # what is mapped is laid out so

    def assemble(self, item: Case, arrays: Sequence[NDArray[Any]]) -> Region:
        """The region, whose labels and places are the series'."""
        stored_XYZ, facts, *more = arrays
        mask = more.pop(0) if item.mask is not None else None
        guide = more.pop(0) if more else None
        slope, inter, fill, *rest = (float(fact) for fact in facts[:FACTS])
        x_mm, y_mm, z_mm, x, y, z, complete, *zoom_laid, x_first, y_first, z_first = rest
        *zoom, laid = zoom_laid
        origin = x_first, y_first, z_first
        return Region(
            stored_XYZ=_tensor(stored_XYZ),
            mask_XYZ=None if mask is None else _tensor(mask),
            slope=slope,
            inter=inter,
            spacing=(x_mm, y_mm, z_mm),
            fill=fill,
            unit=item.unit,
            start=(int(x), int(y), int(z)),
            findings=Findings(
                points_K3=facts[FACTS:].reshape(-1, 3).copy(),
                places_K=np.array([spot.label for spot in item.spots], dtype=np.int64),
                mask_XYZ=None,
                labels_L=np.array(item.labels, dtype=np.float64),
                points_complete=bool(complete),
            ),
            guide_XYZ=None if guide is None else _tensor(guide),
            zoom=(zoom[0], zoom[1], zoom[2]) if all(zoom) else None,
            laid=LAID[int(laid)],
            origin_mm=None if np.isnan(origin).any() else (origin[0], origin[1], origin[2]),
        )


class RegionStore:
    """The regions of some of the series of a cache.

    Args:
        cases: These series.
        view: What is kept of each.
        regions: The cache; without one, each access reads the corpus's file.
        numbers: Of the series in the cache; without them, in its order.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        view: View,
        regions: Store[Region] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.cases = cases
        self.view = view
        self._regions = FileStore(cases, RegionDecoder(view)) if regions is None else regions
        self._numbers = range(len(cases)) if numbers is None else numbers

    def __getitem__(self, number: int) -> Region:
        """The region of case `number`."""
        region: Region = self._regions[self._numbers[number]]
        return region

    def masked(self) -> Iterator[Region]:
        """The regions of the series that have a mask and points to compare with it."""
        return (self[number] for number, case in enumerate(self.cases) if case.mask is not None and case.spots)


def _tensor(array: NDArray[Any]) -> Tensor:
    """A tensor on the memory of an array; of a memory map too, which nobody here writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
