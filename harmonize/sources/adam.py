"""ADAM: TOF-MRA of patients with and without unruptured aneurysms, with masks and a text file of places and radii."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.nifti import NiftiVolume
from harmonize.raw_tree import VOLUME_SUFFIXES, RawTree, suffix_of
from harmonize.scan import ARBITRARY, Annotations, LeftOut, Mask, Point, Scan, ScanRef, raise_if_rejected
from harmonize.sources.first_look import check_root, nothing_found
from harmonize.sources.nifti_masks import read_mask
from harmonize.sources.volume_files import read_volume_file, stem_of

IMAGE = "TOF"
FOLDERS = ("orig", "pre")
"""As acquired, and corrected by the organisers; of both, the first is read."""

MASK, LOCATIONS = "aneurysms", "location.txt"
UNTREATED, TREATED = "aneurysm", "treated aneurysm"
"""Labels of points: what is to be found, and what the challenge ignores."""

_UNTREATED_VALUE, _TREATED_VALUE = 1, 2
VALUES = {_UNTREATED_VALUE: UNTREATED, _TREATED_VALUE: TREATED}
"""Of the masks."""

_APART_MM = 5.0
"""A piece of a mask that lies further from each place of the text is another aneurysm."""

_ELSEWHERE = (
    f"no image of a case by its name and place: that is {FOLDERS[0]}/{IMAGE} or {FOLDERS[1]}/{IMAGE} in the case's "
    f"folder, or {MASK} beside these, each .nii or .nii.gz"
)

LARGEST_TEXT = 65536
LARGEST_RADIUS_MM = 100.0
_CASE = re.compile(r"(\d{5})[A-Z]?")
"""A patient; with a letter, one of their visits: B the first, F the second."""


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield the TOF-MRA of every case, ordered by folder; then what was not taken.

    Args:
        root: The folder of the cases: ``10001/orig/TOF.nii.gz``, ``10001/aneurysms.nii.gz``, ``10001/location.txt``.

    Raises:
        UserError: There is no case.
    """
    check_root("adam", root)
    tree = RawTree(root, claims=lambda name: suffix_of(name) in VOLUME_SUFFIXES)
    cases: dict[str, dict[str, Path]] = {}
    for folder in tree.folders():
        parts = folder.relative.split("/") if folder.relative else []
        within = parts[-1] if parts and parts[-1] in FOLDERS else ""
        case = "/".join(parts[:-1] if within else parts)
        for name in folder.names:
            path, stem = folder.path / name, stem_of(name)
            is_volume = suffix_of(name) in (".nii", ".nii.gz")
            if is_volume and within and stem == IMAGE:
                cases.setdefault(case, {})[within] = path
            elif is_volume and not within and stem == MASK:
                cases.setdefault(case, {})[MASK] = path
            elif not within and name == LOCATIONS:
                cases.setdefault(case, {})[LOCATIONS] = path
            elif is_volume and within and stem.startswith("struct"):
                tree.leave(name, "a structural image, of which no aneurysm is marked")
            elif is_volume:
                tree.reject(path, Reason.MISSING_METADATA, _ELSEWHERE)
            else:
                tree.dismiss(path, "no part of a case")
    found = 0
    for case, files in sorted(cases.items()):
        image = next((files[name] for name in FOLDERS if name in files), None)
        if image is None:
            tree.count("cases", f"without {IMAGE}")
            continue
        tree.count("images", f"there twice: {FOLDERS[0]}/ is read", int(all(name in files for name in FOLDERS)))
        found += 1
        yield _reference(root, case, image, files)
    if not found and not tree.unread:
        raise nothing_found("adam", root, tree.seen())
    yield from tree.rest("adam")


def load(ref: ScanRef) -> Scan:
    """Read a TOF-MRA with its mask, and its aneurysms as points with diameters in mm.

    Untreated ones are those of ``location.txt``, or of the mask where that file is missing, damaged or contradicted;
    treated ones those of the mask.

    Raises:
        Rejection: See `harmonize.nifti.read_nifti`.
    """
    raise_if_rejected(ref)
    image = read_volume_file(*ref.paths)
    decisions = list(image.decisions)
    path, mask = ref.meta.get(MASK), None
    if isinstance(path, Path):
        mask, unfit = read_mask(path, image.voxels_XYZ, image.affine)
        decisions += unfit
    text, told = ref.meta.get(LOCATIONS), None
    if isinstance(text, Path):
        told = read_locations(text, image.affine if mask is None else mask.affine)
    if told is None and (mask is None or isinstance(text, Path)):
        decisions.append(DecisionKind.LOCALIZER_UNREADABLE())
    elif told is not None:
        told, contradicted = _believed(told, image, mask)
        decisions += contradicted
    points = told if told is not None else ([] if mask is None else _components(mask, _UNTREATED_VALUE))
    if mask is not None:
        points = [*points, *_components(mask, _TREATED_VALUE)]
    return Scan(
        voxels_XYZ=image.voxels_XYZ,
        affine=image.affine,
        modality="MRA",
        unit=ARBITRARY,
        masks={} if mask is None else {"labels": mask},
        annotations=Annotations(points=tuple(points), mask_labels={} if mask is None else VALUES),
        decisions=tuple(decisions),
    )


