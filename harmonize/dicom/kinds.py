"""Tell scans from scouts, captures and other objects by what their DICOM header says, without looking at pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from harmonize.errors import Reason, Rejection

MODALITIES = ("CT", "MR", "PT")

_STORAGE = "1.2.840.10008.5.1.4.1.1."
IMAGE_CLASSES = {
    _STORAGE + "2": "CT",
    _STORAGE + "2.1": "CT",
    _STORAGE + "2.2": "CT",
    _STORAGE + "4": "MR",
    _STORAGE + "4.1": "MR",
    _STORAGE + "4.4": "MR",
    _STORAGE + "128": "PT",
    _STORAGE + "128.1": "PT",
    _STORAGE + "130": "PT",
}
"""SOP classes of CT, MR and PET images: classic, enhanced and legacy converted (PS3.4 annex B.5)."""

MULTI_FRAME_CLASSES = frozenset(_STORAGE + end for end in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))

CAPTURE_CLASSES = frozenset(_STORAGE + end for end in ("7", "7.1", "7.2", "7.3", "7.4"))
"""Secondary capture: pictures of a screen or of paper."""

PARAMETRIC_MAP_CLASS = _STORAGE + "30"
"""Float pixels, or whole numbers, that stand for what was computed from pictures."""

_NO_IMAGE_CLASSES = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10"  # media storage directory
    r"|5\.1\.4\.1\.1\.(481|88|66|11|9|104|4\.2|67|68|78|79)(\.|$)"  # RT, SR, SEG and raw, presentation, waveform ...
    r"|5\.1\.4\.(32|34|38|39)\.)"
    r"|1\.3\.12\.2\.1107\.5\.9\.1$"  # Siemens CSA non-image
    r"|1\.3\.46\.670589\."  # Philips private
)
_NO_IMAGE_MODALITIES = frozenset(
    {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "SR", "SEG", "PR", "KO", "REG", "DOC", "AU", "ECG", "HD"}
    | {"FID", "PLAN", "M3D", "RAW", "RWV", "ANN", "TEXTUREMAP"}
)

_LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"})
_SCOUT_SEQUENCES = re.compile(r"(?<![a-z])(aahead_?scout|aahscout)(?![a-z])")
"""Names of Siemens' own scout sequences: whole heads in one orientation, but scouts by what they are."""
_LOCALIZER_WORDS = re.compile(
    r"(?<![a-z])(locali[sz]er|scout|topogram|surview|survey|scanogram|3[- ]?plane|3[- ]?pl[- ]?loc)(?![a-z])"
)
LOCALIZER = Rejection(Reason.LOCALIZER, "a localizer")
_DERIVED_TYPES = frozenset(
    {"MPR", "MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP", "MEAN_IP", "PROJECTION", "PROJECTION IMAGE", "CURVED"}
    | {"REFORMATTED", "VRT", "VOLREN", "SSD", "RENDERED", "VOLUME RENDERED", "3D RENDERING", "3DRECON"}
    | {"SCREENSAVE", "SCREEN SAVE", "SECONDARY CAPTURE"}
    | {"CSA MPR", "CSA MIP", "CSA 3D EDITOR", "CSA REPORT", "CSA BLACK IMAGE"}
)
_UNCORRECTED_WORDS = re.compile(r"(?<![a-z])(no[ _-]?ac|nac|non[ _-]?ac|uncorrected|no[ _-]?att\w*)(?![a-z])")

_CONTRASTS = {
    "T1": "T1w",
    "T2": "T2w",
    "T2_STAR": "T2starw",
    "PROTON_DENSITY": "PDw",
    "FLUID_ATTENUATED": "FLAIR",
    "TIME_OF_FLIGHT": "MRA",
    "DIFFUSION": "DWI",
}
"""Acquisition Contrast (0008,9209) of enhanced MR, PS3.3 C.8.13.3.1.1, by the corpus's names."""

_MAPS = {"ADC": "ADC", "FA": "FA", "TRACEW": "TRACE", "TRACE": "TRACE", "SWI": "SWI"}

_COMPLEX_PARTS = {
    "phase": {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "PHASEMAP", "VELOCITY MAP", "VELOCITY_MAP"},
    "real part": {"R", "REAL"},
    "imaginary part": {"I", "IMAGINARY"},
}
"""What pictures of a complex MR other than its magnitude are called in ImageType (from its third value on), and in
Complex Image Component (0008,9208)."""

_COMPLEX_PARTS_GE = {1: "phase", 2: "real part", 3: "imaginary part"}
"""GE's private number of the same (0043,102F); 0 is the magnitude."""


def is_image(sop_class: str, modality: str) -> bool:
    """Whether a DICOM object is a picture at all; structure sets, reports, segmentations, raw data ... are not."""
    if sop_class in IMAGE_CLASSES or sop_class in CAPTURE_CLASSES:
        return True
    return not _NO_IMAGE_CLASSES.match(sop_class) and modality not in _NO_IMAGE_MODALITIES


def scan_modality(sop_class: str, modality: str) -> str:
    """``CT``, ``MR`` or ``PT``, from the modality or else the SOP class; anything else as it is written."""
    return modality if modality in MODALITIES else IMAGE_CLASSES.get(sop_class, modality)


