"""Sort the pictures of a DICOM series into volumes, by their headers alone.

A series is a loose thing: scouts beside the scan, two orientations, several echoes or diffusion directions at the
same places, files exported twice, slices lost. `group_series` says which pictures make up one volume each, and which
are rejected, so that no file is silently left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.geometry import MAX_MISSING, find_holes, slice_normal
from harmonize.dicom.headers import Frame
from harmonize.dicom.looks import ReadPictures
from harmonize.dicom.planes import distinct_positions, name_free_key, offsets_of, split_planes
from harmonize.dicom.separation import separate
from harmonize.errors import Reason, Rejection, Stage

MIN_SLICES = 4
"""A stack of fewer slices holds no 3D information worth keeping; planar scouts have one to three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Pictures that make up one volume, or are rejected together.

    Attributes:
        frames: Sorted along the slice normal; several at one place only where no header tells them apart.
        rejection: Why they are no volume, or None.
        decisions: What was found while grouping.
    """

    frames: tuple[Frame, ...]
    rejection: Rejection | None = None
    decisions: tuple[Decision, ...] = ()


def group_series(
    frames: Iterable[Frame], *, min_slices: int = MIN_SLICES, read: ReadPictures | None = None
) -> list[Stack]:
    """Sort the pictures of one series into stacks.

    The largest of several orientations or sizes is kept. Volumes at the same positions, or between each other's
    slices, are separated by their headers; a stack with a hole is cut there.

    Args:
        frames: All pictures with one SeriesInstanceUID, of one patient and study, in any order.
        min_slices: Stacks with fewer different positions are rejected.
        read: Reads a few pictures where the headers are in doubt.

    Returns:
        Stacks in a stable order that does not depend on file names; every frame is in exactly one.
    """
    rejected: dict[Rejection, list[Frame]] = defaultdict(list)
    candidates: list[Frame] = []
    for frame in frames:
        fault = frame.rejection or _geometry_fault(frame)
        if fault:
            rejected[fault].append(frame)
        else:
            candidates.append(frame)

    planes = sorted(split_planes(candidates), key=_size_key)
    stacks: list[Stack] = []
    for rank, plane in enumerate(planes):
        if rank == 0:
            notes = (DecisionKind.LARGEST_GROUP(count=len(planes)),) if len(planes) > 1 else ()
            stacks += _split_plane(plane, min_slices, notes, read)
        elif distinct_positions(plane)[-1] + 1 >= min_slices and _other_series(plane, planes[0]):
            stacks += _split_plane(plane, min_slices, (DecisionKind.ONE_OF_GROUPS(count=len(planes)),), read)
        else:
            message = "another orientation, size or spacing than the largest group of the series"
            stacks.append(Stack(frames=tuple(plane), rejection=Rejection(Reason.MIXED_GEOMETRY, message)))
    stacks += [
        Stack(frames=tuple(sorted(group, key=name_free_key)), rejection=fault)
        for fault, group in sorted(rejected.items(), key=lambda entry: (entry[0].reason, entry[0].message))
    ]
    return stacks


def _other_series(plane: Sequence[Frame], other: Sequence[Frame]) -> bool:
    """Whether every picture says that its series has another number than those of `other`."""
    numbers, others = ({frame.traits.get("series", "") for frame in frames} for frames in (plane, other))
    return "" not in numbers | others and not numbers & others


_PLACE = {"ImagePositionPatient": "position", "ImageOrientationPatient": "orientation", "PixelSpacing": "spacing"}


def _geometry_fault(frame: Frame) -> Rejection | None:
    lacking = [name for name, value in _PLACE.items() if not getattr(frame, value)]
    if lacking:
        return Rejection(Reason.MISSING_METADATA, f"the header lacks {' and '.join(lacking)}")
    if len(frame.position) != 3 or not np.isfinite(frame.position).all():
        return Rejection(Reason.BAD_GEOMETRY, "the image position is not three finite numbers")
    if len(frame.spacing) != 2 or not all(np.isfinite(step) and step > 0 for step in frame.spacing):
        return Rejection(Reason.BAD_GEOMETRY, "the pixel spacing is not two positive numbers")
    return _orientation_fault(frame.orientation)


@lru_cache(maxsize=256)
def _orientation_fault(orientation: tuple[float, ...]) -> Rejection | None:
    try:
        slice_normal(orientation)
    except Rejection as rejection:
        return rejection.at(Stage.DISCOVER)
    return None


def _size_key(plane: Sequence[Frame]) -> tuple[object, ...]:
    voxels = plane[0].header.pixels.rows * plane[0].header.pixels.columns
    return -int(distinct_positions(plane)[-1]), -len(plane), -voxels, name_free_key(plane[0])


def _split_plane(
    plane: Sequence[Frame], min_slices: int, notes: tuple[Decision, ...], read: ReadPictures | None
) -> list[Stack]:
    places = int(distinct_positions(plane)[-1]) + 1
    if places < min_slices:
        if places == 1 and len(plane) >= min_slices:
            fault = Rejection(Reason.REPEATED_POSITIONS, f"all {len(plane)} pictures claim the same position")
        else:
            fault = Rejection(Reason.TOO_FEW_SLICES, f"{places} slices; at least {min_slices} are needed")
        return [Stack(frames=tuple(plane), rejection=fault, decisions=notes)]
    separated = _separate(plane, min_slices, notes, read)
    return _cut_at_holes(plane, min_slices, notes, read) if separated is None else separated


def _separate(
    plane: Sequence[Frame], min_slices: int, notes: tuple[Decision, ...], read: ReadPictures | None
) -> list[Stack] | None:
    """The stacks of each of several volumes; None where the pictures are one, so that each of those is one when it is
    grouped again without the others."""
    found = separate(plane, offsets_of(plane), distinct_positions(plane), read)
    if found is None:
        return None
    stacks = []
    for number, volume in enumerate(found.volumes):
        note = DecisionKind.ONE_OF_VOLUMES(number=number + 1, count=len(found.volumes), why=found.why)
        stacks += _split_plane(volume, min_slices, (*notes, note), read)
    return stacks


def _cut_at_holes(
    volume: Sequence[Frame], min_slices: int, notes: tuple[Decision, ...], read: ReadPictures | None
) -> list[Stack]:
    places = distinct_positions(volume)
    _, first_of_place = np.unique(places, return_index=True)
    holes = find_holes(offsets_of(volume)[first_of_place])
    if not holes:
        return [_accept(volume, min_slices, notes)]
    ends = np.array([-1, *holes, places[-1]])
    if len(holes) > 1 and np.diff(ends).max() < min_slices:
        message = (
            f"{places[-1] + 1} slices, nowhere {min_slices} in a row: many are missing, or two volumes lie in pairs"
        )
        return [Stack(frames=tuple(volume), rejection=Rejection(Reason.MISSING_SLICES, message), decisions=notes)]
    part_of_place = np.searchsorted(np.array(holes), np.arange(places[-1] + 1), side="left")
    stacks = []
    for part in range(len(holes) + 1):
        frames = [frame for frame, place in zip(volume, places, strict=True) if part_of_place[place] == part]
        note = DecisionKind.CUT_AT_HOLE(number=part + 1, count=len(holes) + 1, most=MAX_MISSING)
        accepted = _accept(frames, min_slices, (*notes, note), short=Reason.MISSING_SLICES)
        separated = _separate(frames, min_slices, accepted.decisions, read) if accepted.rejection is None else None
        stacks += [accepted] if separated is None else separated
    return stacks


def _accept(
    frames: Sequence[Frame], min_slices: int, notes: tuple[Decision, ...], short: Reason = Reason.TOO_FEW_SLICES
) -> Stack:
    places = int(distinct_positions(frames)[-1]) + 1
    stack = Stack(frames=tuple(frames), decisions=notes)
    if places >= min_slices:
        return stack
    fault = Rejection(short, f"{places} slices in a row; at least {min_slices} are needed")
    return replace(stack, rejection=fault)
