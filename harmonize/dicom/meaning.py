"""Read what the header of a DICOM file says that its stored numbers mean: rescaling, unit, grey scale."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from harmonize.dicom.elements import Elements
from harmonize.errors import Reason, Rejection

_PHILIPS_SCALE = 0x2005100E
_NUMERIC = frozenset({"FL", "FD", "DS", "IS"})

_HOUNSFIELD_TYPES = frozenset({"HU", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS"})
_UNSPECIFIED_TYPES = frozenset({"", "US", "UNSPECIFIED"})
_HOUNSFIELD_CODES = frozenset({"[HNSF'U]", "HNSF'U", "HU"})
_OTHER_TYPES = {
    "MGML": "mg/ml of a material",
    "Z_EFF": "effective atomic numbers",
    "ED": "electron densities",
    "EDW": "electron densities relative to water",
    "HU_MOD": "modified Hounsfield units",
    "PCT": "per cent",
    "OD": "optical densities",
}
"""Defined terms of RescaleType (PS3.3 C.11.1.1.2) that are no Hounsfield units."""

_MATERIAL_TYPES = frozenset({"MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"})
"""Values of ImageType by which multi-energy CT names its maps (PS3.3 C.8.15.2.1.1.6)."""

_MAP_TYPES = re.compile(
    r"(?<![A-Z])(R?CB[FV]|MTT|TTP|T[ _-]?MAX|PERMEABILITY|SUBTRACTION|ST(AN)?D[ _-]DEV(IATION)?)(?![A-Z])"
)
"""In values of ImageType: what was computed of several pictures, and is no HU any more (PS3.3 C.8.16.2.1.4, and the
maps of perfusion). PERFUSION itself is also said of the pictures that such maps are made of."""

_MAP_WORDS = re.compile(
    r"(?<![a-z])(r?cb[fv]|mtt|ttp|t[ _-]?max|perfusion|permeability|subtract\w*|std[ _-]?dev\w*|standard deviation"
    r"|iodine|z[ _-]?eff\w*|effective[ _-]?(z|atomic\w*)|rho[ _/-]*z|electron[ _-]?dens\w*"
    r"|(material|water|calcium|uric)[ _-]?(dens\w*|map|acid))(?![a-z])"
)

_COLOURS = frozenset(
    {"RGB", "ARGB", "HSV", "CMYK", "YBR_ICT", "YBR_RCT"}
    | {"YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"}
)
_GREYS = frozenset({"", "MONOCHROME1", "MONOCHROME2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What the stored numbers of one picture mean.

    Attributes:
        slope: Rescale slope, or None where the header has none.
        intercept: Rescale intercept, or None.
        doubtful: A CT whose header leaves open whether the rescaled values are Hounsfield units.
        scale: Philips' private scale slope of an MR, or None: it undoes what differs from picture to picture.
    """

    slope: float | None
    intercept: float | None
    doubtful: bool = False
    scale: float | None = None


def read_meaning(
    modality: str, groups: Sequence[Elements], *, image_type: Collection[str], description: str
) -> tuple[Meaning, Rejection | None]:
    """Read what the values of one picture mean.

    Args:
        modality: ``CT``, ``MR``, ``PT`` ...
        groups: Where to look, the first that has an element counts: a frame's functional groups, the file's header.
        image_type: ImageType and FrameType, upper case.
        description: Series description; its words only raise the question, which the pixels answer.

    Returns:
        (meaning, why a picture of a CT holds no Hounsfield units or None).
    """
    slope, intercept = _first_number(groups, 0x00281053), _first_number(groups, 0x00281052)
    if modality != "CT":
        return Meaning(
            slope=slope, intercept=intercept, scale=_philips_scale(groups) if modality == "MR" else None
        ), None
    kind, mappings = _first_text(groups, 0x00281054).upper(), _first_items(groups, 0x00409096)
    units = [_unit_code(item) for item in mappings]
    hounsfield = [item for item, unit in zip(mappings, units, strict=True) if unit in _HOUNSFIELD_CODES]
    rejection = _unit_rejection(kind, units, image_type)
    if hounsfield and slope is None and intercept is None:
        slope, intercept = hounsfield[0].number(0x00409225), hounsfield[0].number(0x00409224)
        slope, intercept = (None, None) if math.isnan(slope) or math.isnan(intercept) else (slope, intercept)
    said = kind in _HOUNSFIELD_TYPES or bool(hounsfield)
    doubtful = not said and (bool(kind) or _names_a_map(description) or "PERFUSION" in image_type)
    return Meaning(slope=slope, intercept=intercept, doubtful=doubtful), rejection


