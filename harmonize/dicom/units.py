"""Make sure that values are what their label says: a CT in Hounsfield units, a PET in Bq/ml, an MR dark in air.

Nothing is computed for a CT whose header gives slope and intercept, and leaves nothing open, once its values show air
and soft tissue where these lie in HU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.headers import Frame
from harmonize.dicom.kinds import complex_part
from harmonize.dicom.looks import ReadPictures
from harmonize.dicom.meaning import Meaning
from harmonize.errors import Reason, Rejection
from harmonize.scan import ACTIVITY, AIR_HU, ARBITRARY, HU

AIR_RANGE = (-1100, -900)
"""HU of air with its noise. `AIR_HU` itself counts not: padding is stored like that in all kinds of units."""
AIR_SHARE = 0.01
"""A picture of a head shows more air than that; tissue never lies there."""

TISSUE_WITHOUT_INTERCEPT = (874, 1174)
"""Soft tissue and fluids, -150 to 150 HU, where an intercept of -1024 is missing."""
FEW_WITHOUT_INTERCEPT = (150, 874)
"""There lies little then: between air and fat. In HU it is where contrast agent and spongy bone lie."""
TISSUE_SHARE, TISSUE_SHARE_UNSIGNED = 0.05, 0.01
"""So much of it is evidence enough; less, where no value is negative, as air would be in HU."""

MIN_SPAN_HU = 1000.0
"""What cannot hold both air and water is no CT in HU: eight bits of a window, a map with a small slope."""

_LOOKED_AT = 16
"""So many slices are read as they are stored where the rescaled ones show no head."""

_SMALL = 1 << 20
_CLEAR_SHARE = 0.1
"""Of the range of an MR: by so much the air around a head has to differ from its middle."""


class Evidence(Enum):
    """What the values of a CT show."""

    HOUNSFIELD = auto()
    INTERCEPT_LOST = auto()
    INTERCEPT_MAY_BE_LOST = auto()
    NOTHING = auto()


def settle_units(
    voxels_ZYX: NDArray[Any], frames: Sequence[Frame], *, stated: bool, read: ReadPictures
) -> tuple[NDArray[Any], str, list[Decision]]:
    """Bring values into the unit that is said of them.

    Args:
        voxels_ZYX: The rescaled values of a volume; may be changed.
        frames: Its pictures, with settled slopes and intercepts.
        stated: The headers give a rescale intercept.
        read: Reads pictures of a CT again, should their rescaling be in doubt.

    Returns:
        (values, their unit, what was decided).

    Raises:
        Rejection: They are not what they have to be, or that cannot be told.
    """
    inverted = {frame.header.pixels.inverted for frame in frames}
    decisions: list[Decision] = []
    if not all(frame.header.pixels.photometric for frame in frames):
        decisions.append(DecisionKind.PHOTOMETRIC_ASSUMED())
    modality = frames[0].header.modality
    if modality == "CT":
        _check_span(frames)
        as_stored = all((frame.meaning.slope, frame.meaning.intercept) == (1, 0) for frame in frames)
        if not as_stored and not shows_head(voxels_ZYX, TISSUE_SHARE_UNSIGNED):
            stored_ZYX = _in_hounsfield_as_stored(frames, read)
            if stored_ZYX is not None:
                return stored_ZYX, HU, [*decisions, DecisionKind.HU_AS_STORED()]
        voxels_ZYX, noted = _in_hounsfield(voxels_ZYX, frames, stated, as_stored)
        return voxels_ZYX, HU, decisions + noted
    if inverted == {True, False}:
        raise _INVERTED_IN_SOME
    if True in inverted:
        voxels_ZYX, turned = _dark_in_air(voxels_ZYX, modality)
        decisions.append(turned)
    if modality != "PT":
        parts = dict.fromkeys(_complex_part(frame) for frame in frames)
        decisions += [DecisionKind.NO_MAGNITUDE(part=part) for part in parts if part]
        return voxels_ZYX, ARBITRARY, decisions
    unit, noted = _pet_unit(frames, stated)
    return voxels_ZYX, unit, decisions + noted


_NO_RESCALE = "rescale slope and intercept are missing"
_INVERTED = "MONOCHROME1 (the least value is white)"
_INVERTED_IN_SOME = Rejection(Reason.BAD_INTENSITY, f"{_INVERTED} in some slices only")


def hounsfield_evidence(voxels_ZYX: NDArray[Any]) -> Evidence:
    """What the values of a CT show: air at -1000, or soft tissue at 1024 and next to nothing where it should be."""
    sample = voxels_ZYX if voxels_ZYX.size < _SMALL else voxels_ZYX[::2, ::4, ::4]
    air = _share(sample, AIR_RANGE) - np.count_nonzero(sample == AIR_HU) / sample.size
    if air >= AIR_SHARE:
        return Evidence.HOUNSFIELD
    tissue = _share(sample, TISSUE_WITHOUT_INTERCEPT)
    if tissue < max(TISSUE_SHARE_UNSIGNED, 2 * _share(sample, FEW_WITHOUT_INTERCEPT)):
        return Evidence.NOTHING
    if tissue >= TISSUE_SHARE or sample.min() >= 0:
        return Evidence.INTERCEPT_LOST
    return Evidence.INTERCEPT_MAY_BE_LOST


def shows_head(values: NDArray[Any], tissue_share: float) -> bool:
    """Whether air and so much soft tissue lie where they do in HU, and little between them."""
    sample = values if values.size < _SMALL else values[::2, ::4, ::4]
    air = _share(sample, AIR_RANGE) - np.count_nonzero(sample == AIR_HU) / sample.size
    tissue, few = (
        _share(sample, (low + AIR_HU, high + AIR_HU)) for low, high in (TISSUE_WITHOUT_INTERCEPT, FEW_WITHOUT_INTERCEPT)
    )
    return bool(air >= AIR_SHARE and tissue >= max(tissue_share, 2 * few))


def _share(values: NDArray[Any], limits: tuple[float, float]) -> float:
    return float(np.count_nonzero((values >= limits[0]) & (values <= limits[1])) / values.size)


def _in_hounsfield_as_stored(frames: Sequence[Frame], read: ReadPictures) -> NDArray[Any] | None:
    """The values of a CT as they are stored where these show a head in HU, as the rescaled ones do not; else None.

    Tools that rescale pictures may leave the tags as they were. A CT without air, or of a small part of a head, shows
    nothing either way and stays as its header says.

    Raises:
        Rejection: They would be HU with another intercept than the header's.
    """
    bare = [replace(frame, meaning=replace(frame.meaning, slope=1.0, intercept=0.0)) for frame in frames]
    some_ZYX = read(bare[:: -(-len(bare) // _LOOKED_AT)])
    if some_ZYX is None:
        return None
    if shows_head(some_ZYX, TISSUE_SHARE):
        return read(bare)
    if any(_doubt(frame, stated=True) or _is_usual(frame.meaning) for frame in frames):
        return None
    if shows_head(some_ZYX.astype(np.float32) + AIR_HU, TISSUE_SHARE):
        raise Rejection(
            Reason.UNSUPPORTED_UNIT,
            "the rescale slope and intercept put neither air nor soft tissue where they lie in HU, and -1024 would",
        )
    return None


def _is_usual(meaning: Meaning) -> bool:
    low, high = AIR_RANGE
    return meaning.slope == 1 and low <= (meaning.intercept or 0.0) <= high


def _doubt(frame: Frame, stated: bool) -> str:
    """Why the values of a slice of a CT may not be in HU; empty where the header leaves nothing open."""
    if frame.meaning.doubtful:
        return "RescaleType does not say HU"
    if frame.header.pixels.inverted:
        return _INVERTED
    if (frame.meaning.slope or 0.0) < 0:
        return "the rescale slope is negative"
    return "" if stated else _NO_RESCALE


def _in_hounsfield(
    voxels_ZYX: NDArray[Any], frames: Sequence[Frame], stated: bool, as_stored: bool
) -> tuple[NDArray[Any], list[Decision]]:
    doubts = [_doubt(frame, stated) for frame in frames]
    found = dict.fromkeys(doubts)
    if not as_stored and not any(found):
        return voxels_ZYX, []
    # Each kind of slices has to show it by itself: the air of the sound ones says nothing about the others.
    evidences = {
        doubt: hounsfield_evidence(
            voxels_ZYX if len(found) == 1 else voxels_ZYX[np.array([own == doubt for own in doubts])]
        )
        for doubt in found
    }
    if as_stored and set(evidences.values()) == {Evidence.INTERCEPT_LOST}:
        voxels_ZYX += voxels_ZYX.dtype.type(AIR_HU)
        np.maximum(voxels_ZYX, AIR_HU, out=voxels_ZYX)
        why = "soft tissue is stored as about 1024"
        return voxels_ZYX, [DecisionKind.INTERCEPT_ASSUMED(intercept=AIR_HU, why=why)]
    return voxels_ZYX, [_decided(doubt, evidence, frames) for doubt, evidence in evidences.items() if doubt]


def _decided(doubt: str, evidence: Evidence, frames: Sequence[Frame]) -> Decision:
    if evidence is Evidence.HOUNSFIELD:
        return DecisionKind.HU_BY_AIR(doubt=doubt)
    if doubt == _NO_RESCALE and evidence is Evidence.NOTHING and _is_signed(frames):
        return DecisionKind.HU_BY_SIGN()
    if doubt == _INVERTED and not all(frame.header.pixels.inverted for frame in frames):
        raise _INVERTED_IN_SOME
    raise Rejection(Reason.UNSUPPORTED_UNIT, f"{doubt}, and the values do not show that they are HU")


def _is_signed(frames: Sequence[Frame]) -> bool:
    """Whether a header says that all values may be negative, as HU need to be."""
    return all(frame.header.pixels.signed or frame.header.pixels.floating for frame in frames)


def _check_span(frames: Sequence[Frame]) -> None:
    """Refuse values that cannot be HU, as few as they are.

    Raises:
        Rejection: Less than `MIN_SPAN_HU` lie between the least and the greatest value that may be stored.
    """
    for frame in frames:
        (low, high), slope = frame.header.pixels.stored_range, frame.meaning.slope
        if (high - low) * abs(slope or 0.0) < MIN_SPAN_HU:
            raise Rejection(
                Reason.UNSUPPORTED_UNIT, "the stored bits and the rescale slope leave no room for HU from air to water"
            )


def _dark_in_air(voxels_ZYX: NDArray[Any], modality: str) -> tuple[NDArray[Any], Decision]:
    """Turn the values of a MONOCHROME1 picture round if their edges are bright; a head lies in dark air."""
    _, rows, columns = voxels_ZYX.shape
    at_edge = np.ones((rows, columns), bool)
    width = max(1, min(rows, columns) // 16)
    at_edge[width : rows - width, width : columns - width] = False
    middle = np.zeros((rows, columns), bool)
    middle[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4] = True
    edge, centre = (float(np.nanmedian(voxels_ZYX[:, where])) for where in (at_edge, middle))
    low, high = np.nanpercentile(voxels_ZYX, (1, 99))
    if abs(edge - centre) <= _CLEAR_SHARE * (high - low) or (edge > centre and modality == "PT"):
        raise Rejection(
            Reason.BAD_INTENSITY, "MONOCHROME1 (the least value is white), and the pixels do not tell what is air"
        )
    if edge < centre:
        return voxels_ZYX, DecisionKind.INVERTED_BUT_DARK()
    if voxels_ZYX.dtype.kind == "f":
        return np.nanmax(voxels_ZYX) - voxels_ZYX, DecisionKind.TURNED_ROUND()
    turned = int(voxels_ZYX.max()) - voxels_ZYX.astype(np.int32)
    dtype = np.int16 if turned.max() <= np.iinfo(np.int16).max else np.uint16
    return turned.astype(dtype), DecisionKind.TURNED_ROUND()


def _complex_part(frame: Frame) -> str:
    return complex_part(*(frame.traits.get(name, "") for name in ("image_type", "component", "component_ge")))


def _pet_unit(frames: Sequence[Frame], stated: bool) -> tuple[str, list[Decision]]:
    units = {frame.header.units for frame in frames}
    lacking = sum(not frame.header.units for frame in frames)
    if len(units - {""}) > 1:
        raise Rejection(Reason.UNSUPPORTED_UNIT, "the slices of the PET are in different units")
    filled = [DecisionKind.PET_UNIT_FILLED(lacking=lacking, count=len(frames))] if 0 < lacking < len(frames) else []
    if "BQML" not in units:
        return ARBITRARY, [*filled, DecisionKind.PET_OTHER_UNIT()]
    if not stated:
        return ARBITRARY, [*filled, DecisionKind.PET_NO_UNIT()]
    return ACTIVITY, filled
