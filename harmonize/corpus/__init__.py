"""The corpus on disk: the one place that knows its layout and the columns of its manifest.

::

    corpus/
      README.md           dataset card
      corpus.json         schema version, settings, library versions
      metadata.parquet    a row a scan (`SCAN_SCHEMA`)
      rejected.parquet    a row a refused scan (`REJECTED_SCHEMA`)
      labels.parquet      a row a scan that its source labels, accepted or refused (`LABEL_SCHEMA`); absent without any
      folds.parquet       which patients are held out together; the first fine-tuning run writes it, nothing here does
      records/            the journal that the tables above it are made from: one line of JSON a scan
      images/<source>/<subject>/<scan_id>.nii.gz
      masks/<source>/<subject>/<scan_id>.nii.gz, <scan_id>__brain.nii.gz
      nyul/<modality>.npy
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from harmonize.corpus import named_files
from harmonize.corpus.card import corpus_card
from harmonize.corpus.named_files import FOLDER_OF
from harmonize.corpus.target import INFO, NYUL, RECORDS, check_ours, fault_of_info, read_info
from harmonize.corpus.volume import read_volume, write_volume
from harmonize.errors import UserError
from harmonize.files import atomic_path, sha256_of, write_json, write_text
from harmonize.parquet import read_parquet
from harmonize.provenance import library_versions
from harmonize.salt import is_known_by
from harmonize.settings import PERCENTILES, Settings
from harmonize.voxels.stored import StoredVolume

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "INFO",
    "NYUL",
    "RECORDS",
    "SCHEMA_VERSION",
    "Corpus",
    "StoredVolume",
    "read_volume",
    "write_volume",
]

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
    ]
)

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
"""The whole label table of the sources: refused scans too, so that folds do not depend on what was refused. `labels` is
null where the source's table names the scan but its labels cannot be used."""


@dataclass(frozen=True)
class Corpus:
    """A harmonized corpus, read lazily.

    Attributes:
        path: Its folder.

    Example::

        corpus = Corpus.open("corpus")
        row = corpus.scans.iloc[0]
        volume = read_volume(corpus.path / row.image_file_name)
    """

    path: Path

    @classmethod
    def open(cls, path: Path | str) -> Corpus:
        """Open a corpus that `harmonize` wrote.

        Raises:
            UserError: The folder is no corpus, or one of another schema version.
        """
        corpus = cls(Path(path))
        if not (corpus.path / INFO).is_file():
            raise UserError(f"{path}: no corpus there ({INFO} is missing); make one with `harmonize SOURCE RAW --out`")
        fault = fault_of_info(corpus.info)
        if fault:
            raise UserError(f"{path}: not a corpus of harmonize ({INFO} {fault}); give the folder of a corpus")
        version = corpus.info["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: corpus schema {version}, this headspark reads {SCHEMA_VERSION}; harmonize again")
        return corpus

    @cached_property
    def info(self) -> dict[str, Any]:
        """The content of corpus.json."""
        return read_info(self.path)

    @cached_property
    def scans(self) -> pd.DataFrame:
        """The manifest, a row a scan, ordered by source, subject and scan; columns as in `SCAN_SCHEMA`."""
        return _to_pandas(_read_table(self.path / SCANS, SCAN_SCHEMA))

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """The refused scans; columns as in `REJECTED_SCHEMA`."""
        return _to_pandas(_read_table(self.path / REJECTED, REJECTED_SCHEMA))

    @cached_property
    def labels(self) -> pd.DataFrame:
        """What the sources' tables label, refused scans too, ordered by source, subject and scan.

        Columns as in `LABEL_SCHEMA`. A corpus of version 0.1.0 has no such table: then these are its accepted rows.
        """
        if (self.path / LABEL_TABLE).is_file():
            return _to_pandas(_read_table(self.path / LABEL_TABLE, LABEL_SCHEMA))
        rows = _read_table(self.path / SCANS, SCAN_SCHEMA).select(_LABEL_COLUMNS).to_pylist()
        return _to_pandas(pa.Table.from_pylist(_label_rows(rows, []), schema=LABEL_SCHEMA))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along R, A and S, in mm."""
        x, y, z = self.info["settings"]["spacing"]
        return x, y, z

    @property
    def mri_norms(self) -> dict[str, str]:
        """How each source's MRI was normalised, by source."""
        return {source: chosen["mri_norm"] for source, chosen in self.info["sources"].items()}

    def manifest_sha256(self) -> str:
        """Hex SHA-256 of metadata.parquet: names the content of the whole corpus, since rows hold the files' hashes."""
        return sha256_of(self.path / SCANS)


def image_name(source: str, subject: str, scan_id: str) -> str:
    """Path of an image relative to the corpus, POSIX."""
    return f"{IMAGES}/{source}/{subject}/{scan_id}.nii.gz"