def grey_rejection(samples: int, photometric: str) -> Rejection | None:
    """Why a picture has no grey values, or None.

    Args:
        samples: SamplesPerPixel.
        photometric: PhotometricInterpretation, upper case; empty counts as MONOCHROME2.

    Example:
        >>> grey_rejection(1, "MONOCHROME2") is None
        True
    """
    if samples != 1 or photometric in _COLOURS:
        return Rejection(Reason.DERIVED, "a colour picture")
    if photometric == "PALETTE COLOR":
        return Rejection(
            Reason.UNSUPPORTED_ENCODING, "a picture in PALETTE COLOR: its numbers are colours and no intensities"
        )
    if photometric not in _GREYS:
        return Rejection(Reason.UNSUPPORTED_ENCODING, "a PhotometricInterpretation that is no grey scale")
    return None


@lru_cache(maxsize=256)
def _names_a_map(description: str) -> bool:
    return bool(_MAP_WORDS.search(description.lower()))


def _unit_rejection(kind: str, units: Sequence[str], image_type: Collection[str]) -> Rejection | None:
    if kind not in _HOUNSFIELD_TYPES and kind not in _UNSPECIFIED_TYPES:
        unit = f"{_OTHER_TYPES[kind]} ({kind})" if kind in _OTHER_TYPES else "another unit"
        return Rejection(Reason.UNSUPPORTED_UNIT, f"RescaleType says {unit} and not HU")
    if kind not in _HOUNSFIELD_TYPES and units and not _HOUNSFIELD_CODES & set(units):
        return Rejection(Reason.UNSUPPORTED_UNIT, "the real world value mapping gives another unit than HU")
    if any(map(_MAP_TYPES.search, image_type)):
        return Rejection(
            Reason.UNSUPPORTED_UNIT, "ImageType says a map that was computed of pictures, and no picture in HU"
        )
    if _MATERIAL_TYPES.intersection(image_type):
        return Rejection(Reason.UNSUPPORTED_UNIT, "ImageType says a map of a material and no picture in HU")
    return None


def _unit_code(mapping: Elements) -> str:
    codes = mapping.items(0x004008EA)
    return codes[0].text(0x00080100).upper() if codes else ""


def _philips_scale(groups: Sequence[Elements]) -> float | None:
    for group in groups:
        value = group.raw(_PHILIPS_SCALE) if _PHILIPS_SCALE in group else b""
        if value:
            # Without a value representation nothing says that a private element is binary.
            numbers = group.numbers(_PHILIPS_SCALE) if group.representation(_PHILIPS_SCALE) in _NUMERIC else ()
            scale = numbers[0] if numbers else struct.unpack("<f", value)[0] if len(value) == 4 else math.nan
            return scale if math.isfinite(scale) and scale > 0 else None
    return None


def _first_number(groups: Sequence[Elements], tag: int) -> float | None:
    """The first number with that tag; NaN where it is none; None where it is absent or empty everywhere."""
    for group in groups:
        if tag in group and (numbers := group.numbers(tag)):
            return numbers[0]
    return None


def _first_text(groups: Sequence[Elements], tag: int) -> str:
    for group in groups:
        if tag in group and (text := group.text(tag)):
            return text
    return ""


def _first_items(groups: Sequence[Elements], tag: int) -> list[Elements]:
    for group in groups:
        if tag in group and (items := group.items(tag)):
            return items
    return []
