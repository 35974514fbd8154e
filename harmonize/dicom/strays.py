"""Slices that say other than those around them how they were made: kept in their place, but told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.headers import Frame
from harmonize.dicom.separation import MIN_PLACES
from harmonize.dicom.traits import MEASURED_TRAITS, TRAITS, Trust, same_number, trust_of

MIN_SHARE = 0.75
"""So many slices say the same; where fewer do, the value comes in blocks or counts slices."""


def notes(frames: Sequence[Frame]) -> list[Decision]:
    """The decision that a few slices are of another kind, where a header that is constant in one volume says so.

    A value that comes in blocks, counts slices, is rounded or lacks in a few says nothing of the kind.

    Args:
        frames: Of one volume, sorted along the normal, one a place.

    Returns:
        One decision for all of these slices and headers, or none.
    """
    strays: set[int] = set()
    labels: list[str] = []
    for name in MEASURED_TRAITS:
        if trust_of(name, frames[0].header.modality) is not Trust.SURE:
            continue
        values = [frame.traits.get(name, "") for frame in frames]
        usual, count = Counter(values).most_common(1)[0]
        others = [n for n, value in enumerate(values) if value not in {usual, ""} and not _rounds(name, value, usual)]
        # Slices at an end may be a block of their own.
        inner = [n for n in others if usual in values[:n] and usual in values[n + 1 :]]
        if usual and 0 < len(inner) < MIN_PLACES and count >= MIN_SHARE * len(frames):
            strays.update(inner)
            labels.append(TRAITS[name].label)
    if not strays:
        return []
    return [DecisionKind.STRAY_SLICES(count=len(strays), names=", ".join(dict.fromkeys(labels)))]


def _rounds(name: str, value: str, other: str) -> bool:
    """Whether two values are one number, written with more and with fewer digits."""
    tolerance = TRAITS[name].tolerance
    if tolerance is None:
        return False
    try:
        return same_number(float(value), float(other), tolerance)
    except ValueError:
        return False
