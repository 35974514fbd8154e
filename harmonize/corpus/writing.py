"""Write the tables of a corpus and its dataset card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harmonize.corpus.card import corpus_card
from harmonize.corpus.layout import CARD, LABEL_SCHEMA, LABEL_TABLE, REJECTED, REJECTED_SCHEMA, SCAN_SCHEMA, SCANS
from harmonize.corpus.reading import Corpus, label_rows
from harmonize.corpus.target import RECORDS
from harmonize.errors import UserError
from harmonize.files import atomic_path, naming, sha256_of, write_text


def write_manifest(
    path: Path, accepted: list[dict[str, Any]], rejected: list[dict[str, Any]], labels: Iterable[dict[str, Any]] = ()
) -> None:
    """Write the tables and the dataset card; the order of the rows given does not matter.

    Args:
        path: The corpus.
        accepted: Rows of metadata.parquet.
        rejected: Rows of rejected.parquet.
        labels: Of every scan that its source labels: source, scan_id, subject, modality and labels. Accepted rows with
            labels need not be named here.
    """
    try:
        accepted = sorted(accepted, key=lambda row: (row["source"], row["subject"], row["scan_id"]))
        rejected = sorted(rejected, key=lambda row: (row["source"], row["raw_hash"]))
        labelled = label_rows(accepted, labels)
    except KeyError as error:
        raise _odd_record(path / SCANS) from error
    if labelled:
        _write_table(path / LABEL_TABLE, labelled, LABEL_SCHEMA)
    else:
        (path / LABEL_TABLE).unlink(missing_ok=True)
    _write_table(path / REJECTED, rejected, REJECTED_SCHEMA)
    _write_table(path / SCANS, accepted, SCAN_SCHEMA)
    card = corpus_card(Corpus.open(path).info, accepted, len(rejected), sha256_of(path / SCANS))
    write_text(path / CARD, card)


def _write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except pa.ArrowException as error:
        raise _odd_record(path) from error
    with atomic_path(path) as temporary, naming(path):
        pq.write_table(table, temporary, compression="zstd")


def _odd_record(table: Path) -> UserError:
    return UserError(
        f"{table}: a record in {RECORDS}/ holds something else than harmonize writes; remove its line, and run the "
        "harmonize command again"
    )
