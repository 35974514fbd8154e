"""From one raw scan to its record: load, harmonize, write. What the engine runs in its worker processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harmonize import identity, sources
from harmonize.corpus import brain_mask_name, fingerprint, image_name, mask_name, write_volume
from harmonize.corpus.journal import Record
from harmonize.decisions import DecisionKind
from harmonize.errors import Reason, Rejection, Stage, UnreadablePart, UserError, unforeseen
from harmonize.files import NO_ROOM, no_room
from harmonize.labels import in_order
from harmonize.pipeline import HarmonizedScan, normalise_scan, resample_scan, unbiased
from harmonize.scan import HU, Annotations, ScanRef
from harmonize.settings import Settings
from harmonize.terminal import show_frames
from harmonize.voxels import nyul
from harmonize.voxels.stored import StoredVolume

RETRY_AFTER_S = 0.5

DEBUG_VARIABLE = "HARMONIZE_DEBUG"


def process(ref: ScanRef, *, corpus: Path, settings: Settings) -> Record:
    """Harmonize one scan into the corpus; whatever is wrong with the scan ends in its record.

    A failing read is tried twice, because network file systems hiccup; so is a scan that found no memory.

    Raises:
        UserError: The corpus cannot be written to, so there is no point in going on.
    """
    before = fingerprint.look_at_each(ref, settings.salt)
    record = _tried_twice(ref, corpus, settings)
    if record.row is None:
        # What was rejected is only done again when names, sizes or times change, so its content need not be known.
        return replace(record, read=before)
    after = fingerprint.read(ref, before, settings.salt)
    if after.partial:
        record.row["decisions"] = [*record.row["decisions"], DecisionKind.PARTLY_READ()]
    return replace(record, read=after)


def _tried_twice(ref: ScanRef, corpus: Path, settings: Settings) -> Record:
    record, may_pass = _attempt(ref, corpus, settings)
    if may_pass:
        time.sleep(RETRY_AFTER_S)
        record, _ = _attempt(ref, corpus, settings)
    return record


def rejected(ref: ScanRef, settings: Settings, rejection: Rejection) -> Record:
    """The record of a rejected scan."""
    raw = identity.raw_hash(ref, settings.salt)
    return Record(source=ref.source, raw_hash=raw, rejection=rejection, labels=label_row(ref, settings))


def rejected_at_sight(ref: ScanRef, settings: Settings) -> Record | None:
    """The record of a scan that nobody need open to reject: discovery said why, or none of its files has a byte."""
    rejection = ref.rejection
    if rejection is None and _holds_nothing(ref):
        rejection = Rejection(Reason.EMPTY, "an empty file" if len(ref.paths) == 1 else "all files are empty")
    if rejection is None:
        return None
    record = rejected(ref, settings, rejection.at(Stage.DISCOVER))
    return replace(record, read=fingerprint.look_at_each(ref, settings.salt))


def _holds_nothing(ref: ScanRef) -> bool:
    try:
        return bool(ref.paths) and all(path.stat().st_size == 0 for path in ref.paths)
    except OSError:
        return False


def label_row(ref: ScanRef, settings: Settings) -> dict[str, Any] | None:
    """What the source's table says of a scan, whatever becomes of its files; None where the source labels nothing."""
    if "labels" not in ref.meta:
        return None
    return {
        "source": ref.source,
        "scan_id": identity.scan_id(ref, settings.salt),
        "subject": identity.subject_id(ref, settings.salt),
        "modality": ref.modality,
        "labels": _label_values(ref.meta["labels"]),
    }


def _label_values(labels: object) -> list[int] | None:
    return list(in_order(labels)) if isinstance(labels, Mapping) else None


def landmarks_of(ref: ScanRef, *, settings: Settings) -> tuple[str, list[float]] | None:
    """What one scan adds to its modality's standard histogram: modality and landmarks; None if it cannot be used."""
    for pause_s in (RETRY_AFTER_S, 0.0):
        try:
            return _landmarks(ref, settings)
        except UserError:
            raise
        except (OSError, MemoryError):
            time.sleep(pause_s)
        except Exception:
            # Whatever it is, the scan meets it again when its turn comes, and is recorded then.
            return None
    return None


def _landmarks(ref: ScanRef, settings: Settings) -> tuple[str, list[float]] | None:
    scan = sources.get(ref.source).load(ref)
    if scan.unit == HU:
        return None
    _, foreground = unbiased(resample_scan(scan, settings), settings)
    return scan.modality, nyul.landmarks(foreground).tolist()


