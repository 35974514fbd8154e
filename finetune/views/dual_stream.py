"""Windows of a few slices, as full pictures and as what lies around a point that training knows.

Where a finding lies is known in training alone. So that no network learns that a known point means a finding, series
without one are told about points too, and a share of all samples about none, as all are at prediction: then both
streams show the full picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.series import UPRIGHT, Findings, Pose, Region
from finetune.views.pictures import PicturesView, check_pictures, on_screen
from finetune.views.posing import pose_points
from headspark.config.checks import require

STREAMS = 2
MOST_SLICES = 63

ANYWHERE = 1 / 3
"""Share of the training windows that lie anywhere, since all of a box is looked at in the end."""

POINTS_SPREAD = 0.15
"""Standard deviation of where findings lie about the middle of a box, in its edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DualStreamConfig:
    """Windows of neighbouring slices of a box of `data.patch` voxels, each in two streams.

    A series is positive where any of its windows is. In training a window lies around a point.

    Attributes:
        kind: ``dual_stream``.
        slices: Of a window, an odd number; at prediction windows follow one another.
        size: Edge of a picture in pixels.
        share: Edge of what the second stream shows around a point, of that of the full picture.
        hidden: Share of the training samples that are told about no point.
        percentiles: Of an MRI, which become the darkest and the brightest value.
    """

    kind: Literal["dual_stream"] = "dual_stream"
    slices: int = 5
    size: int = 224
    share: float = 0.15
    hidden: float = 0.5
    percentiles: tuple[float, float] = (1.0, 99.0)

    pictures: ClassVar[bool] = True
    streams: ClassVar[int] = STREAMS

    def __post_init__(self) -> None:
        check_pictures(self.size, self.percentiles)
        fits = 1 <= self.slices <= MOST_SLICES and self.slices % 2 == 1
        require(fits, f"view.slices {self.slices}: must be an odd number up to {MOST_SLICES}")
        require(0 < self.share <= 1, f"view.share {self.share}: must be more than 0, and 1 at most")
        require(0 <= self.hidden <= 1, f"view.hidden {self.hidden}: must lie in [0, 1]")

    def channels(self, windows: int) -> int:
        """Of a picture: the slices, in each CT window."""
        return self.slices * windows


