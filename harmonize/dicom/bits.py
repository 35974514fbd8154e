"""Settle how stored bits are to be read where the header is silent about their sign, or the pixels contradict it.

The readings that are open are compared where they differ. In a CT the one whose Hounsfield units are possible counts.
Otherwise the one counts under which neighbouring pixels differ clearly less: a number of the wrong sign, or cut to too
few bits, jumps by a power of two beside its neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.decode import clean_bits, stored_pictures
from harmonize.dicom.layout import Picture
from harmonize.errors import Reason, Rejection

POSSIBLE_HU = (-1100.0, 3071.0)
"""What a CT holds between air with its noise and the end of the twelve-bit scale."""

CLEARLY = 2.0
"""By this factor neighbours have to differ less for a reading to be believed against the header."""

_LOOK_AT = 32
"""About so many pictures of a volume are compared."""

_MOST = 0.9
_Change = Mapping[str, Any]
"""What to change in a layout."""


@dataclass(slots=True)
class _Evidence:
    """About two readings, where they differ.

    Attributes:
        differing: Pixels at which they differ.
        possible: How many of these are possible Hounsfield units, under the one and the other.
        rough: Sum of the differences of neighbours where they are not the same, under the one and the other.
    """

    differing: int
    possible: NDArray[np.float64]
    rough: NDArray[np.float64]

    def favours(self, *, hounsfield: bool) -> int | None:
        """Which of the two readings is clearly right; None where neither is."""
        if hounsfield and self.differing:
            shares = self.possible / self.differing
            if shares.max() >= _MOST and shares.min() <= 1 - _MOST:
                return int(shares.argmax())
        best = int(self.rough.argmin())
        return best if self.rough[best] * CLEARLY < self.rough[1 - best] else None


def is_open(picture: Picture) -> bool:
    """Whether the header leaves the sign of the stored values open."""
    return picture.layout.signed is None and not picture.layout.floating


def settle_bits(
    pictures: Sequence[Picture], *, modality: str, suspects: Collection[int] | None = None
) -> tuple[list[Picture], list[Decision]]:
    """Choose how the stored bits are read where that is in question.

    Args:
        pictures: Of one volume.
        modality: ``CT``: values must be possible Hounsfield units.
        suspects: Numbers of the pictures whose pixels contradict the header, if that was looked for; some are enough.

    Returns:
        (the pictures with settled layouts, what was decided).

    Raises:
        Rejection: The header does not say, and nothing else does.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, picture in enumerate(pictures):
        layout = picture.layout
        if not layout.floating:
            groups[layout.signed, layout.bits_allocated, layout.bits_stored, layout.high_bit].append(number)
    signs = {picture.layout.signed for picture in pictures} - {None}
    stated = signs.pop() if len(signs) == 1 else None
    settled = list(pictures)
    decisions: list[Decision] = []
    for numbers in groups.values():
        looked_at = [number for number in numbers if suspects is None or number in suspects]
        change, decision = _settle(
            [pictures[number] for number in looked_at[:: len(looked_at) // _LOOK_AT + 1]], modality, stated
        )
        if decision is not None:
            decisions.append(decision)
        for number in numbers:
            settled[number] = _with(pictures[number], change)
    return settled, decisions


def _settle(pictures: Sequence[Picture], modality: str, stated: bool | None) -> tuple[_Change, Decision | None]:
    """What to change in the layouts of pictures with the same one, and the decision, if there was one to make."""
    if not pictures:
        return {}, None
    layout = pictures[0].layout
    as_is = {"signed": bool(layout.signed)}
    if layout.signed is None:
        return _settle_sign(pictures, modality, stated)
    whole = {"bits_stored": layout.bits_allocated, "high_bit": layout.bits_allocated - 1}
    if layout.bits_stored == layout.bits_allocated:
        evidence = _compare(pictures, as_is, {"signed": True}) if not layout.signed else None
        if evidence and evidence.differing and evidence.favours(hounsfield=modality == "CT") == 1:
            return {"signed": True}, DecisionKind.UNSIGNED_BUT_SIGNED()
        return as_is, None
    if layout.overlay_bits or not any(stray for _, stray in _stored(pictures)):
        return as_is, None
    if layout.high_bit != layout.bits_stored - 1:
        low = {"high_bit": layout.bits_stored - 1}
        if any(stray for _, stray in _stored([_with(picture, low) for picture in pictures])):
            raise Rejection(Reason.UNSUPPORTED_ENCODING, "HighBit contradicts the bits that the pixels use")
        return {**as_is, **low}, DecisionKind.HIGH_BIT_CONTRADICTED()
    if layout.signed or _compare(pictures, as_is, {**as_is, **whole}).favours(hounsfield=modality == "CT") == 1:
        return {**as_is, **whole}, DecisionKind.MORE_BITS_READ()
    return as_is, DecisionKind.STRAY_BITS_CUT()


def _settle_sign(pictures: Sequence[Picture], modality: str, stated: bool | None) -> tuple[_Change, Decision]:
    evidence = _compare(pictures, {"signed": False}, {"signed": True})
    if not evidence.differing:
        return {"signed": False}, DecisionKind.SIGN_IRRELEVANT()
    found = evidence.favours(hounsfield=modality == "CT")
    if found is not None:
        return {"signed": bool(found)}, DecisionKind.SIGN_BY_PIXELS(sign=_name(bool(found)))
    if stated is not None:
        return {"signed": stated}, DecisionKind.SIGN_BY_OTHER_SLICES(sign=_name(stated))
    hint = pictures[0].layout.sign_hint
    if hint:
        return {"signed": hint == "SS"}, DecisionKind.SIGN_BY_OTHER_ELEMENTS(sign=_name(hint == "SS"))
    if modality != "CT":
        return {"signed": False}, DecisionKind.SIGN_ASSUMED()
    raise Rejection(
        Reason.MISSING_METADATA, "PixelRepresentation is missing, and the pixels do not tell whether they are signed"
    )


def _compare(pictures: Sequence[Picture], one: _Change, other: _Change) -> _Evidence:
    evidence = _Evidence(differing=0, possible=np.zeros(2), rough=np.zeros(2))
    for picture, raw in zip(pictures, _raw(pictures), strict=True):
        readings = []
        for change in (one, other):
            layout = replace(picture.layout, transfer_syntax="", **change)
            values, _ = clean_bits(raw.view(layout.dtype), layout)
            readings.append(values.astype(np.int64))
        differs = readings[0] != readings[1]
        count = int(np.count_nonzero(differs))
        if not count:
            continue
        evidence.differing += count
        for number, values in enumerate(readings):
            scaled = values[differs] * picture.slope + picture.intercept
            evidence.possible[number] += np.count_nonzero((scaled >= POSSIBLE_HU[0]) & (scaled <= POSSIBLE_HU[1]))
        for axis in (0, 1):
            steps = [abs(np.diff(values, axis=axis)) for values in readings]
            telling = np.diff(readings[0], axis=axis) != np.diff(readings[1], axis=axis)
            evidence.rough += [step[telling].sum() for step in steps]
    return evidence


def _raw(pictures: Sequence[Picture]) -> Iterator[NDArray[np.unsignedinteger]]:
    """All bits of the stored pictures, as unsigned numbers of the machine's byte order."""
    bits = pictures[0].layout.bits_allocated
    whole = {"signed": False, "bits_stored": bits, "high_bit": bits - 1}
    for stored, _ in _stored([_with(picture, whole) for picture in pictures]):
        yield np.ascontiguousarray(stored).astype(f"u{bits // 8}", copy=False)


def _stored(pictures: Sequence[Picture]) -> Iterator[tuple[NDArray[np.generic], bool]]:
    return stored_pictures((picture.path, picture.layout, picture.index) for picture in pictures)


def _with(picture: Picture, change: _Change) -> Picture:
    return replace(picture, layout=replace(picture.layout, **change))


def _name(signed: bool) -> str:
    return "signed" if signed else "unsigned"