def _attempt(ref: ScanRef, corpus: Path, settings: Settings) -> tuple[Record, bool]:
    """What becomes of a scan, and whether it may be better the next time: a disk that failed, too little memory."""
    stage = Stage.LOAD
    try:
        scan = sources.get(ref.source).load(ref)
        stage = Stage.RESAMPLE
        resampled = resample_scan(scan, settings)
        stage = Stage.NORMALISE
        harmonized, annotations = normalise_scan(scan, resampled, settings), scan.annotations
        del scan, resampled  # hundreds of megabytes, while the volume is packed
        stage = Stage.WRITE
        return _write(ref, harmonized, annotations, corpus, settings), False
    except Rejection as error:
        # A copy: this one holds the frames that it was raised in, and they the scan.
        rejection, may_pass = error.at(stage), False
    except UserError:
        raise
    except MemoryError:
        rejection, may_pass = Rejection(Reason.WORKER_DIED, "the scan twice did not fit into memory"), True
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(corpus, error) from error
        # Only the kind of error: its text holds a path, and paths hold names.
        kind = os.strerror(error.errno) if error.errno else type(error).__name__
        failed = f"reading the {error.part}" if isinstance(error, UnreadablePart) else "reading or writing"
        rejection, may_pass = Rejection(Reason.IO_ERROR, f"{failed} failed: {kind}"), True
    except Exception as error:
        # Here and in discovery a fault that nobody foresaw becomes a rejection: a damaged file must not end a run over
        # a hundred thousand.
        if os.environ.get(DEBUG_VARIABLE):
            show_frames(error)
        rejection, may_pass = unforeseen(error), False
    return rejected(ref, settings, rejection.at(stage)), may_pass


def _write(
    ref: ScanRef, harmonized: HarmonizedScan, annotations: Annotations, corpus: Path, settings: Settings
) -> Record:
    subject, scan = identity.subject_id(ref, settings.salt), identity.scan_id(ref, settings.salt)
    volume = harmonized.volume
    image, mask = image_name(ref.source, subject, scan), None
    mask_sha256 = None
    if harmonized.mask_XYZ is not None:
        mask = mask_name(ref.source, subject, scan)
        mask_sha256 = write_volume(corpus / mask, StoredVolume(stored_XYZ=harmonized.mask_XYZ, affine=volume.affine))
    sha256 = write_volume(corpus / image, volume)
    brain_name, brain_sha256 = None, None
    if harmonized.brain_XYZ is not None:
        brain_name = brain_mask_name(ref.source, subject, scan)
        brain_sha256 = write_volume(
            corpus / brain_name, StoredVolume(stored_XYZ=harmonized.brain_XYZ.astype(np.uint8), affine=volume.affine)
        )
    raw = identity.raw_hash(ref, settings.salt)
    row: dict[str, Any] = {
        "image_file_name": image,
        "mask_file_name": mask,
        "mask_kind": harmonized.mask_kind,
        "scan_id": scan,
        "source": ref.source,
        "subject": subject,
        "session": identity.session_id(ref, settings.salt),
        "modality": harmonized.modality,
        "shape": list(volume.stored_XYZ.shape[:3]),
        "spacing": list(volume.spacing),
        "unit": harmonized.unit,
        "intensity_percentiles": list(harmonized.percentiles),
        "raw_percentiles": list(harmonized.raw_percentiles),
        "foreground_box": list(harmonized.foreground_box),
        "sha256": sha256,
        "mask_sha256": mask_sha256,
        "brain_mask_file_name": brain_name,
        "brain_mask_sha256": brain_sha256,
        "decisions": [str(line) for line in harmonized.decisions],
        "raw_hash": raw,
        "raw_shape": list(harmonized.raw_shape),
        "raw_spacing": list(harmonized.raw_spacing),
        "age": annotations.age if annotations.age is not None and math.isfinite(annotations.age) else None,
        "sex": annotations.sex,
        "labels": _label_values(annotations.labels),
        "points": [
            {"label": point.label, "x": point.xyz_mm[0], "y": point.xyz_mm[1], "z": point.xyz_mm[2]}
            for point in annotations.points
        ],
    }
    # Sparse, so that the journal of the sources that have neither stays as it was.
    if mask is not None and annotations.mask_labels:
        row["mask_labels"] = [{"value": value, "name": name} for value, name in sorted(annotations.mask_labels.items())]
    if any(point.diameter_mm is not None for point in annotations.points):
        row["point_diameters"] = [point.diameter_mm for point in annotations.points]
    if annotations.table:
        row["table"] = [{"column": column, "value": value} for column, value in annotations.table.items()]
    return Record(source=ref.source, raw_hash=raw, row=row, labels=label_row(ref, settings))
