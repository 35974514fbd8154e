"""One picture a place: what to do with pictures of a stack that no header trait separates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.grouping import distinct_positions
from harmonize.dicom.headers import Frame
from harmonize.dicom.layout import Picture
from harmonize.dicom.pixels import read_values
from harmonize.dicom.rescale import settle_rescale
from harmonize.errors import Reason, Rejection
from harmonize.voxels import interleaving

_SWAPPED = 1.1
"""Pictures that differ from their own volume's next ones by so much more than from another's are swapped."""


def one_picture_a_place(frames: Sequence[Frame]) -> tuple[list[Frame], list[Decision]]:
    """One frame a place: equal pictures are dropped, unequal ones told apart by their instance numbers if at all.

    Returns:
        (frames, what was decided).

    Raises:
        Rejection: Different pictures claim the same place and nothing tells which belong together.
    """
    by_place: dict[int, list[Frame]] = defaultdict(list)
    for frame, place in zip(frames, distinct_positions(frames).tolist(), strict=True):
        by_place[place].append(frame)
    if len(by_place) == len(frames):
        return list(frames), []
    damaged = 0
    try:
        copies = _are_copies(by_place)
    except Rejection as fault:
        by_place, damaged = _without_damaged(by_place)
        if fault.reason is not Reason.TRUNCATED or not damaged or not _are_copies(by_place):
            raise
        copies = True
    if copies:
        firsts = [group[0] for group in by_place.values()]
        equal = len(frames) - len(firsts) - damaged
        found = [DecisionKind.DAMAGED_COPIES(count=damaged)] if damaged else []
        return firsts, [*found, DecisionKind.COPIES_DROPPED(count=equal)] if equal else found
    ranks = _by_instance(list(by_place.values()))
    if not ranks:
        raise Rejection(
            Reason.REPEATED_POSITIONS, "different pictures at one position, and no header tells which belong together"
        )
    return ranks[0], [DecisionKind.ONLY_BY_INSTANCE(count=len(ranks))]


def read_some(frames: Sequence[Frame]) -> NDArray[Any] | None:
    """The values of a few pictures, where headers alone leave a doubt while volumes are looked for."""
    try:
        settled, _, _ = settle_rescale(frames)
        return read_values([picture_of(frame) for frame in settled], modality=frames[0].header.modality)[0]
    except (Rejection, OSError):
        return None


def picture_of(frame: Frame) -> Picture:
    """How to read the pixels of a frame whose rescaling is settled."""
    return Picture(
        path=frame.header.path,
        layout=frame.header.pixels,
        index=frame.index,
        slope=1.0 if frame.meaning.slope is None else frame.meaning.slope,
        intercept=0.0 if frame.meaning.intercept is None else frame.meaning.intercept,
    )


def _without_damaged(by_place: Mapping[int, list[Frame]]) -> tuple[dict[int, list[Frame]], int]:
    """Leave out pictures that were cut short where another at their place is whole, and count them."""
    kept = {}
    for place, group in by_place.items():
        whole = [frame for frame in group if _is_whole(frame)] if len(group) > 1 else group
        kept[place] = whole or group
    return kept, sum(map(len, by_place.values())) - sum(map(len, kept.values()))


def _is_whole(frame: Frame) -> bool:
    try:
        read_values([picture_of(frame)], modality=frame.header.modality)
    except Rejection as fault:
        return fault.reason is not Reason.TRUNCATED
    return True


def _by_instance(places: Sequence[Sequence[Frame]]) -> list[list[Frame]]:
    """The volumes that instance numbers tell apart, the first one first; none where they do not.

    They are believed only where no picture resembles another volume's next picture more than its own: the volumes may
    have been numbered in opposed directions.
    """
    if len({len(group) for group in places}) > 1:
        return []
    ordered = [sorted(group, key=lambda frame: frame.instance) for group in places]
    if any(a.instance == b.instance for group in ordered for a, b in pairwise(group)):
        return []
    ranks = [list(rank) for rank in zip(*ordered, strict=True)]
    values = read_some([frame for rank in ranks for frame in rank])
    if values is None:
        return []
    samples = interleaving.sample_slices(values, axis=0).reshape(len(ranks), len(places), -1)
    own = interleaving.distance(samples[:, 1:], samples[:, :-1])
    others = interleaving.distance(np.roll(samples, 1, axis=0)[:, 1:], samples[:, :-1])
    return ranks if (own.sum(axis=0) <= _SWAPPED * others.sum(axis=0)).all() else []


def _are_copies(by_place: Mapping[int, Sequence[Frame]]) -> bool:
    """Whether each of the other frames has the values of the first frame at its place."""
    firsts = [group[0] for group in by_place.values()]
    others = [(place, frame) for place, group in by_place.items() for frame in group[1:]]
    modality = firsts[0].header.modality
    values_ZYX, _ = read_values([picture_of(frame) for frame in firsts], modality=modality)
    by_file = sorted(others, key=lambda other: (other[1].header.path, other[1].index))
    for _, group in groupby(by_file, key=lambda other: other[1].header.path):
        places, frames = zip(*group, strict=True)
        copy_ZYX, _ = read_values([picture_of(frame) for frame in frames], modality=modality)
        if not np.array_equal(values_ZYX[list(places)], copy_ZYX):
            return False
    return True
