"""What the names of NIfTI files say: BIDS entities, nnU-Net's channels, contrasts, and whose image it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from harmonize.sources.nifti_labels import IMAGES_OF

CT_KINDS = frozenset({"CT", "CTA"})
"""Contrasts whose values are Hounsfield units."""

_SPELLINGS = {
    "CT": "ct ncct nect", "CTA": "cta", "PT": "pt pet",
    "T1w": "t1 t1w t1n mprage inplanet1", "T1post": "t1c t1ce t1gd t1post", "T2w": "t2 t2w inplanet2",
    "FLAIR": "flair t2f t2flair", "PDw": "pd pdw", "T2starw": "t2star t2starw", "MRA": "mra tof angio",
    "SWI": "swi", "minIP": "minip", "UNIT1": "unit1", "MP2RAGE": "mp2rage", "FLASH": "flash", "T1map": "t1map",
    "T2map": "t2map", "T2starmap": "t2starmap", "sbref": "sbref", "DWI": "dwi", "ADC": "adc", "FA": "fa", "MD": "md",
    "TRACE": "trace", "MR": "mr mri",
}  # fmt: skip
_CONTRASTS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
CONTRASTS = tuple(_SPELLINGS)
"""What this source knows an image to show."""

_AMOS = re.compile(r"amos_(?P<number>\d{4})(_0000)?")
_LAST_CT_OF_AMOS = 500
"""AMOS tells by the number of a case what it is, though its dataset.json calls all of them CT."""

_GROUPS = frozenset(
    {"images", "image", "train", "training", "val", "validation", "test", "testing", "anat", "nifti", "niftis", "nii",
     "data", "raw", "rawdata", "func", "perf", "scans", "volumes"}
)  # fmt: skip
"""Folders that hold many people's images, or one kind of them, in lower case: they name nobody."""

_PLAIN = frozenset({"image", "img", "scan", "volume", "vol", "head", "brain", "anat", "data"})
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_BETWEEN = re.compile(r"[_\-. ]+")
_ODD_PARTS = frozenset({"part-phase", "part-imag", "part-real"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """What the path of an image says.

    Attributes:
        subject: Whose it is: the BIDS subject, else the first folder that names somebody, else the name of the file
            without its contrast.
        session: Within the subject, or None.
        contrast: What it shows, of `CONTRASTS`, or None.
        bases: Names that a mask of it may have, the surest first.
        is_part: It holds the phase, or one part of complex numbers.
    """

    subject: str
    session: str | None
    contrast: str | None
    bases: tuple[str, ...]
    is_part: bool = False


def contrast_of(word: str) -> str | None:
    """The contrast that one word means, or None.

    Example:
        >>> [contrast_of(word) for word in ("T1w", "angio", "CTA", "Waldorf")]
        ['T1w', 'MRA', 'CTA', None]
    """
    return _CONTRASTS.get(word.strip().casefold())


def read_name(folders: tuple[str, ...], stem: str) -> ImageName:
    """What the folders below the root, and the name without its suffix, say of an image.

    Example:
        >>> found = read_name(("sub-01", "ses-2", "anat"), "sub-01_ses-2_ce-gd_T1w")
        >>> found.subject, found.session, found.contrast, found.bases
        ('sub-01', 'ses-2', 'T1post', ('sub-01_ses-2_ce-gd_T1w', 'sub-01_ses-2_ce-gd'))
        >>> found = read_name(("imagesTr",), "topcow_mr_001")
        >>> found.subject, found.contrast
        ('topcow_001', 'MR')
    """
    parts = stem.split("_")
    subject = next((part for part in (*folders, *parts) if part.startswith("sub-")), None)
    if subject is not None:
        return _bids(folders, stem, parts, subject)
    words = _BETWEEN.split(stem)
    known = {contrast_of(word) for word in words} - {None}
    people = [one for one in folders if not _is_group(one)]
    own = [word for word in words if contrast_of(word) is None]
    contrast = known.pop() if len(known) == 1 else None
    if contrast is None and not known:
        amos = _AMOS.fullmatch(stem)
        if amos is not None:
            contrast = "CT" if int(amos["number"]) <= _LAST_CT_OF_AMOS else "MR"
        else:
            contrast = next((found for one in reversed(folders) if (found := contrast_of(one))), None)
    case = "_".join(own) or stem
    # nnU-Net's folders hold all cases of a data set, whose own folder names nobody.
    in_data_set = bool(folders) and IMAGES_OF.fullmatch(folders[-1]) is not None
    first = "/".join((*people, case)) if in_data_set else people[0] if people else case
    last = contrast_of(words[-1])
    base = stem[: -len(words[-1])].rstrip("_-. ") if last else stem
    return ImageName(
        subject=first,
        session=None if in_data_set else "/".join(people[1:]) or None,
        contrast=contrast,
        bases=tuple(dict.fromkeys(name for name in (stem, base) if name)),
    )


def case_of(stem: str, labels: Collection[str], channels: Collection[int]) -> tuple[str, int]:
    """nnU-Net's case and channel of an image: ``BRATS_001_0000`` is channel 0 of ``BRATS_001``.

    Args:
        stem: Its name without suffix.
        labels: Names without suffix of those that it may have.
        channels: Numbers of those that dataset.json names.

    Example:
        >>> case_of("BRATS_001_0002", {"BRATS_001"}, range(4)), case_of("amos_0001", {"amos_0001"}, {0})
        (('BRATS_001', 2), ('amos_0001', 0))
        >>> case_of("amos_0007", (), {0})
        ('amos_0007', 0)
    """
    found = _CHANNEL.fullmatch(stem)
    if stem in labels or found is None:
        return stem, 0
    channel = int(found["channel"])
    return (found["case"], channel) if found["case"] in labels or channel in channels else (stem, 0)


def _bids(folders: tuple[str, ...], stem: str, parts: list[str], subject: str) -> ImageName:
    session = next((part for part in (*folders, *parts) if part.startswith("ses-")), None)
    suffix = parts[-1] if "-" not in parts[-1] else ""
    contrast = contrast_of(suffix)
    if contrast == "T1w" and any(part.startswith("ce-") for part in parts):
        contrast = "T1post"
    # Subjects of two data sets in one folder may have the same number.
    above = folders[: folders.index(subject)] if subject in folders else ()
    whose = [one for one in above if not _is_group(one)]
    base = "_".join(parts[:-1]) if suffix and len(parts) > 1 else stem
    return ImageName(
        subject="/".join((*whose, subject)),
        session=session,
        contrast=contrast,
        bases=tuple(dict.fromkeys((stem, base))),
        is_part=not _ODD_PARTS.isdisjoint(parts),
    )


def _is_group(folder: str) -> bool:
    low = folder.casefold()
    return low in _GROUPS or IMAGES_OF.fullmatch(folder) is not None or contrast_of(low) is not None