def read_locations(path: Path, affine: NDArray[np.float64]) -> list[Point] | None:
    """The untreated aneurysms of a case: a line each, the voxel of its centre and its largest radius in mm.

    The challenge's evaluation maps the voxels, which may be fractions, by the affine of the masks, and compares
    distances in mm with the radius.

    Args:
        path: Empty where a case has none.
        affine: (4, 4), voxel index to RAS+ mm.

    Returns:
        None where a line cannot be read: then it is not known how many there are.

    Raises:
        Rejection: The file is there and cannot be a text of places.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise Rejection(Reason.TOO_LARGE, f"{LOCATIONS} has more than {LARGEST_TEXT} bytes")
    points = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            x, y, z, radius, *_ = (float(part) for part in line.split(","))
        except ValueError:
            return None
        if not (all(map(math.isfinite, (x, y, z))) and 0 < radius <= LARGEST_RADIUS_MM):
            return None
        points.append(_point(UNTREATED, affine @ np.array([x, y, z, 1.0]), radius))
    return points


def _believed(told: list[Point], image: NiftiVolume, mask: Mask | None) -> tuple[list[Point] | None, list[Decision]]:
    """The places of a case's text, or None where they cannot be true by its image and mask; and what was decided."""
    said = DecisionKind.LOCATIONS_CONTRADICTED
    taken = "its places are left out" if mask is None else "the places of the mask are taken"
    if any(not _within(point, image) for point in told):
        return None, [said(other="image", why="which ends before a place", taken=taken)]
    if mask is None:
        return told, []
    if any(_value_at(mask, point) == _TREATED_VALUE for point in told):
        return None, [said(other="mask", why="which marks an aneurysm as treated", taken=taken)]
    marked = _components(mask, _UNTREATED_VALUE)
    if any(_is_unnamed(one, told) for one in marked):
        return None, [said(other="mask", why="which marks an aneurysm at none of its places", taken=taken)]
    # A sac may be too small for the mask's voxels.
    nothing = said(other="mask", why="which marks no aneurysm", taken="its places are taken")
    return told, [nothing] if told and not marked else []


def _within(point: Point, image: NiftiVolume) -> bool:
    """Whether a place lies in an image; where voxels are counted from one the last are a voxel beyond."""
    index = np.linalg.inv(image.affine) @ np.array([*point.xyz_mm, 1.0])
    return bool(((index[:3] >= -1.5) & (index[:3] <= np.array(image.voxels_XYZ.shape) + 0.5)).all())


def _value_at(mask: Mask, point: Point) -> int:
    """The value of the voxel that a place lies in; 0 outside of the mask."""
    index = np.rint(np.linalg.inv(mask.affine) @ np.array([*point.xyz_mm, 1.0]))[:3].astype(int)
    inside = bool(((index >= 0) & (index < np.array(mask.labels_XYZ.shape))).all())
    return int(mask.labels_XYZ[tuple(index)]) if inside else 0


def _is_unnamed(marked: Point, told: list[Point]) -> bool:
    """Whether what a mask marks lies apart from all places of the text, further than a piece of one of these may."""
    return all(
        math.dist(marked.xyz_mm, point.xyz_mm) > ((marked.diameter_mm or 0) + (point.diameter_mm or 0)) / 2 + _APART_MM
        for point in told
    )


def _components(mask: Mask, value: int) -> list[Point]:
    """What a mask marks with a value: middle, and twice the distance from it to the farthest voxel."""
    components_XYZ, count = ndimage.label(mask.labels_XYZ == value, structure=np.ones((3, 3, 3)))
    points = []
    for number in range(1, count + 1):
        places_N3: NDArray[Any] = np.argwhere(components_XYZ == number) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        centre = places_N3.mean(axis=0)
        radius = float(np.linalg.norm(places_N3 - centre, axis=1).max())
        # A single voxel has a size too.
        least = float(np.cbrt(abs(np.linalg.det(mask.affine[:3, :3])) * 3 / (4 * math.pi)))
        points.append(_point(VALUES[value], centre, max(radius, least)))
    return points


def _point(label: str, place: NDArray[np.float64], radius_mm: float) -> Point:
    x, y, z = (float(value) for value in place[:3])
    return Point(label=label, xyz_mm=(x, y, z), diameter_mm=2 * radius_mm)


def _reference(root: Path, case: str, image: Path, files: dict[str, Path]) -> ScanRef:
    name = case.rpartition("/")[2]
    patient = _CASE.fullmatch(name)
    return ScanRef(
        source="adam",
        key=f"{case}/{IMAGE}" if case else IMAGE,
        root=root,
        paths=(image,),
        subject=patient[1] if patient else name or IMAGE,
        session=name if patient and patient[1] != name else None,
        modality="MRA",
        meta={kind: files[kind] for kind in (MASK, LOCATIONS) if kind in files},
    )
