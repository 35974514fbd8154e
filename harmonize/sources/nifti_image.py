"""One image file of somebody's, without a tree or a table: its name, its sidecar and its values say what it shows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.elements import looks_like_dicom
from harmonize.dicom.units import Evidence, hounsfield_evidence
from harmonize.errors import Reason, Rejection
from harmonize.raw_tree import Folder, RawTree, suffix_of
from harmonize.scan import Scan
from harmonize.sources.cohorts import is_cohort
from harmonize.sources.nifti_contrast import settled
from harmonize.sources.nifti_labels import is_mask_name, is_other_mask_name, places_of_labels
from harmonize.sources.nifti_names import read_name
from harmonize.sources.sidecars import read_sidecar
from harmonize.sources.volume_files import HEADERS, PARTNERS, READ, read_volume_file, stem_of
from harmonize.sources.volume_tree import volumes_in

IMAGE_SUFFIXES = READ | HEADERS
UNKNOWN_MRI = "MR"


def is_image_name(name: str, beside: Collection[str] = ()) -> bool:
    """Whether a file of that name is a volume, or the header of one, and not a mask.

    Args:
        name: The file's.
        beside: The names without suffix of the volumes in its folder, if they are known.

    Example:
        >>> [is_image_name(name) for name in ("T1.nii.gz", "T1.hdr", "T1_seg.nii.gz", "1.dcm", "1.2.840")]
        [True, True, False, False, False]
    """
    stem = stem_of(name)
    return suffix_of(name) in IMAGE_SUFFIXES and not is_mask_name(stem, beside) and not is_other_mask_name(stem)


def images_in(folder: Folder) -> Iterator[tuple[Path, ...]]:
    """The images of a folder that are no masks, each with the file of its header where that is another."""
    parts = tuple(part for part in folder.relative.split("/") if part)
    # From the folder up to the first one below the root.
    places = (folder.path, *folder.path.parents)
    if places_of_labels(parts, lambda above: is_cohort(places[len(parts) - len(above)])):
        return iter(())
    stems = {stem_of(name) for name in folder.names if suffix_of(name) in IMAGE_SUFFIXES}
    names = (name for name in folder.names if is_image_name(name, stems) and not is_dicom(folder.path / name))
    return volumes_in(RawTree(folder.path), folder, names)


def is_dicom(path: Path) -> bool:
    """Whether a file whose suffix is that of a pair, as ``.img``, is DICOM, for some scanners call theirs so."""
    if suffix_of(path.name) not in PARTNERS:
        return False
    try:
        with path.open("rb") as stream:
            return looks_like_dicom(stream)
    except OSError:
        return False  # whoever reads it as an image says what is wrong


def image_of(path: Path) -> tuple[Path, ...]:
    """The files of the image that a path names: itself, and the header beside its voxels."""
    suffix = suffix_of(path.name)
    if suffix not in PARTNERS:
        return (path,)
    wanted = f"{stem_of(path.name)}{PARTNERS[suffix]}".casefold()
    beside = sorted(other for other in path.parent.iterdir() if other.name.casefold() == wanted)
    return (path, *beside[:1])


def load_image(paths: Sequence[Path], folders: Sequence[str] = ()) -> Scan:
    """Read one image.

    An MRI whose contrast nothing tells is called ``MR``, as DICOM calls it too.

    Args:
        paths: As `images_in` gives them.
        folders: Below the one that somebody named, whose names may tell the contrast.

    Raises:
        Rejection: It cannot be read, is a mask, a part of complex numbers, or a CT that is not in HU.
    """
    stem = stem_of(paths[0].name)
    name = read_name(tuple(folders), stem)
    if name.is_part:
        raise Rejection(Reason.DERIVED, "the phase, or one part of complex numbers")
    sidecar = paths[0].with_name(f"{stem}.json")
    beside = read_sidecar(sidecar if sidecar.is_file() else None)
    image = read_volume_file(*paths)
    named = name.contrast or beside.contrast
    guessed: list[Decision] = []
    if named is None and hounsfield_evidence(image.voxels_XYZ.T) is not Evidence.HOUNSFIELD:
        named, guessed = UNKNOWN_MRI, [DecisionKind.MR_BY_VALUES()]
    voxels, modality, unit, decided = settled(image, named, several=name.several)
    return Scan(
        voxels_XYZ=voxels,
        affine=image.affine,
        modality=modality,
        unit=unit,
        decisions=(*beside.notes, *guessed, *image.decisions, *decided),
    )
