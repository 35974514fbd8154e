"""Tell the volumes of one DICOM series apart by what the headers of its pictures say (see `dicom_traits`).

A value that differs in nearly every slice counts slices, or was drawn for each file by an anonymiser, and an absent one
says nothing unless the slices without it are a stack by themselves; both are passed over. What is left separates
volumes in two ways: values that alternate along the normal; and, where several pictures claim one place, values that
sort them. Whose the pictures are was looked at before (see `owners`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.dicom import numbering
from harmonize.dicom.headers import Frame
from harmonize.dicom.looks import ReadPictures, are_brighter, are_copies, intensities_follow
from harmonize.dicom.traits import (
    EXPORT_TRAITS,
    MEASURED_TRAITS,
    NEVER_IN_COPIES,
    ORDERS,
    TRAITS,
    Trust,
    same_number,
    trust_of,
)
from harmonize.voxels import interleaving

MAX_SINGLE_SHARE = 0.5
"""A header value at one place only is no group; where more places than this have such values, they say nothing."""

SAME_STEP = 1.5
"""A stack goes on through a slice of another value if its own step there is no larger than this many of its steps."""

MIN_PLACES = 4
"""Fewer slices of another value, where one's own are missing, are a second attempt at these, not a second volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Separated:
    """The volumes that pictures were separated into.

    Attributes:
        volumes: Two or more.
        why: How they were told apart, for a person.
    """

    volumes: list[list[Frame]]
    why: str


def separate(
    plane: Sequence[Frame], offsets: NDArray[np.float64], places: NDArray[np.int64], read: ReadPictures | None
) -> Separated | None:
    """Separate pictures of one size and orientation.

    Args:
        plane: Sorted along the normal.
        offsets: (N,) their places along it, mm.
        places: (N,) the same as whole numbers, from 0; pictures at one place share theirs.
        read: Reads a few pictures where the headers are in doubt; without it, what is in doubt stays together.

    Returns:
        None where they are one volume, as far as the headers tell.
    """
    doubtful: list[tuple[str, list[str], Trust]] = []
    for name in MEASURED_TRAITS:
        values, members = _groups(plane, places, name)
        trust = trust_of(name, plane[0].header.modality)
        if not says_something(members) or not _interleave(members, offsets, places):
            if not _absence_interleaves(members, offsets, places):
                continue
            trust = TRAITS[name].absence
        if trust is Trust.SURE:
            return _by_values(plane, values, f"whose slices interleave, told apart by {TRAITS[name].label}")
        doubtful.append((name, values, trust))
    for name, values, trust in doubtful:
        if read is not None and (
            intensities_follow(plane, places, values, read)
            or (trust is Trust.BRIGHTER and are_brighter(plane, places, values, read))
        ):
            label = TRAITS[name].label
            return _by_values(plane, values, f"whose slices interleave, told apart by {label} and intensity")
    return (
        _split_repeats(plane, places, read)
        or _split_exports(plane, offsets, places, read)
        or _split_numbering(plane, offsets, places, read)
    )


def _groups(plane: Sequence[Frame], places: NDArray[np.int64], name: str) -> tuple[list[str], Mapping[str, set[int]]]:
    """A trait's value of each picture, and the places of each value; none where all have the same."""
    values = [frame.stack if name == "stack" else frame.traits.get(name, "") for frame in plane]
    members: dict[str, set[int]] = defaultdict(set)
    if len(set(values)) > 1:
        values = _without_rounding(values, TRAITS[name].tolerance)
        for value, place in zip(values, places.tolist(), strict=True):
            members[value].add(place)
    return values, members


def says_something(members: Mapping[str, set[Any]]) -> bool:
    """Whether a header tells groups apart: two values or more, most of which several places share."""
    sizes = [len(places) for value, places in members.items() if value]
    singles = sizes.count(1)
    return len(sizes) > 1 and singles <= MAX_SINGLE_SHARE * sum(sizes)


def _overlap(members: Mapping[str, set[int]]) -> bool:
    return sum(map(len, members.values())) > len(set().union(*members.values()))


