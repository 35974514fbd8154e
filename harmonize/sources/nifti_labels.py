"""Which files are labels and no images, as far as the names of files and folders say; and whose labels they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

IMAGES_OF = re.compile(r"images[_-]?(?P<part>Tr|Ts|Va)", re.IGNORECASE)
"""nnU-Net's folders of images."""

_LABELS_OF = re.compile(r"(?:.+[_-])?labels[_-]?(?P<part>Tr|Ts|Va)", re.IGNORECASE)
"""Those of their labels, which may say before it what is labelled (TopCoW: ``cow_seg_labelsTr``)."""

_IMAGES = re.compile(r"images?|imgs?", re.IGNORECASE)
_LABELS = re.compile(
    r"(?:labels?|masks?|segs?|segmentations?|ground[_ -]?truths?)(?:[_-]?(?P<part>Tr|Ts|Va))?", re.IGNORECASE
)
"""Folders that hold labels and nothing else, in data sets that keep them apart from the images."""

_OR_A_STUDY = re.compile(r"label|mask|seg", re.IGNORECASE)
"""Such folders that may be called after a study, too."""

_PLACE, _TRAINING = "images", "tr"

_WORD = re.compile(r"[^_\-. ]+")
_MASK = re.compile(r"(?:d?seg|masks?|labels?|segmentation)\d*")
_MASK_AT_THE_END = frozenset({"roi", "gt"})
"""These may be somebody's initials too, before a number."""

_OTHER_MASK = re.compile(r"[a-z0-9+]*(?:seg|mask)s?|labelmap")
_OF_A_STUDY = re.compile(r"(?P<study>D?SEG|MASKS?|LABELS?)[_\-. ]?\d{3,}")
"""What may be somebody's number in a study: in capitals, with nothing before it, and longer than that of a version."""

_VERSION = re.compile(r"v?\d+|\(\d+\)|final|copy|edited|corrected|manual|auto|new|old|fixed")
"""What may stand behind the word that says that a file is a mask."""

_NOT_OF_THE_IMAGE = re.compile(r"(space|desc|label|res|den|atlas)-[^_]*_?")


def is_mask_name(stem: str, beside: Collection[str] = ()) -> bool:
    """Whether the last word of a name, but for the version of the file, says that it holds labels.

    Args:
        stem: The name.
        beside: The names in the same folder: somebody's number in a study has images of that study alone there.

    Example:
        >>> [is_mask_name(stem) for stem in ("p01_seg", "sub-01_desc-lesion_dseg", "mask", "T1_seg-final", "seg-12")]
        [True, True, True, True, True]
        >>> [is_mask_name(stem) for stem in ("p01_T1", "gt_07", "T1_masked", "T1_brainmask")]
        [False, False, False, False]
        >>> is_mask_name("MASK_012"), is_mask_name("MASK_012", ("MASK_012", "IMG_012")), is_mask_name("mask_012")
        (False, True, True)
    """
    return _mask_word(stem) is not None and not _is_somebody(stem, beside)


def is_other_mask_name(stem: str) -> bool:
    """Whether a name says that the file is a mask, but not that it is of what the image is labelled for.

    Example:
        >>> [is_other_mask_name(stem) for stem in ("T1_brainmask", "aparc+aseg", "sub-01_label-GM_probseg", "p01_seg")]
        [True, True, True, False]
    """
    if _mask_word(stem) is not None:
        return False
    words = [word for word in _WORD.findall(stem.casefold()) if _VERSION.fullmatch(word) is None]
    return bool(words) and _OTHER_MASK.fullmatch(words[-1]) is not None


def base_of_mask(stem: str) -> str:
    """The name that a mask's image has, as far as the mask's own name says; empty where it says none.

    Example:
        >>> base_of_mask("p01_T1_seg"), base_of_mask("sub-01_space-orig_desc-lesion_dseg"), base_of_mask("mask")
        ('p01_T1', 'sub-01', '')
        >>> base_of_mask("p01_T1_seg-final")
        'p01_T1'
    """
    word = _mask_word(stem)
    if word is not None:
        stem = stem[: word.start()]
    if stem.startswith("sub-"):
        stem = _NOT_OF_THE_IMAGE.sub("", stem)
    return stem.rstrip("_-. ")


def place_of(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Folders of images, by the one name that they have however they are written.

    Example:
        >>> place_of(("set", "imagesTr")), place_of(("Images",)), place_of(("sub-01", "anat"))
        (('set', 'imagestr'), ('images',), ('sub-01', 'anat'))
    """
    return tuple(_as_images(folder) or folder for folder in folders)


def places_of_labels(
    folders: tuple[str, ...], is_cohort: Callable[[tuple[str, ...]], bool] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Where the images may lie that a folder holds the labels of, as `place_of` says it; nowhere, if it holds none.

    Args:
        folders: The folder below the root.
        is_cohort: Whether such a folder, whose name may be a study's, holds images (`harmonize.sources.cohorts`); else
            the names alone tell.

    Example:
        >>> places_of_labels(("set", "cow_seg_labelsTr")), places_of_labels(("p01", "Masks"))
        ((('set', 'imagestr'),), (('p01', 'images'), ('p01', 'imagestr'), ('p01',)))
        >>> places_of_labels(("p01", "anat")), places_of_labels(("Segmentation", "imagesTr"))
        ((), ())
    """
    for depth in reversed(range(len(folders))):
        folder = folders[depth]
        if _as_images(folder) is not None:
            return ()
        found = _LABELS_OF.fullmatch(folder) or _LABELS.fullmatch(folder)
        if found is not None and is_cohort and _OR_A_STUDY.fullmatch(folder) and is_cohort(folders[: depth + 1]):
            continue
        if found is not None:
            above, below = place_of(folders[:depth]), place_of(folders[depth + 1 :])
            part = (found["part"] or "").casefold()
            beside = [(*above, _PLACE + images, *below) for images in ([part] if part else ["", _TRAINING])]
            return tuple(beside) if part else (*beside, (*above, *below))
    return ()


def holds_images(folder: str) -> bool:
    """Whether a folder is called images, in one of the ways of doing so.

    Example:
        >>> [holds_images(folder) for folder in ("images", "Img", "imagesTr", "scans")]
        [True, True, True, False]
    """
    return _as_images(folder) is not None


def _as_images(folder: str) -> str | None:
    found = IMAGES_OF.fullmatch(folder)
    if found is not None:
        return _PLACE + found["part"].casefold()
    return _PLACE if _IMAGES.fullmatch(folder) else None


def _is_somebody(stem: str, beside: Collection[str]) -> bool:
    found = _OF_A_STUDY.fullmatch(stem)
    return found is not None and all(
        other.startswith(found["study"]) or _mask_word(other) is not None for other in beside
    )


def _mask_word(stem: str) -> re.Match[str] | None:
    """The word that says that a file is a mask."""
    for back, word in enumerate(reversed(list(_WORD.finditer(stem)))):
        text = word[0].casefold()
        if _MASK.fullmatch(text) or (back == 0 and text in _MASK_AT_THE_END):
            return word
        if _VERSION.fullmatch(text) is None:
            return None
    return None
