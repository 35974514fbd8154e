"""The plain data that moves through finetune: a labelled series, the region that is kept of it, and what is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harmonize.scan import HU
from headspark.page_locked import copied

LAID = ("fixed", "found", "unsure", "outside")
"""How a box was laid in a series: by the head's outline as always; where a finder of boxes says; by the outline, since
the finder was unsure, or named a place outside of the scan."""

BY_OUTLINE = {
    "unsure": "the network that finds it is unsure",
    "outside": "the network that finds it names a place outside of the scan",
}
"""Why an outline laid a box that was to be found, for people."""
NO_PLACE = -1
"""The label of a point that none is known of."""

HEADER_GROUPS = ("CT", "MR")
"""What a header says of a modality, which is known at prediction too."""


def groups_of(units: Iterable[str], device: torch.device | None = None) -> Tensor:
    """Index in `HEADER_GROUPS` of each series by the unit of its intensities, (B,) int64.

    Example:
        >>> groups_of(["HU", "zscore"])
        tensor([0, 1])
    """
    groups_B = torch.tensor([0 if unit == HU else 1 for unit in units])
    return groups_B if device is None else copied(groups_B, device)


def told_of(regions: Sequence[Region], device: torch.device | None = None) -> Tensor:
    """What a network may be told of inputs that are cut from regions.

    Returns:
        `groups_of` their units, (B,) int64; of regions that are resized (B, 4) float32: that, and the natural logarithm
        of the size in mm that a voxel of the input has along R, A and S.
    """
    groups_B = groups_of((region.unit for region in regions), device)
    if all(region.zoom is None for region in regions):
        return groups_B
    sizes_B3 = torch.tensor([region.input_spacing for region in regions], dtype=torch.float32).log()
    sizes_B3 = sizes_B3 if device is None else copied(sizes_B3, device)
    return torch.cat([groups_B[:, None].float(), sizes_B3], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A point that somebody marked.

    Attributes:
        label: Index of its label in the task's labels; `NO_PLACE` where nobody says at which place it lies.
        xyz_mm: Where it lies in RAS+ mm.
        diameter_mm: Of what lies there; None where nobody measured it.
        counts: False for what shall neither be found nor missed, such as what was treated.
    """

    label: int
    xyz_mm: tuple[float, float, float]
    diameter_mm: float | None = None
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One series of a corpus with what a task knows about it.

    Attributes:
        scan_id: The series.
        subject: The patient; series of one patient never lie in different folds.
        modality: As in the corpus.
        unit: Of the stored intensities: `harmonize.scan.HU` or another.
        image: The volume's file.
        mask: File of the mask, or None.
        foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.
        labels: 0 or 1 each, columns as the task's labels; in between with pseudo-labels; empty where there are none.
        spots: Marked points, of which a positive series may have none.
        spots_complete: Whether no point of the series was lost on the way.
        decisions: What was found and done when the series was harmonized.
        shape: Voxels along X, Y and Z by the manifest.
        spacing: Their size in mm, likewise.
        sha256: Of the volume's file.
        mask_sha256: Of the mask's file, or None.
        mask_places: Index of the label that a value of its mask stands for, in pairs; empty: as the task has them.
        pseudo: Whether the labels are those of another model.
        source: Of the series in the corpus.
        whole: Whether the whole head is kept of it, to be seen in tiles, instead of the box around the patch.
    """

    scan_id: str
    subject: str
    modality: str
    unit: str
    image: Path
    mask: Path | None
    foreground_box: tuple[int, ...]
    labels: tuple[float, ...]
    spots: tuple[Spot, ...] = ()
    spots_complete: bool = True
    decisions: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    sha256: str = ""
    mask_sha256: str | None = None
    mask_places: tuple[tuple[int, int], ...] = ()
    pseudo: bool = False
    source: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a corpus offers to a fine-tuning run.

    Attributes:
        cases: The series to train on and to judge, in the order of their ids.
        left_out: How many of the source's other series there are, by why they are not used.
        unlabelled: Those of them that lack nothing but labels.
        masked: Series of other sources that only their masks are learned of; they are never held out.
        notes: What a user should know of the labels, a line each.
    """

    cases: list[Case]
    left_out: Counter[str]
    unlabelled: list[Case] = field(default_factory=list)
    masked: list[Case] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for a person.

        Example:
            >>> Selection(cases=[], left_out=Counter({"without labels": 2})).summary()
            '0 of 2 series used; left out: 2 without labels'
        """
        line = f"{len(self.cases)} of {len(self.cases) + self.left_out.total()} series used"
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items()))
        return f"{line}; left out: {reasons}" if reasons else line


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is known about a series, in the voxels of a region or of the network's input.

    Attributes:
        points_K3: Marked points, as indices of voxels.
        places_K: Index of each point's label.
        mask_XYZ: uint8, 0 for none, else one more than the index of the label; None without a mask. It stays on the
            device of the region's voxels.
        labels_L: 0 to 1, columns as the task's labels; empty where nobody labelled the series.
        points_complete: False where a point of the series could not be used, or lies outside of the volume.
        labels_known: Whether the labels are those of the part that a sample shows; None where it shows the series.
    """

    points_K3: NDArray[np.float64]
    places_K: NDArray[np.int64]
    mask_XYZ: Tensor | None
    labels_L: NDArray[np.float64]
    points_complete: bool = True
    labels_known: bool | None = None

    def mirrored(self, mirror: Sequence[int]) -> Findings:
        """The same with left and right swapped in the names of labels, but for where they lie.

        Args:
            mirror: The label that each becomes, a permutation.
        """
        other = np.array(mirror)
        mask_XYZ = self.mask_XYZ
        if mask_XYZ is not None:
            names = copied(torch.tensor([0, *(other + 1)], dtype=torch.uint8), mask_XYZ.device)
            mask_XYZ = names.index_select(0, mask_XYZ.flatten().int()).view(mask_XYZ.shape)
        labels_L = self.labels_L[other] if len(self.labels_L) else self.labels_L
        return replace(self, places_K=other[self.places_K], labels_L=labels_L, mask_XYZ=mask_XYZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What is kept in memory of one series: the network's input in its upright pose, with a margin, or the whole head.

    Attributes:
        stored_XYZ: int16.
        mask_XYZ: uint8, as in `Findings`, or None.
        slope: Real values are ``slope * stored + inter``.
        inter: See `slope`.
        spacing: Voxel size in mm.
        fill: Stored value outside of the field of view.
        unit: Of the real values.
        start: Index of the first voxel of the input, or of the first tile, in the region; negative where it sticks out.
        findings: In the region's voxels, without the mask.
        focus: The voxel that a training sample is told about, by views that tell; None at prediction.
        guide_XYZ: int16, in coarser voxels of the same space, by which a view chooses what it shows; None where it
            needs none.
        zoom: Voxels of the region in one of the input, along each axis, where that is resized; None where it is not.
        laid: How its box was laid, one of `LAID`.
        origin_mm: RAS+ mm of the middle of the first voxel; None where nobody knows.
    """

    stored_XYZ: Tensor
    mask_XYZ: Tensor | None
    slope: float
    inter: float
    spacing: tuple[float, float, float]
    fill: float
    unit: str
    start: tuple[int, int, int]
    findings: Findings
    focus: tuple[float, float, float] | None = None
    guide_XYZ: Tensor | None = None
    zoom: tuple[float, float, float] | None = None
    laid: str = LAID[0]

    @property
    def input_spacing(self) -> tuple[float, float, float]:
        """Size in mm of a voxel of the upright input."""
        if self.zoom is None:
            return self.spacing
        x, y, z = (mm * zoom for mm, zoom in zip(self.spacing, self.zoom, strict=True))
        return x, y, z

    origin_mm: tuple[float, float, float] | None = None

    @property
    def nbytes(self) -> int:
        """Memory that the voxels take."""
        more = (self.mask_XYZ, self.guide_XYZ)
        return self.stored_XYZ.nbytes + sum(0 if voxels is None else voxels.nbytes for voxels in more)

    def to(self, device: torch.device) -> Region:
        """The region with its voxels on a device."""
        return self._each(lambda voxels: voxels.to(device, non_blocking=True))

    def pin_memory(self) -> Region:
        """The region with its voxels in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Region:
        mask_XYZ, guide_XYZ = (None if voxels is None else change(voxels) for voxels in (self.mask_XYZ, self.guide_XYZ))
        return replace(self, stored_XYZ=change(self.stored_XYZ), mask_XYZ=mask_XYZ, guide_XYZ=guide_XYZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How an input lies in its region: voxel p maps to ``linear @ (p - centre) + centre + shift`` in mm.

    Attributes:
        linear: (3, 3); a mirrored pose has a negative determinant.
        shift: mm.
        elastic_mm_3DHW: Displacements in mm that are added to p, at the nodes of a coarse grid that spans the input
            from the centre of its first voxel to that of its last, linear in between; None for none.
    """

    linear: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    elastic_mm_3DHW: NDArray[np.float32] | None = None

    @property
    def mirrored(self) -> bool:
        """Whether left and right are swapped."""
        return bool(np.linalg.det(self.linear) < 0)


UPRIGHT = Pose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a task is asked to make targets of: an input of the network, but for its values.

    Attributes:
        findings: In the input's voxels, sides already swapped if it is mirrored; some points may lie outside.
        shape: Voxels along X, Y and Z.
        spacing: Their size in mm.
        cells: Edge in voxels of the cells of each dense output that wants a target.
        modality: Of the series, as in the corpus.
        source: Likewise.
    """

    findings: Findings
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    cells: Mapping[str, int] = field(default_factory=dict)
    modality: str = ""
    source: str = ""

    def within(self) -> NDArray[np.bool_]:
        """Which points lie in a voxel of the input, (K,)."""
        points_K3 = self.findings.points_K3
        inside_K3: NDArray[np.bool_] = (points_K3 >= -0.5) & (points_K3 < np.array(self.shape) - 0.5)
        return np.all(inside_K3, axis=1)
