"""What the names of NIfTI files say: BIDS entities, nnU-Net's channels, contrasts, and whose image it is."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

from harmonize.sources.contrast_words import BETWEEN, Reading, contrast_of, contrast_of_folder, read_words
from harmonize.sources.nifti_labels import IMAGES_OF

CT_KINDS = frozenset({"CT", "CTA"})
"""Contrasts whose values are Hounsfield units."""

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
        several: The contrasts that it names, where they contradict each other.
        is_part: It holds the phase, or one part of complex numbers.
    """

    subject: str
    session: str | None
    contrast: str | None
    bases: tuple[str, ...]
    several: tuple[str, ...] = ()
    is_part: bool = False


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
    words = BETWEEN.split(stem)
    said = read_words(words)
    people = [one for one in folders if not _is_group(one)]
    own = [word for place, word in enumerate(words) if place not in said.used]
    contrast = said.contrast
    if contrast is None and not said.several:
        amos = _AMOS.fullmatch(stem)
        if amos is not None:
            contrast = "CT" if int(amos["number"]) <= _LAST_CT_OF_AMOS else "MR"
        else:
            contrast = next((found for one in reversed(folders) if (found := contrast_of_folder(one))), None)
    case = "_".join(own) or stem
    # nnU-Net's folders hold all cases of a data set, whose own folder names nobody.
    in_data_set = bool(folders) and IMAGES_OF.fullmatch(folders[-1]) is not None
    first = "/".join((*people, case)) if in_data_set else people[0] if people else case
    return ImageName(
        subject=first,
        session=None if in_data_set else "/".join(people[1:]) or None,
        contrast=contrast,
        bases=_bases(stem, words, said),
        several=said.several,
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
    is_bids = stem.startswith(("sub-", "ses-"))
    words = list(takewhile(lambda part: "-" not in part, reversed(parts)))[::-1] if is_bids else BETWEEN.split(stem)
    said = read_words(words)
    # A suffix of BIDS is the last word; labs have several there, or end with one that makes it another image.
    contrast = (said.contrast if not is_bids or len(words) - 1 in said.used else None) or contrast_of(suffix)
    if contrast == "T1w" and any(part.startswith("ce-") for part in parts):
        contrast = "T1post"
    # Subjects of two data sets in one folder may have the same number.
    above = folders[: folders.index(subject)] if subject in folders else ()
    whose = [one for one in above if not _is_group(one)]
    base = "_".join(parts[: -max(1, _at_the_end(words, said))]) if suffix and len(parts) > 1 else stem
    return ImageName(
        subject="/".join((*whose, subject)),
        session=session,
        contrast=contrast,
        bases=tuple(dict.fromkeys(name for name in (stem, base) if name)),
        several=() if contrast else said.several,
        is_part=not _ODD_PARTS.isdisjoint(parts),
    )


def _bases(stem: str, words: Sequence[str], said: Reading) -> tuple[str, ...]:
    """The name, and what is left of it without the words of the contrast at its end."""
    base = stem
    for word in reversed(words[len(words) - _at_the_end(words, said) :]):
        base = base[: len(base) - len(word)].rstrip("_-. ")
    return tuple(dict.fromkeys(name for name in (stem, base) if name))


def _at_the_end(words: Sequence[str], said: Reading) -> int:
    """How many words at the end of a name say the contrast."""
    return sum(1 for _ in takewhile(lambda place: place in said.used, range(len(words) - 1, -1, -1)))


def _is_group(folder: str) -> bool:
    low = folder.casefold()
    return low in _GROUPS or IMAGES_OF.fullmatch(folder) is not None or contrast_of(low) is not None
