"""Write the series of RSNA's phantom: DICOM files, vessel masks, and what the tables say of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np
from numpy.typing import DTypeLike, NDArray

from harmonize.labels import LOCATIONS, PRESENT
from harmonize.phantom.acquisition import Grid, vessel_mask
from harmonize.phantom.anatomy import Head
from harmonize.phantom.dicom_files import (
    CT_SIGNED_PADDED,
    CT_UNSIGNED,
    MR_UNSIGNED,
    Slice,
    pixels_of,
    write_multiframe,
    write_slices,
)
from harmonize.phantom.randomness import rng_of, uid_of
from harmonize.phantom.rsna.grids import would_be
from harmonize.phantom.rsna.images import easy_picture, hard_picture
from harmonize.phantom.rsna.label_noise import Reading, read_by
from harmonize.phantom.rsna.options import USUAL, Coverage, TreeOptions
from harmonize.phantom.rsna.plan import SeriesPlan, planned
from harmonize.phantom.rsna.tables import LOOKS, Row, Written
from harmonize.phantom.slabs import SLAB_VOXELS, slabs_of
from harmonize.scan import AIR_HU

Value = TypeVar("Value", bound=np.generic)


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int, options: TreeOptions = USUAL) -> Written:
    """Write series `index` into ``series/`` and its masks into ``segmentations/`` under `root`.

    Args:
        index: From 0.
        root: The source's raw root.
        scans: Number of series.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
        options: What the tree is like.
    """
    series = planned(index, seed=seed, options=options)
    return write_series(root, series, size, options.coverage, label_noise=options.label_noise)


def write_series(root: Path, series: SeriesPlan, size: int, coverage: Coverage, *, label_noise: float = 0.0) -> Written:
    """Write one planned series as `write_scan` does; `label_noise`: how often one of a hospital is labelled wrongly."""
    clinical = series.difficulty != "easy"
    rng = rng_of(*series.names, "series")
    picture = hard_picture(series, size, coverage) if clinical else easy_picture(series, size, coverage, rng)
    head, grid, planes = picture.head, picture.grid, picture.planes
    is_ct = series.modality == "CTA"
    coding = (CT_SIGNED_PADDED if rng.random() < 0.3 else CT_UNSIGNED) if is_ct else MR_UNSIGNED
    if series.segmented:
        planes = _write_masks(root / "segmentations", series, head, grid, planes)
    header = _header(series)
    folder = root / "series" / series.uid
    if series.multiframe:
        sop = uid_of(series.uid, "file")
        write_multiframe(folder / f"{sop}.dcm", planes, grid, header, coding, sop)
        slices = [Slice(path=folder / f"{sop}.dcm", sop_uid=sop, index=k) for k in range(grid.shape[2])]
    else:
        slices = write_slices(
            folder, planes, grid, header, coding, file_name=lambda _, sop: f"{sop}.dcm", head_first=rng.random() < 0.5
        )
    patient: Row = {
        "PatientAge": int(rng.integers(22, 90)),
        "PatientSex": "Female" if rng.random() < 0.65 else "Male",
    }
    return _said(series, head, grid, slices, patient, label_noise)


def _said(
    series: SeriesPlan, head: Head, grid: Grid, slices: Sequence[Slice], patient: Row, label_noise: float
) -> Written:
    """What the tables say of a series."""
    uid: Row = {"SeriesInstanceUID": series.uid}
    vessels = head.vessels
    sacs = vessels.aneurysms
    mimics = [mimic for mimic in vessels.mimics if grid.shows(mimic.centre_mm)]
    reading = Reading(findings=tuple((sac.location, sac.centre_mm) for sac in sacs))
    if label_noise:
        sites = would_be(series, head.pose).aneurysms
        reading = read_by(label_noise, sacs, sites, mimics, rng_of(*series.names, "reader"))

    def place(centre_mm: tuple[float, float, float]) -> Row:
        column, line, k = pixels_of(grid, centre_mm)
        coordinates: dict[str, float | int] = {"x": column, "y": line}
        if series.multiframe:
            coordinates["f"] = k
        return {"SOPInstanceUID": slices[k].sop_uid, "coordinates": str(coordinates)}

    hospital: Row = {"hospital": series.hospital or ""}
    looks = LOOKS if series.difficulty != "easy" else ()
    sizes: list[Row] = [
        {
            "location": sac.location,
            "diameter_mm": round(sac.diameter_mm, 2),
            **{look: getattr(sac, look) for look in looks},
        }
        for sac in sacs
    ]
    pair: Row | None = None
    if series.pair is not None and sacs:
        x, y, z = (round(value, 2) for value in sacs[0].centre_mm)
        pair = {
            "pair": series.pair,
            "with_sac": series.uid,
            "without_sac": uid_of(*series.names, "without"),
            **sizes[0],
            "x_mm": x,
            "y_mm": y,
            "z_mm": z,
            "modality": series.modality,
            **hospital,
        }
    return Written(
        row={**uid, **patient, "Modality": series.modality, **_labels([site for site, _ in reading.findings])},
        points=tuple({**uid, **place(centre), "location": site} for site, centre in reading.findings),
        sizes=tuple({**uid, **size} for size in sizes),
        hospital={**uid, **hospital},
        mimics=tuple({**uid, **place(mimic.centre_mm), "kind": mimic.kind} for mimic in mimics),
        truth={**uid, **_labels(series.locations), "mistake": reading.error},
        pair=pair,
    )


def _labels(locations: Sequence[str]) -> Row:
    return {**{name: int(name in locations) for name in LOCATIONS}, PRESENT: int(bool(locations))}


def _header(series: SeriesPlan) -> dict[str, object]:
    modality = "CT" if series.modality == "CTA" else "MR"
    return {
        "Modality": modality,
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        if series.multiframe
        else ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": uid_of(*series.names, "patient"),
        "StudyInstanceUID": uid_of(*series.names, "study"),
        "SeriesInstanceUID": series.uid,
        "FrameOfReferenceUID": uid_of(*series.names, "frame"),
        "SeriesNumber": 1,
    }


def _write_masks(
    folder: Path, series: SeriesPlan, head: Head, grid: Grid, planes: Iterable[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """`{uid}.nii` and `{uid}_cowseg.nii`, directly in the folder or in one of their own: both are found in the wild.

    The first is written while the planes are taken, which are handed on.
    """
    nested = int(rng_of(*series.names, "layout").integers(2)) == 1
    place = folder / series.uid if nested else folder
    place.mkdir(parents=True, exist_ok=True)
    at_once = SLAB_VOXELS if series.difficulty != "easy" else int(np.prod(grid.shape))
    labelled = (plane for _, slab in slabs_of(grid, at_once) for plane in np.moveaxis(vessel_mask(head, slab), 2, 0))
    for _ in _saved(place / f"{series.uid}_cowseg.nii", labelled, grid, np.uint8):
        pass
    return _saved(place / f"{series.uid}.nii", planes, grid, np.int16)


def _saved(path: Path, planes: Iterable[NDArray[Value]], grid: Grid, dtype: DTypeLike) -> Iterator[NDArray[Value]]:
    """Hand planes on, and write them as a NIfTI file on the way, as integers."""
    kind = np.dtype(dtype)
    image = nibabel.Nifti1Image(np.broadcast_to(np.zeros((), kind), grid.shape), grid.affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    with path.open("r+b") as stream:
        stream.seek(-kind.itemsize * int(np.prod(grid.shape)), os.SEEK_END)
        for plane_XY in planes:
            # The first axis runs fastest in a NIfTI file.
            stored_XY = np.clip(np.rint(plane_XY), AIR_HU, np.iinfo(kind).max).astype(kind)
            stream.write(stored_XY.tobytes(order="F"))
            yield plane_XY
