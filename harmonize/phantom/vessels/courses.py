"""Places along a tube, and how its course and its calibre are changed there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.vessels.parts import Vessel
from harmonize.phantom.vessels.tubes import Tube

_STEP_MM = 1.0
"""Length of a capsule where a course is changed."""
_LOOP_POINTS = 12
_NEAR_MM = 1.0
"""How far outside an artery's wall a node may lie that is still one of its own."""


class Place(NamedTuple):
    """A place on the axis of a tube: where it is in mm, the unit vector along the tube, and the radius there in mm."""

    point_3: NDArray[np.float64]
    along_3: NDArray[np.float64]
    radius_mm: float


def length(tube: Tube) -> float:
    """Length of the axis in mm."""
    return float(_arcs(tube)[-1])


def place_at(tube: Tube, fraction: float) -> Place:
    """The place at `fraction` (0 to 1) of a tube's length."""
    arcs = _arcs(tube)
    at = fraction * arcs[-1]
    index = int(np.clip(np.searchsorted(arcs, at, side="right") - 1, 0, len(arcs) - 2))
    return _within(tube, index, float((at - arcs[index]) / (arcs[index + 1] - arcs[index])))


def nearest(tube: Tube, point_3: NDArray[np.float64]) -> tuple[float, Place]:
    """How far the axis of a tube passes from a point in mm, and the place where it comes closest."""
    starts, steps = tube.points_N3[:-1], np.diff(tube.points_N3, axis=0)
    shares = np.clip(np.sum((point_3 - starts) * steps, axis=1) / np.sum(steps**2, axis=1), 0, 1)
    gaps = np.linalg.norm(starts + shares[:, None] * steps - point_3, axis=1)
    index = int(np.argmin(gaps))
    return float(gaps[index]), _within(tube, index, float(shares[index]))


def widest_past(point_3: NDArray[np.float64], vessels: Iterable[Vessel]) -> tuple[Vessel, Place] | None:
    """The widest vessel that passes a node, and where it does; None where none does."""
    best = None
    for vessel in vessels:
        # Most are far away, which is cheap to see.
        if np.abs(vessel.tube.points_N3 - point_3).max(axis=1).min() > _NEAR_MM + 5:
            continue
        gap, place = nearest(vessel.tube, point_3)
        if gap < _NEAR_MM + place.radius_mm and (best is None or place.radius_mm > best[1].radius_mm):
            best = vessel, place
    return best


def across(rng: np.random.Generator, along_3: NDArray[np.float64]) -> NDArray[np.float64]:
    """A random unit vector at right angles to another."""
    drawn = rng.normal(size=3)
    drawn -= (drawn @ along_3) * along_3
    return np.asarray(drawn / np.linalg.norm(drawn))


def stretch(tube: Tube, fraction: float, length_mm: float) -> Tube:
    """The part of a tube of about `length_mm` around a place; shorter where the tube ends."""
    whole = _fine(tube)
    offsets = np.abs(_offsets_mm(whole, fraction))
    # Steps may be somewhat longer than asked for, and a course has two points at least.
    return _kept(whole, offsets <= max(length_mm / 2, _STEP_MM, float(np.sort(offsets)[1])))


def bent(tube: Tube, fraction: float, length_mm: float, aside_mm_3: NDArray[np.float64]) -> Tube:
    """Push a tube by `aside_mm_3` at a place, less and less up to half of `length_mm` before and behind it."""
    fine = _fine(tube)
    return Tube(
        points_N3=fine.points_N3 + _window(fine, fraction, length_mm)[:, None] * aside_mm_3, radii_N=fine.radii_N
    )


def widened(tube: Tube, fraction: float, length_mm: float, factor: float) -> Tube:
    """Make a tube `factor` times as wide at a place, and less so up to half of `length_mm` before and behind it."""
    fine = _fine(tube)
    return Tube(
        points_N3=fine.points_N3, radii_N=fine.radii_N * (1 + (factor - 1) * _window(fine, fraction, length_mm))
    )


def looped(tube: Tube, fraction: float, radius_mm: float, aside_3: NDArray[np.float64]) -> Tube:
    """Wind a tube once around, in a circle of `radius_mm` (of its axis) to the side of `aside_3`, a unit vector."""
    fine = _fine(tube)
    place = place_at(fine, fraction)
    offsets = _offsets_mm(fine, fraction)
    # What comes in and what goes out lie side by side where the loop closes, and meet the old course 5 mm away.
    beside = np.cross(place.along_3, aside_3) * 1.1 * place.radius_mm
    turn = np.linspace(0, 2 * np.pi, _LOOP_POINTS + 1)
    circle = place.point_3 + radius_mm * (np.sin(turn)[:, None] * place.along_3 + (1 - np.cos(turn))[:, None] * aside_3)
    circle += (turn / (2 * np.pi) - 0.5)[:, None] * 2 * beside
    aside = np.sign(offsets) * np.clip(1 - np.abs(offsets) / 5, 0, 1)
    points = fine.points_N3 + aside[:, None] * beside
    before, behind = offsets < -_STEP_MM / 2, offsets > _STEP_MM / 2
    return Tube(
        points_N3=np.concatenate([points[before], circle, points[behind]]),
        radii_N=np.concatenate([fine.radii_N[before], np.full(len(circle), place.radius_mm), fine.radii_N[behind]]),
    )


def _within(tube: Tube, index: int, share: float) -> Place:
    """The place at `share` of the capsule that begins at point `index`."""
    step = tube.points_N3[index + 1] - tube.points_N3[index]
    radius = tube.radii_N[index] + share * (tube.radii_N[index + 1] - tube.radii_N[index])
    return Place(tube.points_N3[index] + share * step, step / np.linalg.norm(step), float(radius))


def _arcs(tube: Tube) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(tube.points_N3, axis=0), axis=1))])


def _fine(tube: Tube) -> Tube:
    arcs = _arcs(tube)
    places = np.linspace(0, arcs[-1], max(3, round(arcs[-1] / _STEP_MM) + 1))
    points = np.stack([np.interp(places, arcs, tube.points_N3[:, axis]) for axis in range(3)], axis=1)
    return Tube(points_N3=points, radii_N=np.interp(places, arcs, tube.radii_N))


def _offsets_mm(tube: Tube, fraction: float) -> NDArray[np.float64]:
    """How far along the tube each of its points lies from a place, in mm; negative before it."""
    arcs = _arcs(tube)
    return np.asarray(arcs - fraction * arcs[-1])


def _window(tube: Tube, fraction: float, length_mm: float) -> NDArray[np.float64]:
    """1 at a place, 0 from half of `length_mm` on, smooth in between; 0 at the tube's ends, which join others."""
    arcs = _arcs(tube)
    hann = np.cos(np.pi * np.clip(_offsets_mm(tube, fraction) / length_mm, -0.5, 0.5)) ** 2
    return np.asarray(hann * np.clip(np.minimum(arcs, arcs[-1] - arcs) / _STEP_MM, 0, 1))


def _kept(tube: Tube, kept: NDArray[np.bool_]) -> Tube:
    return Tube(points_N3=tube.points_N3[kept], radii_N=tube.radii_N[kept])
