"""Masks of a user's own: which image each belongs to, what its values are called, and its labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.bounded_files import read_small_json
from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Rejection, UserError, WrongUse, reading
from harmonize.limits import TIMES_NORMAL
from harmonize.raw_tree import RawTree
from harmonize.scan import Mask
from harmonize.sources.contrast_words import contrast_of
from harmonize.sources.nifti_labels import base_of_mask, place_of
from harmonize.sources.nifti_names import ImageName
from harmonize.sources.tables import read_table
from harmonize.sources.volume_files import read_volume_file, stem_of
from harmonize.voxels.foreground import bounding_box

DATASET, NAMES = "dataset.json", "dseg.tsv"
"""nnU-Net's description of a data set, and BIDS's table of the values of its masks."""

MOST, LONGEST_NAME = 2**16 - 1, 64
"""The greatest value of a mask, and letters that a value's name may have."""

_PLACED_ALIKE_MM = 0.1

Names = Mapping[int, str]
Key = tuple[object, ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A raw image that masks are looked for.

    Attributes:
        paths: Its files.
        relative: Path below the root.
        name: What the path says.
        case: nnU-Net's name of the case, which its channels share; elsewhere the name without suffix.
        channel: What dataset.json says that the channel shows, or None.
        is_only_channel: It names one channel only, which may stand for images of several kinds.
    """

    paths: tuple[Path, ...]
    relative: str
    name: ImageName
    case: str
    channel: str | None = None
    is_only_channel: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """Its folders below the root."""
        return tuple(self.relative.split("/")[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """A file of labels.

    Attributes:
        path: Where it lies.
        places: Where its image is looked for below the root, as `harmonize.sources.nifti_labels.place_of` says it.
        names: Of its values, as far as they have names.
    """

    path: Path
    places: tuple[tuple[str, ...], ...]
    names: Names


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What nnU-Net's dataset.json says.

    Attributes:
        channels: What the channels show by their numbers, None where that is no contrast.
        labels: Names of the values of its masks, without the background's.
    """

    channels: Mapping[int, str | None] = field(default_factory=dict)
    labels: Names = field(default_factory=dict)


class ValueNames:
    """What the values of masks are called: by a table beside the mask, or a description in a folder above it."""

    def __init__(self) -> None:
        self._data_sets: dict[Path, DataSet | None] = {}
        self._tables: dict[Path, Names] = {}

    def of(self, path: Path, top: Path) -> Names:
        """The names for a mask somewhere below `top`."""
        beside = self._table(path.with_name(f"{stem_of(path.name)}.tsv"))
        if beside:
            return beside
        for folder in path.parents:
            found = self.data_set(folder)
            names = (found.labels if found else None) or self._table(folder / NAMES)
            if names:
                return names
            # The folder of masks may be nnU-Net's labelsTr, whose description lies beside it.
            if folder == top.parent:
                break
        return {}

    def data_set(self, folder: Path) -> DataSet | None:
        """What a folder's dataset.json says; None where there is none that can be read."""
        if folder not in self._data_sets:
            self._data_sets[folder] = _read_data_set(folder / DATASET)
        return self._data_sets[folder]

    def _table(self, path: Path) -> Names:
        if path not in self._tables:
            self._tables[path] = _read_names(path) if path.is_file() else {}
        return self._tables[path]


def pair(images: Sequence[Image], masks: Sequence[MaskFile], tree: RawTree) -> dict[str, MaskFile]:
    """The mask of each image that has one, by the image's path; masks that no image takes are counted.

    A mask is an image's where it lies in the same place and has its name; elsewhere, or where it has only the part of
    the name that says whose it is, if no other image could be meant. Channels of one case share theirs.
    """
    there: dict[Key, list[MaskFile]] = {}
    for mask in masks:
        for key in _keys_of_mask(mask):
            there.setdefault(key, []).append(mask)
    wanted = Counter(key for image in images for key, shared in _keys_of_image(image) if not shared)
    found: dict[str, MaskFile] = {}
    others: dict[Path, str] = {}
    for image in images:
        for key, shared in _keys_of_image(image):
            candidates = there.get(key, ())
            if candidates and (shared or wanted[key] == 1):
                if image.relative not in found:
                    found[image.relative] = candidates[0]
                others |= dict.fromkeys((one.path for one in candidates), "the image has another")
            elif candidates:
                for one in candidates:
                    others.setdefault(one.path, "several images could be meant")
    used = {mask.path for mask in found.values()}
    for mask in masks:
        if mask.path not in used:
            tree.count("masks", others.get(mask.path, "no image of their name"))
    return found


def all_are_masks(root: Path, masks: Path, paths: Sequence[Path]) -> WrongUse:
    """The error where a user's folder of masks leaves no image in the raw folder.

    Args:
        root: The raw folder.
        masks: The folder of masks.
        paths: All masks that were seen.
    """
    count = sum(path.is_relative_to(masks) for path in paths)
    files = "1 file" if count == 1 else f"{count} files"
    return WrongUse(
        f"--masks {masks}: its {files} are taken for masks, and {root} has no image besides; give a folder that holds "
        "masks alone, or leave --masks out: masks beside their images are found without it"
    )


def read_mask(path: Path, voxels_XYZ: NDArray[Any], affine: NDArray[np.float64]) -> tuple[Mask | None, list[Decision]]:
    """The labels of an image, or None with a decision where the file cannot be its mask.

    Args:
        path: The file; it may have a grid of its own.
        voxels_XYZ: The image's.
        affine: (4, 4), the image's voxel index to RAS+ mm.

    Raises:
        UnreadablePart: The disk failed, or the file may not be read.
    """
    try:
        with reading("mask"):
            found = read_volume_file(path, most=TIMES_NORMAL * voxels_XYZ.size)
    except Rejection as rejection:
        return None, [DecisionKind.MASK_LEFT_OUT(mask="labels", why=rejection.message)]
    labels = found.voxels_XYZ
    fault = "its values are beyond float32" if found.exponent else _fault_of_values(labels)
    if not fault and labels.any() and not _touches(labels, found.affine, voxels_XYZ.shape, affine):
        fault = "it lies elsewhere than the image"
    if fault:
        return None, [DecisionKind.MASK_LEFT_OUT(mask="labels", why=fault)]
    decisions = [DecisionKind.LABELS_USED()]
    corners = np.array(list(product(*((0, size) for size in labels.shape), (1,))))
    moved = np.abs(corners @ (found.affine - affine).T).max()
    if labels.shape == voxels_XYZ.shape and moved > _PLACED_ALIKE_MM:
        decisions.append(DecisionKind.LABELS_PLACED_OTHERWISE(moved_mm=float(moved)))
    narrow = labels.max() <= np.iinfo(np.uint8).max
    values = labels.astype(np.uint8) if narrow else labels.astype(np.uint16)
    return Mask(labels_XYZ=values, affine=found.affine), decisions


def _keys_of_image(image: Image) -> Iterator[tuple[Key, bool]]:
    """What a mask of the image may be found by, the surest first; and whether several images may take it."""
    folders, place, case = image.folders, place_of(image.folders), image.case
    yield (place, case), True
    yield (case,), case != stem_of(image.paths[0].name)
    for base in image.name.bases[1:]:
        yield (place, base), False
        yield (base,), False
    yield (place, ""), False
    if folders:
        yield (folders[-1],), False


def _keys_of_mask(mask: MaskFile) -> Iterator[Key]:
    stem = stem_of(mask.path.name)
    for name in dict.fromkeys((stem, base_of_mask(stem))):
        yield from ((place, name) for place in mask.places)
        if name:
            yield (name,)


def _fault_of_values(labels: NDArray[Any]) -> str:
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        return "its values are no whole numbers"
    if labels.min() < 0 or labels.max() > MOST:
        return f"it has values beyond 0 to {MOST}"
    return ""


def _touches(
    labels_XYZ: NDArray[Any], mask_affine: NDArray[np.float64], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> bool:
    """Whether the box around what a mask marks has a part in the box of an image's voxels."""
    box = np.asarray(bounding_box(labels_XYZ > 0)).reshape(3, 2) - 0.5
    corners = np.array(list(product(*box, (1,))))
    index = corners @ (np.linalg.inv(affine) @ mask_affine).T[:, :3]
    return bool(((index.max(axis=0) > -0.5) & (index.min(axis=0) < np.asarray(shape) - 0.5)).all())


def _read_data_set(path: Path) -> DataSet | None:
    if not path.is_file():
        return None
    try:
        said = read_small_json(path)
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        # Not where it lies: the names of folders below the root may be patients'.
        log.warning("a %s: %s; what it says of channels and masks is not used", DATASET, fault)
        return None
    if not isinstance(said, dict):
        return None
    channels, labels = said.get("channel_names") or said.get("modality"), said.get("labels")
    return DataSet(
        channels=_channels(channels) if isinstance(channels, dict) else {},
        labels=_value_names(labels) if isinstance(labels, dict) else {},
    )


def _channels(named: dict[str, Any]) -> Mapping[int, str | None]:
    """What each channel shows: its key is its number, in whatever order the file lists them."""
    shown = [contrast_of(str(value)) for value in named.values()]
    if len(shown) <= 1:
        return dict(enumerate(shown))
    numbers = [_number(key) for key in named]
    if None not in numbers and len(set(numbers)) == len(numbers) and 0 in numbers:
        return {number: contrast for number, contrast in zip(numbers, shown, strict=True) if number is not None}
    log.warning("a %s: its channels are not numbered from 0; what it says that they show is not used", DATASET)
    # How many there are still tells the channels of a case from numbers in its name.
    return dict.fromkeys(range(len(shown)))


def _value_names(labels: dict[str, Any]) -> Names:
    """Names by value; version 1 of the file has the values as keys, version 2 the names. Regions are passed over."""
    pairs = (((_number(key), value) if isinstance(value, str) else (value, key)) for key, value in labels.items())
    return _sound(pairs)


def _read_names(path: Path) -> Names:
    try:
        rows = read_table(path, ("index", "name")).rows
    except (UserError, OSError):
        log.warning("a .tsv beside masks or above them: no table of index and name; it is not used")
        return {}
    return _sound((_number(row["index"]), row["name"]) for row in rows)


def _number(text: str) -> int | None:
    """A value that a mask may have, or the number of a channel; else None."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= len(str(MOST)) else None


def _sound(pairs: Any) -> Names:
    """Names that may be shown and kept, of values that a mask may have; the background needs none."""
    return {
        value: name.strip()
        for value, name in pairs
        if type(value) is int
        and 0 < value <= MOST
        and name.strip()
        and len(name) <= LONGEST_NAME
        and name.isprintable()
    }
