"""What was found and done about a scan: decisions of named kinds, each with the one line of text that is stored.

A decision is made by its kind, ``DecisionKind.TILTED(tilt_deg=18.5)``, and is a line of text that knows its kind. The
manifest stores the text alone; `kind_of` gives the kind of a text from disk back, whichever version wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from string import Formatter


class Decision(str):
    """One line of text, free of patient text, that knows its kind.

    Attributes:
        kind: What it says, apart from its numbers and names.
    """

    __slots__ = ("kind",)
    kind: DecisionKind

    def __new__(cls, kind: DecisionKind, text: str) -> Decision:
        """A line of that kind; made by the kind itself."""
        made = super().__new__(cls, text)
        made.kind = kind
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return Decision, (self.kind, str(self))


class DecisionKind(Enum):
    """The kinds of decisions, each with the template of its text."""

    # DICOM: which pictures are a volume
    LARGEST_GROUP = "the largest of {count:d} groups of pictures in the series"
    ONE_OF_GROUPS = "one of {count:d} groups of pictures under one series UID, told apart by series number"
    ONE_OF_OWNERS = "one of {count:d} sets of pictures under one series UID, told apart by {names}"
    ID_SPELT = (
        "the patient's id is written in {count:d} ways: one patient, as study, frame of reference and step are one"
    )
    ONE_OF_VOLUMES = "volume {number:d} of {count:d} {why}"
    CUT_AT_HOLE = "part {number:d} of {count:d}: cut where more than {most:d} slices are missing"
    STRAY_SLICES = "{count:d} slices say another {names} than those around them: kept in their place"
    COPIES_DROPPED = "pictures with the same place and pixels as another: {count:d} dropped"
    DAMAGED_COPIES = "{count:d} pictures that are cut short left out: another at the same place is whole"
    ONLY_BY_INSTANCE = "{count:d} volumes told apart only by the order of their instances: the first is kept"
    PICTURES_LEFT_OUT = "{count:d} other pictures of the series left out"
    FILES_LEFT_OUT = "{count:d} files of the series left out: {fault}"

    # DICOM: where its slices lie
    SLICES = "{count:d} slices of {modality}, {step_mm:.3f} mm apart"
    MOSAIC_CUT = "Siemens mosaic cut into {tiles:d} slices"
    MULTI_FRAME = "multi-frame file of {count:d} frames"
    GEOMETRY_ASSUMED = "the file has no geometry of its frames: {assumed}"
    GEOMETRY_ESTIMATED = (
        "by the head that is seen, pixels may be {pixel_mm:.2f} mm within {pixel_percent:d} %, slices {step_mm:.2f} mm "
        "apart within {step_percent:d} %, {way}: what of it the file does not say was taken so"
    )
    DOUBT_REFUTED = "a word of the header says otherwise, but its slices are those of a full stack"
    STRAIGHTENED = "the direction cosines are rounded: made perpendicular unit vectors"
    ROUNDED_GEOMETRY = "orientation or pixel spacing is rounded in {count:d} slices: that of the others is taken"
    TILTED = "gantry tilt of {tilt_deg:.1f} degrees kept as shear"
    MISSING_SLICES = "missing slices: {count:d}, interpolated between true positions"
    UNEVEN_SLICES = "uneven slices, {low_mm:.3f} to {high_mm:.3f} mm apart: true positions kept"

    # DICOM: how its bits are read
    UNSIGNED_BUT_SIGNED = "PixelRepresentation says unsigned, the pixels are plainly signed: read as signed"
    HIGH_BIT_CONTRADICTED = "HighBit contradicts the bits that the pixels use: read from the lowest up"
    MORE_BITS_READ = "the pixels use more bits than BitsStored says: all were read"
    STRAY_BITS_CUT = "bits beyond BitsStored were cut off"
    SIGN_IRRELEVANT = "PixelRepresentation is missing: no stored value depends on it"
    SIGN_BY_PIXELS = "PixelRepresentation is missing: {sign} by the pixels"
    SIGN_BY_OTHER_SLICES = "PixelRepresentation is missing in some slices: {sign} as in the others"
    SIGN_BY_OTHER_ELEMENTS = "PixelRepresentation is missing: {sign} by the type of other elements"
    SIGN_ASSUMED = "PixelRepresentation is missing: unsigned assumed"

    # DICOM: what its numbers mean
    RESCALED_SLICEWISE = "rescaled slice by slice ({count:d} different slopes or intercepts)"
    PADDING_SET = "{count:d} padding voxels set to {value:d}"
    PADDING_NOT_APPLIED = "padding value lies among tissue values: not applied"
    SLOPE_ASSUMED = "the rescale slope is missing: 1 assumed"
    INTERCEPT_ZERO_ASSUMED = "the rescale intercept is missing: 0 assumed"
    INTERCEPT_ASSUMED = "the rescale intercept is missing: {intercept:d} assumed, since {why}"
    RESCALE_FILLED = (
        "the rescale slope or intercept is missing in {lacking:d} of {count:d} slices: "
        "{filled:d} read with that of the others"
    )
    RESCALE_NEEDLESS = "{count:d} slices without rescale slope or intercept resemble their neighbours as they are"
    RESCALE_OVERRULED = (
        "the rescale slope or intercept of {count:d} slices contradicts their neighbours: that of most taken"
    )
    RESCALE_BY_AIR = (
        "the rescale slope or intercept of {count:d} slices contradicts that of as many others: "
        "the one with which air and soft tissue lie at -1000 and 0 HU was taken"
    )
    PRIVATE_SCALE_UNDONE = "a private scale slope that differs between the slices was taken out"
    PHOTOMETRIC_ASSUMED = "PhotometricInterpretation is missing: taken as MONOCHROME2"
    HU_BY_AIR = "{doubt}: taken as HU, since air lies at about -1000"
    HU_AS_STORED = (
        "the rescale slope and intercept were not applied: air and soft tissue lie at -1000 and 0 HU as they are "
        "stored, and not once rescaled"
    )
    HU_BY_SIGN = (
        "rescale slope and intercept are missing: taken as HU, since the pixels are signed and no tissue lies at 1024"
    )
    INVERTED_BUT_DARK = "MONOCHROME1, but air is stored darker than the head: taken as it is"
    TURNED_ROUND = "MONOCHROME1: the values were turned round, so that air is dark"
    NO_MAGNITUDE = "the header says {part} of a complex MR, and not its magnitude: look whether it shows anatomy"
    PET_OTHER_UNIT = "PET in other units than Bq/ml"
    PET_UNIT_FILLED = "Units is missing in {lacking:d} of {count:d} slices of the PET: taken as in the others"
    PET_NO_UNIT = "PET without rescale slope and intercept: its values are in no known unit"

    # NIfTI and other volume files
    READ_AS = "read as {format}"
    ONE_VOLUME = "one volume of a {count:d}-dimensional file"
    BIG_ENDIAN = "big-endian voxels"
    HEADER_SCALE = "header scale {slope:.6g} and offset {inter:.6g} applied"
    BEYOND_FLOAT32 = "values beyond the range of float32: divided by 2^{exponent:d}"
    SFORM_SINGULAR = "the sform is singular; the qform is used"
    FORMS_DISAGREE = "qform and sform disagree; the sform is used"
    NO_SFORM = "no sform; the qform is used"
    NO_QFORM = "no qform; the sform is used"
    OTHER_LENGTH_UNIT = "coordinates in units of {unit_mm:g} mm"

    # Tables and masks of the sources
    AGE_SENSELESS = "the table's age makes no sense: left out"
    AGE_IS_BOUND = "the table's age is a lower bound: taken as that number"
    SEX_SENSELESS = "the table's sex makes no sense: left out"
    TABLE_CONTRADICTS = "the table contradicts itself about the {name}: left out"
    ROWS_CONTRADICT = "its rows contradict each other about the {name}: left out"
    LISTED_TWICE = "train.csv lists the series {count:d} times"
    MODALITY_UNKNOWN = "train.csv names no known modality: the DICOM header's is taken"
    CONTRAST_UNKNOWN = "the table names no known contrast: that of the file's name is taken"
    MODALITY_DIFFERS = "train.csv says {said}, the DICOM header {read}"
    NO_LABELS = "no labels: {why}"
    POINT_WITHOUT_LABEL = "train_localizers.csv has a point ({location}) where train.csv has none"
    LOCALIZER_UNREADABLE = "localizer dropped: its coordinates or location cannot be read"
    LOCATIONS_CONTRADICTED = "location.txt contradicts the {other}, {why}: {taken}"
    LOCALIZER_DROPPED = "localizer dropped ({location}): {why}"
    VESSELS_DROPPED = "mask dropped: {why}"
    ANATOMY_USED = "anatomy mask used"
    DEFACE_USED = "deface mask used"
    MASK_MISSING = "the {mask} mask is listed but missing"
    MASK_LEFT_OUT = "the {mask} mask was left out: {why}"
    LABELS_USED = "mask of labels used"
    LABELS_PLACED_OTHERWISE = "the mask has as many voxels as the image, but lies up to {moved_mm:.1f} mm apart from it"
    CONTRAST_OVERRULED = "taken as {taken} by {by}; {other} says {said}"
    CT_BY_VALUES = "nothing names the contrast: taken as CT in HU, since air lies at about -1000"
    MR_BY_VALUES = "nothing names the contrast, and values are no Hounsfield units: taken as an MRI"
    MAY_BE_CT = "taken as {taken}, though its values look like Hounsfield units"
    SIDECAR_UNREADABLE = "the JSON sidecar cannot be read: {why}"
    ANATOMY_MISSES = "the anatomy mask misses the image; the foreground was found by threshold"
    DEFACE_EMPTY = "the deface mask marks nothing of the image: nothing was removed"
    PNG_RUN = "slices {first:03d} to {last:03d}, spacing from the table"
    SPACING_OF_OTHER_SIZE = "pictures of {found} pixels, not {said} as the table says: its spacing times {times:.4g}"
    ORIGIN_UNKNOWN = "origin unknown, set to 0"
    CLIPPED_ABOVE = "{count:d} voxels above {high:d} HU were clipped"
    SLICES_LACKING = "{count:d} of the {total:d} slices that the table gives are not there"
    SLICES_TWICE = "{count:d} slice numbers stand on several files: the name of three digits is taken"

    # Harmonizing
    SLICES_ALTERNATE = "slices alternate in intensity: look whether two volumes were woven into one"
    NOT_FINITE = "{count:d} voxels that are not finite were set to the lowest value"
    NO_BRAIN = "no brain found by SynthStrip"
    BRAIN_FOUND = "brain of {volume_ml:.0f} ml found by SynthStrip"
    BRAIN_ALONE = "all but the brain was blanked"
    BIAS_CORRECTED = "bias field corrected by N4"
    CROPPED = "cropped to {box} of {shape} voxels"
    CROP_WIDENED = "the crop was widened for labelled places"
    CIRCLE_CUT = "cut to {size} mm around the circle of Willis: {box} of {shape} voxels"
    CIRCLE_IN_A_PART = "the box around the circle of Willis was laid in one part of a series"
    POINTS_OUTSIDE = "{count:d} of {total:d} localizers lie outside of the box around the circle of Willis"
    LABELS_CUT = "{percent:.1f} % of the labelled voxels lie outside of the box around the circle of Willis"
    VESSELS_CUT = "{percent:.1f} % of the vessel mask lie outside of the box around the circle of Willis"
    BOX_BY_OUTLINE = "the box of the arteries was laid by the head's outline: {why}"
    CLIPPED_INT16 = "{count:d} voxels beyond the int16 range were clipped"

    # A whole run
    PARTLY_READ = "a file of the scan could not be read: it is tried again in the next run"
    LABELS_CONTRADICTED = "another scan with the same voxels has other labels: neither's are used"
    VALUES_CONTRADICTED = "another scan with the same voxels has another {names}: left out"
    COPY_DIFFERS = "another scan with the same voxels has other {names}: this one's are kept"

    def __call__(self, **values: object) -> Decision:
        """The decision of this kind with these values.

        Example:
            >>> DecisionKind.MISSING_SLICES(count=2)
            'missing slices: 2, interpolated between true positions'
        """
        return Decision(self, self.value.format(**values))


ROUTINE = frozenset(
    {
        DecisionKind.SLICES,
        DecisionKind.MOSAIC_CUT,
        DecisionKind.MULTI_FRAME,
        DecisionKind.TILTED,
        DecisionKind.BIAS_CORRECTED,
        DecisionKind.BRAIN_FOUND,
        DecisionKind.BRAIN_ALONE,
        DecisionKind.CROPPED,
        DecisionKind.CIRCLE_CUT,
        DecisionKind.LABELS_CUT,
        DecisionKind.VESSELS_CUT,
        DecisionKind.PADDING_SET,
        DecisionKind.RESCALED_SLICEWISE,
        DecisionKind.STRAIGHTENED,
        DecisionKind.BIG_ENDIAN,
        DecisionKind.HEADER_SCALE,
        DecisionKind.LABELS_USED,
        DecisionKind.ANATOMY_USED,
        DecisionKind.DEFACE_USED,
    }
)
"""Kinds that say how a sound scan was handled. A new kind is unusual until it is named here, so that none is passed
over by mistake."""

_EARLIER = (
    (DecisionKind.GEOMETRY_ASSUMED, "the file has no geometry: taken as axial, in frame order, with assumed spacing"),
)
"""Texts of version 0.1.0 that were changed since."""


def unusual(lines: Iterable[str]) -> list[str]:
    """The decisions that a person should hear of, because they are no matter of course; in their order.

    Example:
        >>> unusual(["40 slices of CT, 3.000 mm apart", "missing slices: 2, interpolated between true positions"])
        ['missing slices: 2, interpolated between true positions']
    """
    return [line for line in lines if kind_of(line) not in ROUTINE]


def kind_of(line: str) -> DecisionKind | None:
    """The kind of a decision, or of a text that any version stored; None of a text that none wrote.

    Example:
        >>> kind_of("gantry tilt of 18.5 degrees kept as shear")
        <DecisionKind.TILTED: 'gantry tilt of {tilt_deg:.1f} degrees kept as shear'>
    """
    if isinstance(line, Decision):
        return line.kind
    found = _TEXTS.get(_start(line), _TEXTS[""]).fullmatch(line)
    return DecisionKind[found.lastgroup.rstrip("_")] if found and found.lastgroup else None


def _start(text: str) -> str:
    """What texts are kept apart by, so that each is compared with few patterns."""
    return _NUMBER if text[:1].isdecimal() else text[:1]


def _pattern(template: str) -> str:
    """A regular expression of the texts that a template makes."""
    parts = []
    for literal, field, form, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if field is not None:
            parts.append(r"-?\d+" if form and form.endswith("d") else r"\S+" if form else ".+")
    return "".join(parts)


def _patterns() -> dict[str, re.Pattern[str]]:
    """By how they start, the texts of all kinds as groups that bear their names."""
    found: dict[str, list[str]] = {"": []}
    for kind in DecisionKind:
        for number, template in enumerate((kind.value, *(text for of, text in _EARLIER if of is kind))):
            ((literal, _, form, _), *_) = Formatter().parse(template)
            start = literal[:1] or (_NUMBER if form else "")
            found.setdefault(start, []).append(f"(?P<{kind.name}{'_' * number}>{_pattern(template)})")
    # Those that begin with any words are compared with every text, after all others.
    return {start: re.compile("|".join(patterns + found[""] * bool(start))) for start, patterns in found.items()}


_NUMBER = "0"
_TEXTS = _patterns()
