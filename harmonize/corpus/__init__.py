"""The corpus on disk: the one place that knows its layout and the columns of its manifest.

::

    corpus/
      README.md           dataset card
      corpus.json         schema version, settings, library versions
      metadata.parquet    a row a scan (`SCAN_SCHEMA`)
      rejected.parquet    a row a rejected scan (`REJECTED_SCHEMA`)
      labels.parquet      a row a scan that its source labels, accepted or rejected (`LABEL_SCHEMA`); absent without any
      folds.parquet       which patients are held out together; the first fine-tuning run writes it, nothing here does
      records/            the journal that the tables above it are made from: one line of JSON a scan
      images/<source>/<subject>/<scan_id>.nii.gz
      masks/<source>/<subject>/<scan_id>.nii.gz, <scan_id>__brain.nii.gz
      nyul/<modality>.npy
"""

from __future__ import annotations

from harmonize.corpus.claims import ANOTHER_SALT, check_claim, claim
from harmonize.corpus.layout import (
    CARD,
    FILE_COLUMNS,
    IMAGES,
    INFO_KEYS,
    LABEL_SCHEMA,
    LABEL_TABLE,
    MASKS,
    REJECTED,
    REJECTED_SCHEMA,
    SCAN_SCHEMA,
    SCANS,
    SCHEMA_VERSION,
    brain_mask_name,
    image_name,
    mask_name,
)
from harmonize.corpus.mask_labels import mask_labels
from harmonize.corpus.reading import Corpus, stored_label_rows, table_rows
from harmonize.corpus.target import INFO, NYUL, RECORDS
from harmonize.corpus.volume import read_volume, write_volume
from harmonize.corpus.writing import write_manifest
from harmonize.voxels.stored import StoredVolume

__all__ = [
    "ANOTHER_SALT",
    "CARD",
    "FILE_COLUMNS",
    "IMAGES",
    "INFO",
    "INFO_KEYS",
    "LABEL_SCHEMA",
    "LABEL_TABLE",
    "MASKS",
    "NYUL",
    "RECORDS",
    "REJECTED",
    "REJECTED_SCHEMA",
    "SCANS",
    "SCAN_SCHEMA",
    "SCHEMA_VERSION",
    "Corpus",
    "StoredVolume",
    "brain_mask_name",
    "check_claim",
    "claim",
    "image_name",
    "mask_labels",
    "mask_name",
    "read_volume",
    "stored_label_rows",
    "table_rows",
    "write_manifest",
    "write_volume",
]