class DualStreamView(PicturesView):
    """What the network sees: a bag of a window's two pictures.

    Args:
        patch: Size of the box in voxels.
        slices: Of a window.
        share: Of `DualStreamConfig`.
        hidden: Likewise.
        any_label: The label that is positive where any other is.
        of_pictures: The other arguments of `PicturesView`.
    """

    at_once = 16

    def __init__(
        self,
        patch: tuple[int, int, int],
        *,
        slices: int,
        share: float,
        hidden: float,
        any_label: int | None,
        **of_pictures: Any,
    ) -> None:
        super().__init__(patch, **of_pictures)
        self.count, self.share, self.hidden, self.any_label = slices, share, hidden, any_label

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, H, W) of a bag."""
        return (STREAMS, self.count * len(self.windows), self.size, self.size)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Voxels of a window."""
        return (self.patch[0], self.patch[1], self.count)

    def parts(self, region: Region) -> list[Region]:
        """The windows of the box, from below to above; the last ends with the box."""
        last = max(0, self.patch[2] - self.count)
        return [self._window(region, min(first, last)) for first in range(0, last + self.count, self.count)]

    def draw(self, region: Region, generator: np.random.Generator, number: int) -> Region:
        """A window with the labels that it shows: around a point, or where one may lie, or anywhere."""
        findings, start = region.findings, np.array(region.start)
        inside_K = ((findings.points_K3 >= start) & (findings.points_K3 < start + self.patch)).all(1)
        last = max(0, self.patch[2] - self.count)
        if generator.random() < ANYWHERE:
            point_3 = start + generator.uniform(0, 1, 3) * np.array(self.patch)
            first = int(generator.integers(0, last, endpoint=True))
        elif inside_K.any():
            point_3 = findings.points_K3[generator.choice(np.flatnonzero(inside_K))]
            offset = generator.integers(-(self.count // 2), self.count // 2, endpoint=True)
            first = int(np.clip(round(point_3[2]) - start[2] + offset - self.count // 2, 0, last))
        else:
            # Where findings lie as a rule, so that the height of a window does not tell one without any.
            point_3 = start + np.clip(generator.normal(0.5, POINTS_SPREAD, 3), 0, 1) * np.array(self.patch)
            first = int(np.clip(round(point_3[2]) - start[2] - self.count // 2, 0, last))
        told = generator.random() >= self.hidden
        window = self._window(region, first)
        x, y, _ = (float(value) for value in point_3)
        focus = (x, y, window.start[2] + self.count // 2) if told else None
        return replace(window, focus=focus, findings=self._shown(findings, window.start[2]))

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """x_NCHW: the full picture, and what lies around the point; without one the full picture again."""
        (values_XYz,) = self.slabs(region, [(0, self.count)], in_plane(pose))
        full = self._picture(values_XYz, region)
        box = self._around(region, pose)
        return torch.stack([full, full if box is None else self._picture(values_XYz[box], region)])

    def where(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """The point in the full picture, (1, 2) in [0, 1]: to the right, and down; zeros where none is told."""
        if region.focus is None:
            return torch.zeros(1, 2)
        x, y = self._focus(region, pose) / (np.array(self.patch[:2]) - 1)
        return torch.tensor([[x, 1 - y]], dtype=torch.float32).clamp(0, 1)

    def findings(self, region: Region, pose: Pose = UPRIGHT) -> Findings:
        """What is known, in the voxels of the window."""
        return super().findings(region, in_plane(pose))

    def _window(self, region: Region, first: int) -> Region:
        x, y, z = region.start
        return replace(region, start=(x, y, z + first))

    def _shown(self, findings: Findings, first: int) -> Findings:
        """The labels of the points in a window; not known where a finding may be that no point in it tells of.

        That is where a positive series does not say where, and next to a point, for a finding has an extent.
        """
        points_K3, labels_L = findings.points_K3, findings.labels_L
        if not len(labels_L):
            return findings
        within_K = (points_K3[:, 2] >= first - 0.5) & (points_K3[:, 2] < first + self.count - 0.5)
        there = findings.places_K[within_K]
        shown_L = np.zeros_like(labels_L)
        shown_L[there] = labels_L[there]
        if self.any_label is not None and len(there):
            shown_L[self.any_label] = labels_L[self.any_label]
        off_K = np.abs(points_K3[:, 2] - first - (self.count - 1) / 2)
        told = set(findings.places_K.tolist()) | {self.any_label}
        elsewhere = findings.points_complete and set(np.flatnonzero(labels_L).tolist()) <= told
        known = len(there) > 0 or (elsewhere and not (off_K < 1.5 * self.count).any())
        return replace(findings, labels_L=shown_L, labels_known=known)

    def _picture(self, values_XYz: Tensor, region: Region) -> Tensor:
        slices_zHW = self.resized(on_screen(values_XYz.movedim(-1, 0)))
        return self.channels(slices_zHW, region).flatten(0, 1)

    def _focus(self, region: Region, pose: Pose) -> NDArray[np.float64]:
        """The point's voxel in the window, along X and Y."""
        points_13 = np.array([region.focus], dtype=np.float64)
        return pose_points(region, self.sample_shape, in_plane(pose), points_13)[0, :2]

    def _around(self, region: Region, pose: Pose) -> tuple[slice, slice] | None:
        if region.focus is None:
            return None
        return _box(self._focus(region, pose), self.patch[:2], self.share)


def in_plane(pose: Pose) -> Pose:
    """What a pose does to slices: they turn and shift in their planes, and stay neighbours."""
    linear = np.eye(3)
    linear[:2, :2] = pose.linear[:2, :2]
    elastic = pose.elastic_mm_3DHW
    if elastic is not None:
        middle = elastic.shape[3] // 2
        elastic = elastic[..., middle : middle + 1] * np.array([1, 1, 0], dtype=np.float32)[:, None, None, None]
    return Pose(linear=linear, shift=(*pose.shift[:2], 0.0), elastic_mm_3DHW=elastic)


def _box(centre: NDArray[np.float64], edges: Sequence[int], share: float) -> tuple[slice, slice]:
    """Around a voxel, as much of each edge; it stays inside."""
    sizes = [max(2, round(edge * share)) for edge in edges]
    firsts = [
        int(np.clip(round(at - size / 2 + 0.5), 0, edge - size))
        for at, size, edge in zip(centre, sizes, edges, strict=True)
    ]
    x, y = (slice(first, first + size) for first, size in zip(firsts, sizes, strict=True))
    return x, y
