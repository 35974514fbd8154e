"""What of a folder, a tree or a file is a raw scan: no labels, and nothing that was made of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from harmonize.corpus import IMAGES, MASKS
from harmonize.errors import Reason, Rejection, Stage, WrongUse
from harmonize.raw_tree import CORPUS_FILE, CORPUS_PARTS, Folder, RawTree, suffix_of
from harmonize.sources.nifti_image import IMAGE_SUFFIXES, images_in, is_image_name
from harmonize.sources.rsna_masks import MASK_ENDING, SEGMENTATIONS
from harmonize.sources.volume_files import stem_of
from harmonize.sources.volume_tree import BesideRaw

SERIES = "series"
"""Beside `SEGMENTATIONS` in the competition's download."""

DEEPEST = 4
"""Folders between an image of a corpus and the corpus, it included."""


def fault_of(path: Path) -> Rejection | None:
    """Why a path that is there holds no raw scans, as far as its name and the folders around it tell."""
    place = Path(os.path.realpath(path))
    for folder in (place, *place.parents[:DEEPEST]):
        below = place.relative_to(folder).parts
        if _is_corpus(folder) and (not below or below[0] in (IMAGES, MASKS)):
            message = "of a corpus that harmonize wrote, no raw data; give the raw folder that it was made from"
            return Rejection(Reason.DERIVED, message, stage=Stage.DISCOVER)
    if path.is_file() and suffix_of(path.name) in IMAGE_SUFFIXES and not is_scan_name(path.name):
        message = "its name says that it holds labels; give the scan that they are of"
        return Rejection(Reason.NOT_AN_IMAGE, message, stage=Stage.DISCOVER)
    return None


def check_raw(path: Path) -> None:
    """Refuse a path that was given and is there, but holds no raw scans.

    Raises:
        WrongUse: Says why.
    """
    fault = fault_of(path)
    if fault is not None:
        raise WrongUse(f"{path}: {fault.message}")


def is_scan_name(name: str) -> bool:
    """Whether a file of that name is a volume, or the header of one, and no mask, one of the competition's included.

    Example:
        >>> [is_scan_name(name) for name in ("1.2.3.nii", "1.2.3_cowseg.nii", "a_seg.nii.gz")]
        [True, False, False]
    """
    return is_image_name(name) and not stem_of(name).casefold().endswith(MASK_ENDING)


def raw_folders(tree: RawTree) -> Iterator[tuple[Folder, tuple[str, ...]]]:
    """The folders of a tree that may hold raw scans, each with its path below the root.

    Left out are what a BIDS tree has beside its raw images, and the competition's masks with their copies of images.
    """
    # Each scan is answered by its own name, so one that was made of another counts for nobody twice, as it would in a
    # corpus (harmonize.sources.nifti_tree): only a tree that calls itself BIDS is looked at so.
    beside_raw = BesideRaw(tree.root, by_subjects=False)
    for folder in tree.folders():
        below = tuple(part for part in folder.relative.split("/") if part)
        if beside_raw.name_of(folder) is None and not _is_of_masks(tree.root, below):
            yield folder, below


def scans_in(folder: Folder) -> Iterator[tuple[Path, ...]]:
    """The images of a folder that are no masks, each with the file of its header where that is another."""
    return (image for image in images_in(folder) if is_scan_name(image[0].name))


def _is_of_masks(root: Path, below: tuple[str, ...]) -> bool:
    parents = (root.joinpath(*below[:depth]) for depth, part in enumerate(below) if part == SEGMENTATIONS)
    return any((parent / SERIES).is_dir() for parent in parents)


def _is_corpus(folder: Path) -> bool:
    return (folder / CORPUS_FILE).is_file() and any((folder / part).exists() for part in CORPUS_PARTS)