def _interleave(members: Mapping[str, set[int]], offsets: NDArray[np.float64], places: NDArray[np.int64]) -> bool:
    """Whether the slices of two values alternate along the normal; those at shared places do not count."""
    sets = sorted({frozenset(own) for value, own in members.items() if value}, key=min)
    owner = {place: number for number, own in enumerate(sets) for place in own}
    ordered = [owner[place] for place in sorted(owner)]
    if sum(map(len, sets)) == len(owner) and _runs(ordered) == len(sets):
        return False  # one block after another
    heights = offsets[np.searchsorted(places, np.arange(places[-1] + 1))]
    return any(
        _alternate(sorted(a - b), sorted(b - a), heights)
        for n, a in enumerate(sets)
        for b in sets[n + 1 :]
        if min(b) < max(a) and min(a) < max(b)
    )


def _absence_interleaves(
    members: Mapping[str, set[int]], offsets: NDArray[np.float64], places: NDArray[np.int64]
) -> bool:
    """Whether the slices without a header value lie between those with one, in an even step of their own each."""
    if "" not in members:
        return False
    heights = offsets[np.searchsorted(places, np.arange(places[-1] + 1))]
    for own in members.values():
        gaps = np.diff(heights[sorted(own)])
        if len(own) < MIN_PLACES or gaps.max() > SAME_STEP * gaps.min():
            return False
    return _interleave({value or "absent": own for value, own in members.items()}, offsets, places)


def _alternate(a: list[int], b: list[int], heights: NDArray[np.float64]) -> bool:
    if not a or not b:
        return False
    in_a = frozenset(a)
    ordered = [place in in_a for place in sorted(a + b)]
    runs = _runs(ordered)
    if runs < 3:
        return False
    if _goes_through(a, b, heights) or _goes_through(b, a, heights):
        return True
    # Blocks that are volumes of their own may come back; shorter ones are woven.
    return runs > 3 and min(len(a), len(b)) >= MIN_PLACES and len(ordered) < MIN_PLACES * runs


def _goes_through(own: list[int], others: list[int], heights: NDArray[np.float64]) -> bool:
    """Whether a stack keeps its own step where slices of another value lie in it: they fill no gap of it."""
    gaps = np.diff(heights[own])
    if len(gaps) < 2:
        return False
    filled = np.diff(np.searchsorted(others, own)) > 0
    return bool((gaps[filled] <= SAME_STEP * np.median(gaps)).any())


def _runs(ordered: Sequence[object]) -> int:
    return 1 + sum(one != other for one, other in pairwise(ordered))


def _without_rounding(values: Sequence[str], tolerance: float | None) -> list[str]:
    """The same values where numbers that differ by rounding alone are written alike."""
    if tolerance is None:
        return list(values)
    try:
        numbers = sorted({float(value) for value in values if value})
    except ValueError:
        return list(values)
    named, first = {}, 0.0
    for n, number in enumerate(numbers):
        if n == 0 or not same_number(numbers[n - 1], number, tolerance):
            first = number
        named[number] = f"{first:g}"
    return [named[float(value)] if value else "" for value in values]


def _by_values(plane: Sequence[Frame], values: Sequence[Hashable], why: str) -> Separated:
    volumes: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame, value in zip(plane, values, strict=True):
        volumes[value].append(frame)
    # Beside true values may stand those of a counter: they are one group, which the other traits may split.
    counted = [value for value, group in volumes.items() if len(group) == 1]
    if 1 < len(counted) < len(volumes):
        single = set(counted)
        volumes[counted[0]] = [frame for frame, value in zip(plane, values, strict=True) if value in single]
        for value in counted[1:]:
            del volumes[value]
    ordered = sorted(volumes, key=lambda value: _numeric_order(value if isinstance(value, tuple) else (value,)))
    return Separated(volumes=[volumes[value] for value in ordered], why=why)


def _numeric_order(values: tuple[Any, ...]) -> list[tuple[float, str]]:
    return [(float(v) if v.replace(".", "", 1).isdigit() else float("inf"), v) for v in values]


# ------------------------------------------------------------------------------------- several pictures at one place


