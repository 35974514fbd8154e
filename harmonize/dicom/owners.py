"""Tell whose the pictures of one DICOM series are: those of several patients or studies are never one volume."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.geometry import MAX_MISSING, SAME_POSITION_MM, slice_normal
from harmonize.dicom.headers import Frame
from harmonize.dicom.separation import says_something
from harmonize.dicom.traits import EXAMINATION, IDENTITY, TRAITS, bare_id
from harmonize.errors import Rejection

UNEVEN = 0.1
"""Slices of one scan lie closer to their even places than this share of their step."""


def split_by_identity(frames: Sequence[Frame]) -> list[tuple[tuple[tuple[str, str], ...], list[Frame]]]:
    """Split by patient, study, frame of reference, modality and examination.

    Returns:
        For each set of pictures what of `dicom_traits.IDENTITY` sets it apart, or the date of the examination (name,
        value), and the pictures; ordered by these. Values may be patient text.
    """
    for number, name in enumerate(IDENTITY):
        values = [frame.header.identity[number] if frame.header.identity else "" for frame in frames]
        groups = _grouped(frames, values)
        if name == "patient" and len(groups) > 1:
            groups = _with_one_spelling(groups)
        if _says_something(groups):
            return _split(name, groups)
    first, others = EXAMINATION
    dates = [frame.traits.get(first, "") for frame in frames]
    groups = _grouped(frames, dates)
    # One examination goes on past midnight under one study date; an anonymiser may move the dates alone.
    if "" not in groups and _says_something(groups) and any(_goes_with(frames, dates, other) for other in others):
        return _split(TRAITS[first].label, groups)
    return [((), list(frames))]


def one_patient(ids: Iterable[str]) -> str:
    """The id that all pictures have, in its most frequent spelling.

    Returns:
        Empty where an anonymiser drew an id for each file, some lack it, or several have neither letter nor digit
        but zeros in common: these are nobody's.

    Example:
        >>> one_patient(["00123", "123", "123"]), one_patient(["1", "2"]), one_patient(["0", "-"]), one_patient(["0"])
        ('123', '', '', '0')
    """
    counted = Counter(ids)
    bare = set(map(bare_id, counted))
    if len(counted) > 1 and (len(bare) > 1 or "" in bare):
        return ""
    return min(counted, key=lambda own: (-counted[own], own), default="")


def notes(frames: Sequence[Frame]) -> list[Decision]:
    """The decision that ids are one, where they are written in several ways; none where all are alike or nobody's.

    Args:
        frames: Of one volume.
    """
    ids = {frame.header.patient_id for frame in frames}
    return [DecisionKind.ID_SPELT(count=len(ids))] if len(ids) > 1 and one_patient(ids) else []


def _with_one_spelling(groups: Mapping[str, Sequence[Frame]]) -> dict[str, list[Frame]]:
    """Join the pictures of ids that differ in spelling alone, where everything else says that they are one scan."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for value in groups:
        spellings[bare_id(value)].append(value)
    joined: dict[str, list[Frame]] = {}
    for bare, values in spellings.items():
        frames = [frame for value in values for frame in groups[value]]
        if bare and len(values) > 1 and _is_one_scan(frames):
            joined[one_patient(frame.header.patient_id for frame in frames)] = frames
        else:
            joined |= {value: list(groups[value]) for value in values}
    return joined


def _is_one_scan(frames: Sequence[Frame]) -> bool:
    """Whether pictures agree in all of `IDENTITY` but the id, study included, and lie in one step without repeats."""
    others = {frame.header.identity[1:] for frame in frames}
    placed = [frame for frame in frames if frame.rejection is None]
    if len(others) > 1 or not frames[0].header.study_uid or len(placed) < 3:
        return False
    if any(len(frame.position) != 3 or not np.isfinite(frame.position).all() for frame in placed):
        return False
    try:
        normal = slice_normal(placed[0].orientation)
    except Rejection:
        return False
    steps = np.diff(np.sort(np.array([frame.position for frame in placed]) @ normal))
    step = float(np.median(steps))
    if step <= SAME_POSITION_MM:
        return False
    slices = np.rint(steps / step)
    return bool(((slices >= 1) & (slices <= MAX_MISSING + 1) & (abs(steps / step - slices) < UNEVEN)).all())


def _split(name: str, groups: Mapping[str, Sequence[Frame]]) -> list[tuple[tuple[tuple[str, str], ...], list[Frame]]]:
    return [
        (((name, value), *rest), members)
        for value in sorted(groups)
        for rest, members in split_by_identity(groups[value])
    ]


def _grouped(frames: Sequence[Frame], values: Sequence[str]) -> dict[str, list[Frame]]:
    groups: dict[str, list[Frame]] = defaultdict(list)
    for frame, value in zip(frames, values, strict=True):
        groups[value].append(frame)
    return groups


def _says_something(groups: Mapping[str, Sequence[Frame]]) -> bool:
    return says_something({value: {_place(frame) for frame in group} for value, group in groups.items()})


def _goes_with(frames: Sequence[Frame], values: Sequence[str], trait: str) -> bool:
    """Whether each of the values has its own of another trait, which no picture lacks."""
    pairs = {(value, frame.traits.get(trait, "")) for frame, value in zip(frames, values, strict=True)}
    others = [other for _, other in pairs]
    return "" not in others and len(set(others)) == len(others)


def _place(frame: Frame) -> Hashable:
    return frame.position or (frame.header.path, frame.index)
