"""What a hasty reader writes down of a series: aneurysms overlooked, put on the wrong side or site, or invented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harmonize.labels import LABELS, LOCATIONS, MIRRORED
from harmonize.phantom.vessels import Aneurysm, Mimic

NO_MISTAKE, MISSED, WRONG_SIDE, WRONG_SITE, INVENTED = "", "missed", "wrong side", "wrong site", "invented"
_CHANCES = {MISSED: 0.80, WRONG_SIDE: 0.05, WRONG_SITE: 0.15}
"""Of the mistakes about one aneurysm: 75 % of errors in neuroradiology are of seeing (Patel, AJNR 2019; 40: 1252), and
few of the side; docs/phantom-sources.md has more."""

Point = tuple[float, float, float]

_BESIDE = {
    "Infraclinoid Internal Carotid Artery": "Supraclinoid Internal Carotid Artery",
    "Supraclinoid Internal Carotid Artery": "Posterior Communicating Artery",
    "Posterior Communicating Artery": "Supraclinoid Internal Carotid Artery",
    "Middle Cerebral Artery": "Supraclinoid Internal Carotid Artery",
    "Anterior Cerebral Artery": "Anterior Communicating Artery",
    "Anterior Communicating Artery": "Left Anterior Cerebral Artery",
    "Basilar Tip": "Other Posterior Circulation",
    "Other Posterior Circulation": "Basilar Tip",
}
"""Which site another one is taken for, sides left out where both have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was written down of one series.

    Attributes:
        findings: Site and place in mm of each aneurysm that the reader names.
        error: What is wrong with them; "" where nothing is.
    """

    findings: tuple[tuple[str, Point], ...]
    error: str = NO_MISTAKE


def read_by(
    share: float,
    aneurysms: Sequence[Aneurysm],
    would_be: Sequence[Aneurysm],
    mimics: Sequence[Mimic],
    rng: np.random.Generator,
) -> Reading:
    """Read a series, rightly or not.

    A healthy one is wrongly read as having an aneurysm where it could have had one, and the point is put on what looks
    most like it: the nearest mimic.

    Args:
        share: How often a series is read wrongly.
        aneurysms: Those that there are.
        would_be: Those that a healthy head would have.
        mimics: What looks like one.
        rng: Where the chance comes from.
    """
    right = tuple((sac.location, sac.centre_mm) for sac in aneurysms)
    wrong, kind, which, other = rng.random(4)
    if wrong >= share or not (right or would_be):
        return Reading(findings=right)
    if not right:
        sac = would_be[int(which * len(would_be))]
        return Reading(findings=((sac.location, _nearest(sac.centre_mm, mimics)),), error=INVENTED)
    number = int(which * len(right))
    location, place = right[number]
    rest = right[:number] + right[number + 1 :]
    error = [*_CHANCES][int(np.searchsorted(np.cumsum([*_CHANCES.values()]), kind, side="right"))]
    said = {WRONG_SIDE: LOCATIONS[MIRRORED[LABELS.index(location)]], WRONG_SITE: _beside(location, other)}.get(error)
    if said is None or said == location or said in (name for name, _ in rest):
        return Reading(findings=rest, error=MISSED)
    findings = sorted([*rest, (said, place)], key=lambda finding: LOCATIONS.index(finding[0]))
    return Reading(findings=tuple(findings), error=error)


def _beside(location: str, chance: float) -> str:
    side, _, site = location.partition(" ")
    if site in _BESIDE and side in ("Left", "Right"):
        other = _BESIDE[site]
        return other if other in LOCATIONS else f"{side} {other}"
    other = _BESIDE[location]
    return other.replace("Left", "Right") if chance < 0.5 else other


def _nearest(centre_mm: Point, mimics: Sequence[Mimic]) -> Point:
    if not mimics:
        return centre_mm
    places = [mimic.centre_mm for mimic in mimics]
    return min(places, key=lambda place: float(np.linalg.norm(np.subtract(place, centre_mm))))
