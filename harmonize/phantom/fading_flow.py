"""What a time-of-flight MRA loses of flowing blood: deep in what is wide, in arteries along a slice, far up a slab.

docs/phantom-sources.md has what was published of how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.vessels import Flow, Vessel
from harmonize.phantom.vessels.courses import nearest

_FLOWING_MM = 1.5
"""Blood flows so far from the wall of a sac as it does in arteries; what lies deeper turns slowly."""
_FLOWING_IN_ARTERIES_MM = 2.5
"""Likewise in an artery, which is that wide only where it is stretched."""
_SLOW_MM = 3.0
"""From there on it takes so many mm more until all that can fade has faded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FadingFlow:
    """The losses of one series.

    Attributes:
        slow: Share lost in the middle of a large sac, or of an artery that is stretched as wide.
        in_plane: Share lost where an artery runs within the slice.
        in_sacs: Whether sacs and bulbs lose as much of it as the artery that they are on, or nothing.
        saturation: Share lost at the upper end of a slab.
        slab_mm: Thickness of a slab.
        low_mm: Height in the scanner at which one begins.
        normal: Direction across the slices, of unit length.
    """

    slow: float
    in_plane: float
    in_sacs: bool
    saturation: float
    slab_mm: float
    low_mm: float
    normal: tuple[float, float, float]

    def __call__(
        self,
        vessels: Sequence[Vessel],
        number_P: NDArray[np.int64],
        depth_P: NDArray[np.float32],
        height_P: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Share of the signal that is left in each piece; see `harmonize.phantom.acquisition.FlowLoss`."""
        along = np.array([0.0 if vessel.flow is Flow.SAC else 1 - self._across(vessel) for vessel in vessels])
        if self.in_sacs:
            for parts, artery in on_arteries(vessels):
                along[parts] = along[artery]
        is_sac = np.array([vessel.flow is Flow.SAC for vessel in vessels])[number_P]
        flowing_mm = np.where(is_sac, _FLOWING_MM, _FLOWING_IN_ARTERIES_MM)
        slow = self.slow * np.clip((depth_P - flowing_mm) / _SLOW_MM, 0, 1)
        way_up = (height_P - self.low_mm) / self.slab_mm % 1
        left = (1 - slow) * (1 - self.in_plane * along[number_P]) * (1 - self.saturation * way_up)
        return np.asarray(left, dtype=np.float64)

    def _across(self, vessel: Vessel) -> float:
        """1 for a vessel that runs across the slices, 0 for one within them."""
        course = np.diff(vessel.tube.points_N3, axis=0)
        length = float(np.linalg.norm(course, axis=1).sum())
        return float(np.abs(course @ np.asarray(self.normal)).sum()) / length if length else 1.0


def on_arteries(vessels: Sequence[Vessel]) -> list[tuple[list[int], int]]:
    """The parts of each sac, and each bulb, by their numbers, with that of the artery that they are on."""
    groups: dict[object, list[int]] = {}
    for number, vessel in enumerate(vessels):
        if vessel.flow is Flow.SAC:
            groups.setdefault(vessel.location, []).append(number)
        elif vessel.flow is Flow.ARTERY and len(vessel.tube.points_N3) == 1:
            groups[number] = [number]
    running = [n for n, v in enumerate(vessels) if v.flow is Flow.ARTERY and len(v.tube.points_N3) > 1]
    if not running:
        return []
    found = []
    for parts in groups.values():
        gaps = [_gap(vessels, parts, artery) for artery in running]
        found.append((parts, running[int(np.argmin(gaps))]))
    return found


def _gap(vessels: Sequence[Vessel], parts: Sequence[int], artery: int) -> float:
    """How near the axis of an artery passes to a point of what is on it: the neck of a sac begins there."""
    tube = vessels[artery].tube
    return min(nearest(tube, point_3)[0] for part in parts for point_3 in vessels[part].tube.points_N3)
