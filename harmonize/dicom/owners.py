"""Tell whose the pictures of one DICOM series are: those of several patients or studies are never one volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from harmonize.dicom.headers import Frame
from harmonize.dicom.separation import says_something
from harmonize.dicom.traits import EXAMINATION, IDENTITY, TRAITS


def split_by_identity(frames: Sequence[Frame]) -> list[tuple[tuple[tuple[str, str], ...], list[Frame]]]:
    """Split by patient, study, frame of reference, modality and examination.

    Returns:
        For each set of pictures what of `dicom_traits.IDENTITY` sets it apart, or the date of the examination (name,
        value), and the pictures; ordered by these. Values may be patient text.
    """
    for number, name in enumerate(IDENTITY):
        groups = _grouped(frames, [frame.header.identity[number] if frame.header.identity else "" for frame in frames])
        if _says_something(groups):
            return _split(name, groups)
    first, others = EXAMINATION
    dates = [frame.traits.get(first, "") for frame in frames]
    groups = _grouped(frames, dates)
    # One examination goes on past midnight under one study date; an anonymiser may move the dates alone.
    if "" not in groups and _says_something(groups) and any(_goes_with(frames, dates, other) for other in others):
        return _split(TRAITS[first].label, groups)
    return [((), list(frames))]


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
