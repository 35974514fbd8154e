"""Open a corpus, and read its tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harmonize.corpus import named_files
from harmonize.corpus.layout import (
    LABEL_SCHEMA,
    LABEL_TABLE,
    REJECTED,
    REJECTED_SCHEMA,
    SCAN_SCHEMA,
    SCANS,
    SCHEMA_VERSION,
    SINCE_0_1_0,
)
from harmonize.corpus.named_files import FOLDER_OF
from harmonize.corpus.target import INFO, fault_of_info, read_info
from harmonize.errors import UserError, WrongUse
from harmonize.files import sha256_of
from harmonize.parquet import read_parquet
from harmonize.settings import StoredRegion

if TYPE_CHECKING:
    import pandas as pd

_LABEL_COLUMNS = [name for name in LABEL_SCHEMA.names if name != "accepted"]


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
            WrongUse: The folder is no corpus.
            UserError: It is one of another schema version.
        """
        corpus = cls(Path(path))
        if not corpus.path.is_dir():
            what = "a file, no folder" if corpus.path.is_file() else "no such folder"
            raise WrongUse(f"{path}: {what}; give a corpus, which `harmonize SOURCE RAW --out` makes")
        if not (corpus.path / INFO).is_file():
            raise WrongUse(f"{path}: no corpus there ({INFO} is missing); make one with `harmonize SOURCE RAW --out`")
        fault = fault_of_info(corpus.info)
        if fault:
            raise WrongUse(f"{path}: not a corpus of harmonize ({INFO} {fault}); give the folder of a corpus")
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
        """The rejected scans; columns as in `REJECTED_SCHEMA`."""
        return _to_pandas(_read_table(self.path / REJECTED, REJECTED_SCHEMA))

    @cached_property
    def labels(self) -> pd.DataFrame:
        """What the sources' tables label, rejected scans too, ordered by source, subject and scan.

        Columns as in `LABEL_SCHEMA`. A corpus of version 0.1.0 has no such table: then these are its accepted rows.
        """
        if (self.path / LABEL_TABLE).is_file():
            return _to_pandas(_read_table(self.path / LABEL_TABLE, LABEL_SCHEMA))
        rows = _read_table(self.path / SCANS, SCAN_SCHEMA).select(_LABEL_COLUMNS).to_pylist()
        return _to_pandas(pa.Table.from_pylist(label_rows(rows, []), schema=LABEL_SCHEMA))

    @cached_property
    def table(self) -> pd.DataFrame:
        """What users' own tables said, as text: a row a scan that one speaks of, by source and scan_id; their columns.

        None where a scan's table says nothing.
        """
        import pandas as pd

        scans = self.scans[["source", "scan_id", "table"]]
        said = {
            (source, scan_id): {entry["column"]: entry["value"] for entry in entries}
            for source, scan_id, entries in scans.itertuples(index=False)
            if entries is not None and len(entries)
        }
        index = pd.MultiIndex.from_tuples(said, names=["source", "scan_id"])
        columns = dict.fromkeys(column for row in said.values() for column in row)
        values = {column: [row.get(column) for row in said.values()] for column in columns}
        return pd.DataFrame(values, index=index, dtype=object)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along R, A and S, in mm."""
        x, y, z = self.info["settings"]["spacing"]
        return x, y, z

    @property
    def circle_mm(self) -> tuple[float, float, float] | None:
        """Edges in mm of the box around the circle of Willis that alone is stored; None where more is."""
        edges_mm = self.info["settings"].get("circle_mm")
        return None if edges_mm is None else (edges_mm[0], edges_mm[1], edges_mm[2])

    @property
    def region(self) -> StoredRegion:
        """What of each scan is stored."""
        cropped = bool(self.info["settings"].get("crop_foreground"))
        return StoredRegion.of(circle=self.circle_mm is not None, cropped=cropped)

    @property
    def mri_norms(self) -> dict[str, str]:
        """How each source's MRI was normalised, by source."""
        return {source: chosen["mri_norm"] for source, chosen in self.info["sources"].items()}

    def manifest_sha256(self) -> str:
        """Hex SHA-256 of metadata.parquet: names the content of the whole corpus, since rows hold the files' hashes."""
        return sha256_of(self.path / SCANS)


def table_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of metadata.parquet and of rejected.parquet, as `write_manifest` took them.

    Raises:
        UserError: A table is missing or damaged.
    """
    return (
        _read_table(path / SCANS, SCAN_SCHEMA).to_pylist(),
        _read_table(path / REJECTED, REJECTED_SCHEMA).to_pylist(),
    )


def stored_label_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of labels.parquet; none where there is no such table.

    Raises:
        UserError: It is damaged.
    """
    return _read_table(path / LABEL_TABLE, LABEL_SCHEMA).to_pylist() if (path / LABEL_TABLE).is_file() else []


def label_rows(accepted: list[dict[str, Any]], labels: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
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


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = read_parquet(path, schema, optional=SINCE_0_1_0 if schema is SCAN_SCHEMA else ())
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
