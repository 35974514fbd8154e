"""The plain data that moves through harmonize: a reference to raw files, and the scan read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision
from harmonize.errors import Rejection, Stage

HU = "HU"
AIR_HU = -1024
"""Least value of a CT, and what stands where a CT has no voxel: nothing physical is below."""

ARBITRARY = "arbitrary"
ACTIVITY = "Bq/ml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRef:
    """Where one scan lies in a raw tree: what `discover` yields, cheap and picklable.

    Attributes:
        source: Name in the registry of `harmonize.sources`.
        key: Unique and stable within the raw root (a relative path, or a SeriesInstanceUID and a volume number).
            It may hold patient text, so it is never written to disk: only its salted hash is.
        root: The raw root that `key` and `paths` belong to.
        paths: The raw files, in a deterministic order.
        subject: Raw subject id.
        session: Raw session id, or None.
        modality: What the source says, if it says so before the pixels are read.
        public_id: A name for the scan that is public already (OpenMind's path stem, RSNA's series UID), or None;
            only then do scan, subject and session keep their names in the corpus, otherwise they are hashed.
        meta: What `load` needs besides (rows of the source's tables), as plain picklable values.
        rejection: Why discovery knows already that it is no scan, or None: what claims to be an image and cannot be
            taken is found like a scan, so that it gets a row of rejected.parquet.
    """

    source: str
    key: str
    root: Path
    paths: tuple[Path, ...]
    subject: str
    session: str | None = None
    modality: str | None = None
    public_id: str | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
    rejection: Rejection | None = None


def raise_if_rejected(ref: ScanRef) -> None:
    """Raise the rejection that a source's `discover` left in a reference, if there is one."""
    if ref.rejection is not None:
        raise ref.rejection.at(Stage.DISCOVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Files of a raw tree, or rows of its tables, that `discover` saw and no scan is made of; nothing in it names one.

    What claims to be an image and cannot be taken is no `LeftOut` but a `ScanRef` with a `rejection`.

    Attributes:
        what: The kind of file, such as a suffix, or ``rows of train.csv``.
        why: Why it was not taken, in a few words.
        count: How many.
    """

    what: str
    why: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A label volume with its own geometry.

    Attributes:
        labels_XYZ: uint8, or uint16 where its values need that; shape (X, Y, Z).
        affine: (4, 4), voxel index to RAS+ mm.
    """

    labels_XYZ: NDArray[np.uint8] | NDArray[np.uint16]
    affine: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A labelled place (an aneurysm's localizer) in RAS+ mm, with the diameter of what lies there if it is known."""

    label: str
    xyz_mm: tuple[float, float, float]
    diameter_mm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """What people noted about a scan; it lies beside the voxels, and nothing that is done to them changes it.

    Attributes:
        labels: The 14 competition labels by name, or None.
        points: Localizers in RAS+ mm.
        age: Years, only where the source publishes it.
        sex: ``F`` or ``M``, only where the source publishes it.
        mask_labels: Name of each value of the scan's ``labels`` mask, as far as somebody named it.
        table: What a user's own table says of the scan, text by column.
    """

    labels: Mapping[str, int] | None = None
    points: tuple[Point, ...] = ()
    age: float | None = None
    sex: str | None = None
    mask_labels: Mapping[int, str] = field(default_factory=dict)
    table: Mapping[str, str] = field(default_factory=dict)


UNANNOTATED = Annotations()


def annotations_of(meta: Mapping[str, object], points: Iterable[Point] = ()) -> Annotations:
    """What a source's `discover` left in a reference under the names of `Annotations`, with `points` beside it."""
    labels = meta.get("labels")
    return Annotations(
        labels=dict(labels) if isinstance(labels, Mapping) else None,
        points=tuple(points),
        age=cast(float | None, meta.get("age")),
        sex=cast(str | None, meta.get("sex")),
        mask_labels=cast(Mapping[int, str], meta.get("mask_labels", {})),
        table=cast(Mapping[str, str], meta.get("table", {})),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One volume as it was acquired, before any resampling.

    The voxel with index (i, j, k) lies at ``affine @ (i, j, t, 1)`` in RAS+ mm, where ``t = k``, or
    ``t = slice_offsets[k]`` for slices that are not evenly spaced. The affine may be oblique or sheared
    (gantry tilt).

    Attributes:
        voxels_XYZ: Any real dtype, shape (X, Y, Z); for CT in HU.
        affine: (4, 4) float64.
        modality: The field's name: ``CT``, ``CTA``, ``PT``, or an MR contrast such as ``T1w``, ``T2w``, ``MRA``.
        unit: `HU`, `ARBITRARY` or `ACTIVITY`.
        slice_offsets: (Z,) strictly increasing, in units of the affine's third column; None if even.
        masks: By kind: ``anatomy`` (1 = head), ``deface`` (1 = removed), ``vessels`` (RSNA's values 1..13), ``labels``
            (a user's own, whatever their values mean; `Annotations.mask_labels` names them).
        annotations: What people noted about it.
        decisions: What was found and done, in order.
    """

    voxels_XYZ: NDArray[np.generic]
    affine: NDArray[np.float64]
    modality: str
    unit: str = ARBITRARY
    slice_offsets: NDArray[np.float64] | None = None
    masks: dict[str, Mask] = field(default_factory=dict)
    annotations: Annotations = UNANNOTATED
    decisions: tuple[Decision, ...] = ()