def rejection(
    *,
    sop_class: str,
    modality: str,
    image_type: Collection[str],
    description: str,
    corrections: Collection[str] = (),
    attenuation_method: str = "",
    keep_derived: bool = False,
) -> Rejection | None:
    """Why an image is no scan, or None.

    Args:
        sop_class: SOP Class UID.
        modality: As `scan_modality` gives it.
        image_type: The values of ImageType (or FrameType), upper case.
        description: Series description; only names of scout sequences and words for uncorrected PET are looked for.
        corrections: CorrectedImage of a PET.
        attenuation_method: AttenuationCorrectionMethod of a PET.
        keep_derived: Accept reformats, for sources that have chosen their series by hand.

    Example:
        >>> rejection(sop_class="", modality="CT", image_type=["ORIGINAL", "LOCALIZER"], description="").reason
        <Reason.LOCALIZER: 'localizer'>
    """
    types = {part.upper() for part in image_type}
    words = description.lower()
    if sop_class in CAPTURE_CLASSES:
        return Rejection(Reason.DERIVED, "a secondary capture")
    if sop_class == PARAMETRIC_MAP_CLASS:
        return Rejection(Reason.DERIVED, "a parametric map: float pixels that were computed from other pictures")
    if modality not in MODALITIES:
        return Rejection(Reason.UNSUPPORTED_MODALITY, "neither CT, MR nor PET")
    if types & _LOCALIZER_TYPES or _SCOUT_SEQUENCES.search(words):
        return LOCALIZER
    if types & _DERIVED_TYPES and not keep_derived:
        return Rejection(Reason.DERIVED, "a reformat or projection of another series")
    if modality == "PT" and _is_uncorrected(corrections, attenuation_method, words):
        return Rejection(Reason.DERIVED, "PET without attenuation correction")
    return None


@lru_cache(maxsize=256)
def doubt(description: str) -> Rejection | None:
    """Why an image may be no scan by the words of its series description, which its geometry can refute; or None.

    Example:
        >>> doubt("CTA HEAD (no scout)").reason
        <Reason.LOCALIZER: 'localizer'>
    """
    return LOCALIZER if _LOCALIZER_WORDS.search(description.lower()) else None


@lru_cache(maxsize=256)
def complex_part(image_type: str, component: str = "", component_ge: str = "") -> str:
    """Which part of a complex MR a picture shows, if it is not the magnitude; else empty.

    Args:
        image_type: ImageType or FrameType, its values separated by backslashes.
        component: ComplexImageComponent.
        component_ge: The bytes of GE's number of it, in hexadecimal.

    Example:
        >>> complex_part("ORIGINAL\\\\PRIMARY\\\\P\\\\ND"), complex_part("ORIGINAL\\\\PRIMARY\\\\M")
        ('phase', '')
    """
    values = {component.upper()} if component else {part.strip() for part in image_type.upper().split("\\")[2:]}
    told = next((part for part, names in _COMPLEX_PARTS.items() if values & names), "")
    if told or component or len(component_ge) != 4:
        return told
    return _COMPLEX_PARTS_GE.get(int(component_ge.replace("00", "") or "0", 16), "")


def mr_contrast(
    *,
    image_type: Sequence[str],
    acquisition_contrast: str = "",
    sequence: Collection[str] = (),
    sequence_name: str = "",
    angio: bool = False,
    b_value: float = math.nan,
    repetition_ms: float = math.nan,
    echo_ms: float = math.nan,
    inversion_ms: float = math.nan,
) -> str:
    """The contrast of an MR image by its physics, or plain ``MR`` where that is not certain.

    The thresholds are deliberately far apart (a short or a long time, nothing between): a wrong name would put a scan
    into the wrong intensity standard, no name only into a wider one.

    Args:
        image_type: The values of ImageType.
        acquisition_contrast: Of enhanced MR.
        sequence: ScanningSequence: SE, IR, GR, EP ...
        sequence_name: SequenceName or PulseSequenceName.
        angio: AngioFlag or TimeOfFlightContrast.
        b_value: Diffusion b-value, s/mm^2.
        repetition_ms: RepetitionTime.
        echo_ms: EchoTime.
        inversion_ms: InversionTime.

    Example:
        >>> mr_contrast(image_type=[], sequence=["SE"], repetition_ms=4500, echo_ms=95)
        'T2w'
        >>> mr_contrast(image_type=[], sequence=["SE"], repetition_ms=2000, echo_ms=40)
        'MR'
    """
    for part in image_type:
        if part.upper() in _MAPS:
            return _MAPS[part.upper()]
    if b_value > 0 or "DIFFUSION" in image_type:
        return "DWI"
    if acquisition_contrast in _CONTRASTS:
        return _CONTRASTS[acquisition_contrast]
    if angio or "tof" in sequence_name.lower():
        return "MRA"
    if "EP" in sequence:
        return "MR"
    if inversion_ms >= 1500 and echo_ms >= 70:
        return "FLAIR"
    if "GR" in sequence and 500 <= inversion_ms <= 1300 and echo_ms <= 10:
        return "T1w"
    if "SE" in sequence and "GR" not in sequence and not inversion_ms > 0:
        if repetition_ms <= 900 and echo_ms <= 25:
            return "T1w"
        if repetition_ms >= 2000 and echo_ms >= 75:
            return "T2w"
    return "MR"


def _is_uncorrected(corrections: Collection[str], method: str, words: str) -> bool:
    if corrections:
        return "ATTN" not in corrections
    if method:
        return method.upper() == "NONE"
    return bool(_UNCORRECTED_WORDS.search(words))
