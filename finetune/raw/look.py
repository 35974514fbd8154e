"""What a worker process does with a folder: find the series in it, and harmonize the one that is there."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.raw.places import Place
from harmonize.errors import Reason, Rejection, UserError, unforeseen
from harmonize.pipeline import HarmonizedScan, harmonize_scan
from harmonize.scan import Scan
from harmonize.settings import Settings
from harmonize.sources.dicom_series import Series, group_files, load_files
from harmonize.sources.nifti_image import load_image
from harmonize.voxels import nyul

RETRY_AFTER_S = 0.5

CT, MR = "CT", "MR"
"""What a header tells of a series; the contrast of an MRI it often does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How some models want their series harmonized.

    Attributes:
        settings: How.
        kinds: `CT`, `MR` or both: the series that they take.
    """

    settings: Settings
    kinds: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harmonized:
    """A series as models want it.

    Attributes:
        scan: What was read, without its voxels.
        volumes: For each wish; None where nobody wants a series of its kind so.
    """

    scan: Scan
    volumes: tuple[HarmonizedScan | None, ...]

    @property
    def kind(self) -> str:
        """`CT` or `MR`."""
        return kind_of_scan(self.scan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a place holds.

    Attributes:
        place: With what is known of it now.
        state: Of its files when they were read.
        parts: A place for each of its series, where it holds several; they are to be looked at by themselves.
        series: Its only series; or why it cannot be used.
    """

    place: Place
    state: str
    parts: tuple[Place, ...] = ()
    series: Harmonized | Rejection | None = None


def kind_of_scan(scan: Scan) -> str:
    """`CT` or `MR`."""
    return CT if scan.modality == CT else MR


def harmonize_for(scan: Scan, wishes: Sequence[Wish]) -> Harmonized:
    """Harmonize a scan as it is wanted.

    Raises:
        Rejection: It cannot be used, or nobody wants one of its kind.
    """
    kind = kind_of_scan(scan)
    if not any(kind in wish.kinds for wish in wishes):
        raise Rejection(Reason.UNSUPPORTED_MODALITY, f"none of the models is for {kind} (data.modalities)")
    for wish in wishes:
        _check_histogram(scan, wish)
    volumes = tuple(harmonize_scan(scan, wish.settings) if kind in wish.kinds else None for wish in wishes)
    return Harmonized(scan=replace(scan, voxels_XYZ=np.empty((0, 0, 0)), masks={}), volumes=volumes)


def _check_histogram(scan: Scan, wish: Wish) -> None:
    """Refuse an MRI of a contrast that the corpus of a model had no scans of, where each contrast has a histogram.

    Raises:
        Rejection: Says so.
    """
    folder = wish.settings.nyul_folder
    if folder is None or kind_of_scan(scan) != MR or MR not in wish.kinds:
        return
    if not nyul.histogram_path(folder, scan.modality).is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.npy"))) or "none"
        message = f"the model has no histogram of {scan.modality} to normalise by, but of {known}"
        raise Rejection(Reason.UNSUPPORTED_MODALITY, message)


def look(place: Place, *, wishes: Sequence[Wish]) -> Looked:
    """Read a place. Whatever is wrong with its files is a rejection; a read that failed is tried twice.

    Raises:
        UserError: Not the place is at fault but the models or the machine, so there is no point in going on.
    """
    state = place.state()
    looked, may_pass = _attempt(place, state, wishes)
    if may_pass:
        time.sleep(RETRY_AFTER_S)
        looked, _ = _attempt(place, state, wishes)
    return looked


def _attempt(place: Place, state: str, wishes: Sequence[Wish]) -> tuple[Looked, bool]:
    """What was found, and whether it may be better the next time: a disk that failed, too little memory."""
    may_pass = False
    try:
        if place.fault is not None:
            raise place.fault
        if place.folders is not None:
            scan = load_image(place.files, place.folders)
            return Looked(place=place, state=state, series=harmonize_for(scan, wishes)), False
        series = [] if place.alone else group_files(place.files, place.root)
        if len(series) > 1:
            return Looked(place=place, state=state, parts=_parts(place, state, series)), False
        if not place.alone and not series:
            raise Rejection(Reason.NOT_AN_IMAGE, "the folder holds no DICOM pictures")
        if series:
            place = replace(place, uid=series[0].uid, alone=True)
        scan = series[0].load() if series else load_files(place.files)
        return Looked(place=place, state=state, series=harmonize_for(scan, wishes)), False
    except Rejection as error:
        rejection = error.at(error.stage)  # a copy: this one holds the frames that it was raised in, and they the scan
    except UserError:
        raise
    except MemoryError:
        rejection, may_pass = Rejection(Reason.WORKER_DIED, "the series twice did not fit into memory"), True
    except OSError as error:
        kind = os.strerror(error.errno) if error.errno else type(error).__name__
        rejection, may_pass = Rejection(Reason.IO_ERROR, f"reading failed: {kind}"), True
    except Exception as error:
        # A damaged file must not end a run over thousands.
        rejection = unforeseen(error)
    return Looked(place=place, state=state, series=rejection), may_pass


def _parts(place: Place, state: str, series: Sequence[Series]) -> tuple[Place, ...]:
    return tuple(
        replace(place, uid=one.uid, files=one.paths, alone=True, part=part, parts=len(series), state_of_all=state)
        for part, one in enumerate(series)
    )
