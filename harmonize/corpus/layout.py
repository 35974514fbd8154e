"""Where the files of a corpus lie, and the columns of its tables."""

from __future__ import annotations

import pyarrow as pa

from harmonize.corpus.named_files import FOLDER_OF

SCHEMA_VERSION = 1

SCANS, REJECTED, LABEL_TABLE, CARD = "metadata.parquet", "rejected.parquet", "labels.parquet", "README.md"
IMAGES, MASKS = "images", "masks"

SCAN_SCHEMA = pa.schema(
    [
        ("image_file_name", pa.string()),
        ("mask_file_name", pa.string()),
        ("mask_kind", pa.string()),
        ("scan_id", pa.string()),
        ("source", pa.string()),
        ("subject", pa.string()),
        ("session", pa.string()),
        ("modality", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("spacing", pa.list_(pa.float32())),
        ("unit", pa.string()),
        ("intensity_percentiles", pa.list_(pa.float32())),
        ("raw_percentiles", pa.list_(pa.float32())),
        ("foreground_box", pa.list_(pa.int32())),
        ("sha256", pa.string()),
        ("mask_sha256", pa.string()),
        ("brain_mask_file_name", pa.string()),
        ("brain_mask_sha256", pa.string()),
        ("decisions", pa.list_(pa.string())),
        ("raw_hash", pa.string()),
        ("raw_shape", pa.list_(pa.int32())),
        ("raw_spacing", pa.list_(pa.float32())),
        ("age", pa.float32()),
        ("sex", pa.string()),
        ("labels", pa.list_(pa.int8())),
        (
            "points",
            pa.list_(
                pa.struct([("label", pa.string()), ("x", pa.float32()), ("y", pa.float32()), ("z", pa.float32())])
            ),
        ),
        ("mask_labels", pa.list_(pa.struct([("value", pa.int32()), ("name", pa.string())]))),
        ("table", pa.list_(pa.struct([("column", pa.string()), ("value", pa.string())]))),
        ("point_diameters", pa.list_(pa.float32())),
    ]
)

SINCE_0_1_0 = ("mask_labels", "table", "point_diameters")
"""Columns that tables of version 0.1.0 lack. `mask_labels` names the values of a ``labels`` mask, as far as they have
names; `table` is what a user's own table said of the scan, as text; `point_diameters` are those of `points` in mm,
where they are known."""

REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "raw_hash", "stage", "reason", "message")])

LABEL_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("scan_id", pa.string()),
        ("subject", pa.string()),
        ("modality", pa.string()),
        ("labels", pa.list_(pa.int8())),
        ("accepted", pa.bool_()),
    ]
)
"""The whole label table of the sources: rejected scans too, so that folds do not depend on what was rejected. `labels`
is null where the source's table names the scan but its labels cannot be used."""

FILE_COLUMNS = tuple(FOLDER_OF)
"""Columns of the manifest that name files; null where there is none."""

INFO_KEYS = {"schema_version", "settings", "sources", "percentiles", "libraries"}
"""What corpus.json holds."""


def image_name(source: str, subject: str, scan_id: str) -> str:
    """Path of an image relative to the corpus, POSIX."""
    return f"{IMAGES}/{source}/{subject}/{scan_id}.nii.gz"


def mask_name(source: str, subject: str, scan_id: str) -> str:
    """Path of a mask relative to the corpus, POSIX."""
    return f"{MASKS}/{source}/{subject}/{scan_id}.nii.gz"


def brain_mask_name(source: str, subject: str, scan_id: str) -> str:
    """Path of a brain mask relative to the corpus, POSIX."""
    return f"{MASKS}/{source}/{subject}/{scan_id}__brain.nii.gz"