def _split_repeats(plane: Sequence[Frame], places: NDArray[np.int64], read: ReadPictures | None) -> Separated | None:
    """Split frames that share places by the first traits that tell them apart."""
    at = places.tolist()
    most = max(Counter(at).values())
    if most == 1:
        return None
    chosen: list[str] = []
    best = _repeats(plane, at, chosen)
    copies = cache(lambda: are_copies(plane, places, read))
    varying = [name for name in MEASURED_TRAITS if len({frame.traits.get(name, "") for frame in plane}) > 1]
    # A trait that also changes from slice to slice (an acquisition counter) would shatter the volumes: it has as many
    # values as there are volumes, or else each of them at several places.
    for admitted in (lambda tried: _variety(plane, tried) <= most, lambda tried: _covers_places(plane, at, tried)):
        for name in varying:
            tried = [*chosen, name]
            if best == 0 or name in chosen or not admitted(tried):
                continue
            left = _repeats(plane, at, tried)
            if left < best and (name in NEVER_IN_COPIES or not copies()):
                chosen, best = tried, left
    if not chosen:
        return None
    labels = ", ".join(dict.fromkeys(TRAITS[name].label for name in chosen))
    values = [_values(frame, chosen) for frame in plane]
    return _by_values(plane, values, f"at the same positions, told apart by {labels}")


def _split_exports(
    plane: Sequence[Frame], offsets: NDArray[np.float64], places: NDArray[np.int64], read: ReadPictures | None
) -> Separated | None:
    """Split by series number and by files that hold many pictures, but not the copies of one volume."""
    for name in EXPORT_TRAITS:
        values, members = _groups(plane, places, name)
        if not says_something(members):
            continue
        if _overlap(members):
            apart = not are_copies(plane, places, read)
        elif name in {"stack", "series"}:
            apart = True  # another number is another series wherever it lies; other files may go on where one ends
        else:
            apart = _interleave(members, offsets, places)
        if apart and TRAITS[name].trust is Trust.DOUBTFUL and not _overlap(members):
            apart = read is not None and intensities_follow(plane, places, values, read)
        if apart:
            return _by_values(plane, values, f"told apart by {TRAITS[name].label}")
    return None


def _split_numbering(
    plane: Sequence[Frame], offsets: NDArray[np.float64], places: NDArray[np.int64], read: ReadPictures | None
) -> Separated | None:
    """Split where the slices were numbered, or acquired, one volume after the other, and interleave.

    A scanner may number the slices of one volume in the order in which it excites them, so intensities must follow;
    nearly every MR has the times of these, so there they must follow beyond doubt.
    """
    if read is None or len(plane) < 2 * MIN_PLACES or places[-1] + 1 < len(plane):
        return None
    numbers = "instance numbers"
    orders: dict[str, Sequence[int] | Sequence[str]] = {numbers: [frame.instance for frame in plane]}
    orders |= {TRAITS[name].label: [frame.traits.get(name, "") for frame in plane] for name in ORDERS}
    for label, order in orders.items():
        values = numbering.runs(order, offsets, MIN_PLACES)
        if values is None:
            continue
        members: dict[str, set[int]] = defaultdict(set)
        for place, value in enumerate(values):
            members[value].add(place)
        limit = interleaving.APART if label == numbers else interleaving.WOVEN
        if _interleave(members, offsets, places) and intensities_follow(plane, places, values, read, limit):
            return _by_values(plane, values, f"whose slices interleave, told apart by {label} and intensity")
    return None


def _variety(plane: Sequence[Frame], traits: Sequence[str]) -> int:
    return len({_values(frame, traits) for frame in plane})


def _covers_places(plane: Sequence[Frame], places: Sequence[int], traits: Sequence[str]) -> bool:
    members: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for frame, place in zip(plane, places, strict=True):
        members[_values(frame, traits)].add(place)
    sizes = [len(own) for own in members.values()]
    return sizes.count(1) <= MAX_SINGLE_SHARE * sum(sizes)


def _repeats(plane: Sequence[Frame], places: Sequence[int], traits: Sequence[str]) -> int:
    counts = Counter((place, _values(frame, traits)) for frame, place in zip(plane, places, strict=True))
    return sum(count - 1 for count in counts.values())


def _values(frame: Frame, traits: Sequence[str]) -> tuple[str, ...]:
    return tuple(frame.traits.get(trait, "") for trait in traits)
