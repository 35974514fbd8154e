"""Tell whose the pictures of one DICOM series are: those of several patients or studies are never one volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from harmonize.dicom.headers import Frame
from harmonize.dicom.separation import says_something
from harmonize.dicom.traits import IDENTITY


def split_by_identity(frames: Sequence[Frame]) -> list[tuple[tuple[tuple[str, str], ...], list[Frame]]]:
    """Split by patient, study, frame of reference and modality.

    Returns:
        For each set of pictures what of `dicom_traits.IDENTITY` sets it apart (name, value), and the pictures;
        ordered by these. Values may be patient text.
    """
    for number, name in enumerate(IDENTITY):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.header.identity[number] if frame.header.identity else ""].append(frame)
        if says_something({value: {_place(frame) for frame in group} for value, group in groups.items()}):
            return [
                (((name, value), *rest), members)
                for value in sorted(groups)
                for rest, members in split_by_identity(groups[value])
            ]
    return [((), list(frames))]


def _place(frame: Frame) -> Hashable:
    return frame.position or (frame.header.path, frame.index)