def mask_name(source: str, subject: str, scan_id: str) -> str:
    """Path of a mask relative to the corpus, POSIX."""
    return f"{MASKS}/{source}/{subject}/{scan_id}.nii.gz"


def brain_mask_name(source: str, subject: str, scan_id: str) -> str:
    """Path of a brain mask relative to the corpus, POSIX."""
    return f"{MASKS}/{source}/{subject}/{scan_id}__brain.nii.gz"


FILE_COLUMNS = tuple(FOLDER_OF)
"""Columns of the manifest that name files; null where there is none."""


def check_claim(path: Path, source: str, settings: Settings) -> dict[str, Any]:
    """Check that a corpus is new, or was made with the same settings; nothing is written.

    Returns:
        The content of corpus.json, or what a new one begins with.

    Raises:
        UserError: The corpus holds scans made otherwise (exit code 2); names the first difference.
    """
    info: dict[str, Any] = {"settings": settings.shared(), "sources": {}}
    if check_ours(path):
        info = Corpus.open(path).info
    there = info["settings"]
    if not is_known_by(settings.salt, there.get(SALT)):
        raise UserError(f"{path}: was made with {ANOTHER_SALT}", exit_code=2)
    _refuse_difference(path, there, settings.shared() | {SALT: there[SALT]})
    _refuse_difference(path, info["sources"].get(source, settings.of_source()), settings.of_source())
    return info


INFO_KEYS = {"schema_version", "settings", "sources", "percentiles", "libraries"}
"""What corpus.json holds."""


def claim(path: Path, source: str, settings: Settings) -> None:
    """Create corpus.json, or add the source to what is there.

    Raises:
        UserError: See `check_claim`.
    """
    info = check_claim(path, source, settings)
    sources = info["sources"] | {source: settings.of_source()}
    fresh = {
        "schema_version": SCHEMA_VERSION,
        "settings": info["settings"],
        "sources": dict(sorted(sources.items())),
        "percentiles": list(PERCENTILES),
        "libraries": library_versions(),
    }
    if fresh != info:
        write_json(path / INFO, fresh)


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
        labelled = _label_rows(accepted, labels)
    except KeyError as error:
        raise _odd_record(path / SCANS) from error
    if labelled:
        _write_table(path / LABEL_TABLE, labelled, LABEL_SCHEMA)
    else:
        (path / LABEL_TABLE).unlink(missing_ok=True)
    _write_table(path / REJECTED, rejected, REJECTED_SCHEMA)
    _write_table(path / SCANS, accepted, SCAN_SCHEMA)
    write_text(path / CARD, corpus_card(Corpus.open(path).info, accepted, len(rejected)))


def table_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of metadata.parquet and of rejected.parquet, as `write_manifest` took them.

    Raises:
        UserError: A table is missing or damaged.
    """
    return (
        _read_table(path / SCANS, SCAN_SCHEMA).to_pylist(),
        _read_table(path / REJECTED, REJECTED_SCHEMA).to_pylist(),
    )


SALT = "salt_fingerprint"
ANOTHER_SALT = "another --salt; give the same one, in HARMONIZE_SALT or --salt-file"


_LABEL_COLUMNS = [name for name in LABEL_SCHEMA.names if name != "accepted"]


def _label_rows(accepted: list[dict[str, Any]], labels: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of labels.parquet in their order; an accepted scan's own row says what its labels are.

    The modality stays the table's, since that of the header is known of accepted scans alone.
    """
    found = {(entry["source"], entry["subject"], entry["scan_id"]): entry | {"accepted": False} for entry in labels}
    for row in accepted:
        key = (row["source"], row["subject"], row["scan_id"])
        if key in found or row["labels"] is not None:
            modality = found[key]["modality"] if key in found else row["modality"]
            found[key] = {name: row[name] for name in _LABEL_COLUMNS} | {"modality": modality, "accepted": True}
    return [found[key] for key in sorted(found)]


def _refuse_difference(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: was made with {name} {there.get(name)}, now {wanted.get(name)} is asked for; "
                "use the same settings or another --out",
                exit_code=2,
            )


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = read_parquet(path, schema)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; rebuild it with `harmonize merge {path.parent}`") from error
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: {fault}; rebuild it with `harmonize merge {path.parent}`") from error
    named_files.check(table, where=str(path), folders=FOLDER_OF if schema is SCAN_SCHEMA else {})
    return table


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """As pandas, with None for absent text: pandas 3 would say NaN, which is no path and is not false."""
    frame = table.to_pandas()
    for field in table.schema:
        if pa.types.is_string(field.type):
            column = frame[field.name].astype(object)
            frame[field.name] = column.where(column.notna(), None)
    return frame


def _write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except pa.ArrowException as error:
        raise _odd_record(path) from error
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _odd_record(table: Path) -> UserError:
    return UserError(
        f"{table}: a record in {RECORDS}/ holds something else than harmonize writes; remove its line, and run the "
        "harmonize command again"
    )
