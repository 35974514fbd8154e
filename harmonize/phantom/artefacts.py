"""What a scanner adds to a head or loses of it: fading flow, ghosts of pulses and motion, metal, blooming calcium.

Everything is drawn once a series and then applied slice by slice, so that a scan may be made in any pieces.
docs/phantom-sources.md has what was published of each number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harmonize.phantom.acquisition import Grid
from harmonize.phantom.fading_flow import FadingFlow
from harmonize.phantom.vessels import Difficulty, Flow, Vessel

_ONE_METAL_MM = 12.0
"""Pieces of metal that lie within this distance of each other throw one star of streaks."""
_FAR_IN_RADII = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactRates:
    """How often artefacts are seen, and how strong they are at most.

    Attributes:
        motion: Share of the series in which the head moved, by modality: of MR 7.5 % of outpatients' and 29.4 % of
            inpatients' and emergencies' (Andre et al., J Am Coll Radiol 2015; 12: 689).
        jump_mm: How far it moves within a slice at most.
        ghost: Signal that motion sends elsewhere at most, as a share.
        pulsation: Share of the series in which pulsing arteries throw ghosts, by modality.
        pulse: Signal of such a ghost at most, as a share of the artery's contrast.
        slow: Signal that a time-of-flight MRA loses in the middle of a large sac, or of a wide artery, at most.
        in_plane: Likewise in arteries that run within a slice.
        in_sacs: Whether sacs and bulbs lose as much as the artery that they are on for lying within the slice.
        saturation: Likewise at the upper end of a slab.
        slab_mm: Thickness of its slabs.
        streak_hu: Amplitude of streaks at the edge of metal in CT.
        bloom_mm: How far calcium in CT seems to reach beyond itself.
    """

    motion: Mapping[str, float]
    jump_mm: float = 1.5
    ghost: float = 0.08
    pulsation: Mapping[str, float]
    pulse: float = 0.25
    slow: float = 0.8
    in_plane: float = 0.35
    in_sacs: bool
    saturation: float = 0.3
    slab_mm: tuple[float, float] = (28.0, 45.0)
    streak_hu: tuple[float, float]
    bloom_mm: tuple[float, float] = (0.2, 0.5)


RATES: Mapping[Difficulty, ArtefactRates] = {
    "medium": ArtefactRates(
        motion={"CTA": 0.15, "MRA": 0.15, "MRI T2": 0.15, "MRI T1post": 0.15},
        pulsation={"MRI T2": 0.5, "MRI T1post": 0.5},
        in_sacs=False,
        streak_hu=(150.0, 400.0),
    ),
    "hard": ArtefactRates(
        # CTA: 2 of 42 were left out for it (Diagn Interv Radiol 2007; 13: 105).
        motion={"CTA": 0.05, "MRA": 0.15, "MRI T2": 0.15, "MRI T1post": 0.15},
        # Of giant aneurysms (Teng, J Clin Neurosci 2003; 10: 460).
        pulsation={"MRI T2": 0.29, "MRI T1post": 0.56},
        in_sacs=True,
        # Standard deviations of 52 to 83 HU (Schmitt, Eur Radiol 2023; 33: 803; Brook, Abdom Radiol 2017; 42: 742).
        streak_hu=(70.0, 200.0),
    ),
}
"""By the difficulty that a user asks for; easy series have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghosts:
    """Copies that lie beside what moves, along one axis of a slice.

    Attributes:
        axis: 0 or 1, along which a slice is encoded by phase.
        step: From one copy to the next, in pixels.
        share: Signal of the first copy; the n-th has the n-th part of it.
        copies: On either side.
    """

    axis: int
    step: int
    share: float
    copies: int

    def of(self, plane_XY: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the ghosts of a plane add up to."""
        found = np.zeros_like(plane_XY)
        for number in range(1, self.copies + 1):
            for way in (-1, 1):
                found += np.float32(self.share / number) * np.roll(plane_XY, way * number * self.step, self.axis)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaks:
    """The star that a piece of metal throws in CT.

    Attributes:
        centre: Voxel index of its middle.
        radius_mm: Of the metal.
        amplitude_hu: At its edge.
        rays: How many rays are bright.
        phase: Angle of the first of them.
    """

    centre: tuple[float, float, float]
    radius_mm: float
    amplitude_hu: float
    rays: int
    phase: float

    def of(self, k: int, grid: Grid) -> NDArray[np.float32] | None:
        """What is added to slice `k`, (X, Y) in HU; None where the metal is far away."""
        away = abs(k - self.centre[2]) * grid.spacing[2]
        if away > _FAR_IN_RADII * self.radius_mm:
            return None
        x, y = (
            (np.arange(count, dtype=np.float32) + np.float32(start - middle)) * np.float32(step)
            for count, start, middle, step in zip(grid.shape[:2], grid.first, self.centre, grid.spacing, strict=False)
        )
        x, y = x[:, None], y[None, :]
        reach, angle = np.hypot(x, y), np.arctan2(y, x)
        height = self.amplitude_hu * np.exp(-((away / self.radius_mm) ** 2))
        fall = self.radius_mm / (self.radius_mm + reach) * (reach > self.radius_mm)
        return np.asarray(height * fall * np.cos(self.rays * angle + self.phase), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefacts:
    """Those of one series.

    Attributes:
        flow: What flow loses, or None.
        bloom_mm: How far calcium reaches beyond itself.
        pulse: Ghosts of pulsing arteries, or None.
        motion: Ghosts of the whole head, or None.
        jumps: Slice from which on the head lies elsewhere within the slice, and where, in pixels.
        streaks: Of metal.
    """

    flow: FadingFlow | None = None
    bloom_mm: float = 0.0
    pulse: Ghosts | None = None
    motion: Ghosts | None = None
    jumps: tuple[tuple[int, tuple[float, float]], ...] = ()
    streaks: tuple[Streaks, ...] = ()

    def bloomed(self, vessels: Sequence[Vessel]) -> list[Vessel]:
        """The vessels with calcium as large as it seems."""
        if not self.bloom_mm:
            return list(vessels)
        return [
            replace(v, tube=replace(v.tube, radii_N=v.tube.radii_N + self.bloom_mm)) if v.flow is Flow.CALCIUM else v
            for v in vessels
        ]

    def moved(self, plane_XY: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Slice `k` as it is where the head moved."""
        places = [place for first, place in self.jumps if first <= k]
        if places:
            plane_XY = ndimage.shift(plane_XY, places[-1], order=1, mode="nearest")
        if self.motion is not None:
            stays = 1 - 2 * sum(self.motion.share / number for number in range(1, self.motion.copies + 1))
            plane_XY = np.float32(stays) * plane_XY + self.motion.of(plane_XY)
        return plane_XY

    def streaked(self, plane_XY: NDArray[np.float32], k: int, grid: Grid) -> NDArray[np.float32]:
        """Slice `k` with the streaks of metal."""
        for star in self.streaks:
            added = star.of(k, grid)
            if added is not None:
                plane_XY = plane_XY + added
        return plane_XY


def draw_artefacts(
    modality: str,
    grid: Grid,
    vessels: Sequence[Vessel],
    rng: np.random.Generator,
    rates: ArtefactRates,
) -> Artefacts:
    """Draw the artefacts of one series; the same ones whether the head has a sac or not.

    Args:
        modality: As ``train.csv`` says it.
        grid: Where the slices lie.
        vessels: Those of the head, metal among them, in scanner mm.
        rng: Where the chance comes from.
        rates: How often and how strong.
    """
    is_ct = modality == "CTA"
    moves, pulses = (rng.random() < shares.get(modality, 0.0) for shares in (rates.motion, rates.pulsation))
    axis = int(rng.integers(2))
    strengths = rng.random(6)
    steps = rng.uniform(0.05, 0.25, size=2)
    jump_at = np.sort(rng.integers(1, grid.shape[2], size=2))
    jump_mm = rng.uniform(-rates.jump_mm, rates.jump_mm, size=(2, 2))
    flow = pulse = motion = None
    jumps: list[tuple[int, tuple[float, float]]] = []
    if modality == "MRA":
        normal = grid.affine[:3, 2] / grid.spacing[2]
        flow = FadingFlow(
            slow=rates.slow * strengths[0],
            in_plane=rates.in_plane * strengths[1],
            in_sacs=rates.in_sacs,
            saturation=rates.saturation * strengths[2],
            slab_mm=float(rates.slab_mm[0] + (rates.slab_mm[1] - rates.slab_mm[0]) * strengths[3]),
            low_mm=float(grid.world(np.zeros(3))[2]),
            normal=(float(normal[0]), float(normal[1]), float(normal[2])),
        )
    elif pulses:
        step = max(2, round(steps[0] * grid.shape[axis]))
        pulse = Ghosts(axis=axis, step=step, share=rates.pulse * float(strengths[4]), copies=3)
    if moves and modality in ("MRA", "MRI T1post"):
        # All slices are encoded together: the motion is everywhere.
        step = max(2, round(steps[1] * grid.shape[axis]))
        motion = Ghosts(axis=axis, step=step, share=rates.ghost * float(strengths[5]), copies=2)
    elif moves:
        jumps = [
            (int(first), (float(x / grid.spacing[0]), float(y / grid.spacing[1])))
            for first, (x, y) in zip(jump_at, jump_mm, strict=True)
        ]
    return Artefacts(
        flow=flow,
        bloom_mm=float(rng.uniform(*rates.bloom_mm)) if is_ct else 0.0,
        pulse=pulse,
        motion=motion,
        jumps=tuple(jumps),
        streaks=tuple(_stars(vessels, grid, rng, rates)) if is_ct else (),
    )


def _stars(vessels: Sequence[Vessel], grid: Grid, rng: np.random.Generator, rates: ArtefactRates) -> list[Streaks]:
    groups: list[list[Vessel]] = []
    for vessel in vessels:
        if vessel.flow is Flow.METAL:
            middle = vessel.tube.points_N3.mean(axis=0)
            near = (g for g in groups if np.linalg.norm(g[0].tube.points_N3.mean(axis=0) - middle) < _ONE_METAL_MM)
            group = next(near, None)
            if group is None:
                groups.append([vessel])
            else:
                group.append(vessel)
    stars = []
    for group in groups:
        points_N3 = np.concatenate([vessel.tube.points_N3 for vessel in group])
        middle = points_N3.mean(axis=0)
        wall = max(float(vessel.tube.radii_N.max()) for vessel in group)
        x, y, z = (float(value) for value in grid.index(middle))
        stars.append(
            Streaks(
                centre=(x, y, z),
                radius_mm=float(np.linalg.norm(points_N3 - middle, axis=1).max()) + wall,
                amplitude_hu=float(rng.uniform(*rates.streak_hu)),
                rays=int(rng.integers(4, 9)),
                phase=float(rng.uniform(0, 2 * np.pi)),
            )
        )
    return stars
