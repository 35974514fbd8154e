"""What of a corpus goes to the Hub: the files and columns that its manifest names, and what lies beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harmonize.corpus import (
    CARD,
    IMAGES,
    INFO,
    INFO_KEYS,
    LABEL_SCHEMA,
    LABEL_TABLE,
    MASKS,
    NYUL,
    RECORDS,
    REJECTED,
    REJECTED_SCHEMA,
    SCAN_SCHEMA,
    SCANS,
    Corpus,
    journal,
    standards,
)
from harmonize.corpus.named_files import FOLDER_OF
from harmonize.errors import UserError
from harmonize.files import sha256_of, target_of_temporary
from harmonize.progress import Progress
from harmonize.voxels import nyul

HASH_OF = {
    "image_file_name": "sha256",
    "mask_file_name": "mask_sha256",
    "brain_mask_file_name": "brain_mask_sha256",
}
TABLES = {SCANS: SCAN_SCHEMA, REJECTED: REJECTED_SCHEMA, LABEL_TABLE: LABEL_SCHEMA}
FOLDERS = (IMAGES, MASKS, NYUL)
SHOWN = 20
"""Faults that are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class Publishable:
    """The files of a corpus, relative to it.

    Attributes:
        files: What is published.
        at_home: What lies among it and is not: left by killed runs, or histograms that no scan was made with.
    """

    files: tuple[str, ...]
    at_home: tuple[str, ...]


def publishable(corpus: Corpus) -> Publishable:
    """Look through a whole corpus, and read every file that would leave the house.

    Raises:
        UserError: Names all that must not be published: links, strays, shards that were not merged, columns that the
            manifest does not have, files that are missing or other than the manifest says.
    """
    hashes = _hashes(corpus)
    tables = [name for name in TABLES if name != LABEL_TABLE or os.path.lexists(corpus.path / name)]
    at_top = [CARD, INFO, *tables]
    histograms = _histograms(corpus)
    faults: list[str] = []
    faults += (f"{name}: a shard that was not merged; run `harmonize merge`" for name in _shards(corpus.path))
    faults += _faults_of_places(corpus.path, [*at_top, *hashes, *histograms])
    if not faults:
        faults += _faults_of_info(corpus)
        for name in tables:
            faults += (f"{name}: {fault}" for fault in _foreign_parts(corpus.path / name, TABLES[name]))
    at_home = []
    for name, kind in _beside(corpus.path, hashes.keys() | histograms):
        if kind == "file" and (_is_temporary(name) or _is_histogram(corpus.path, name)):
            at_home.append(name)
        else:
            faults.append(f"{name}: a {kind} that the manifest does not name")
    if not faults:
        faults += (
            f"{name}: no standard histogram alone" for name in histograms if not _is_histogram(corpus.path, name)
        )
        faults += _faults_of_hashes(corpus.path, hashes)
    if faults:
        more = f" ... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"{corpus.path}: not published: {'; '.join(faults[:SHOWN])}{more}; see `harmonize verify`, and move away "
            "what is not the corpus's"
        )
    return Publishable(files=(*at_top, *hashes, *histograms), at_home=tuple(at_home))


def _hashes(corpus: Corpus) -> dict[str, str | None]:
    """By file of the manifest: its hash."""
    return {
        name: digest
        for column in FOLDER_OF
        for name, digest in zip(corpus.scans[column], corpus.scans[HASH_OF[column]], strict=True)
        if name is not None
    }


def _histograms(corpus: Corpus) -> list[str]:
    """The standard histograms that scans of the manifest were made with."""
    rows = cast(list[dict[str, Any]], corpus.scans[["unit", "modality"]].to_dict("records"))
    return sorted(standards.used_by(rows))


def _shards(path: Path) -> list[str]:
    return [f"{RECORDS}/{name}" for name in journal.unmerged_shards(path / RECORDS)]


def _faults_of_places(path: Path, names: list[str]) -> Iterator[str]:
    """Names that lead to no plain file, or out of the corpus by a link."""
    links: dict[Path, bool] = {}

    def is_link(place: Path) -> bool:
        if place not in links:
            links[place] = place.is_symlink()
        return links[place]

    named = set()
    for name in names:
        place = path / name
        below = [place, *(parent for parent in place.parents if parent.is_relative_to(path) and parent != path)]
        linked = [one for one in below if is_link(one)]
        if linked:
            named.add(f"{linked[-1].relative_to(path).as_posix()}: a symbolic link")
        elif not place.is_file():
            yield f"{name} is missing"
    yield from sorted(named)


def _faults_of_info(corpus: Corpus) -> Iterator[str]:
    yield from (f"{INFO}: {key} is no key of ours" for key in sorted(corpus.info.keys() - INFO_KEYS))


def _foreign_parts(table: Path, schema: pa.Schema) -> Iterator[str]:
    """Columns, fields of columns and notes of a table that a schema does not have."""
    found = pq.read_schema(table)
    for name in sorted(set(_parts(found)) - set(_parts(schema))):
        yield f"column {name} is none of the manifest's"
    if len(set(found.names)) < len(found.names):
        yield "a column stands twice"
    notes = dict(found.metadata or {})
    pandas = notes.pop(b"pandas", None)
    if pandas is not None and json.loads(pandas).get("attributes"):
        yield "holds attributes of a pandas table"
    yield from (f"holds a note {key.decode(errors='replace')}" for key in sorted(notes))
    for field in found:
        extra = set(field.metadata or {}) - {b"PARQUET:field_id"}
        yield from (f"column {field.name} holds a note {key.decode(errors='replace')}" for key in sorted(extra))


def _parts(fields: pa.Schema | pa.StructType, above: str = "") -> Iterator[str]:
    for field in fields:
        name, kind = f"{above}{field.name}", field.type
        yield name
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            yield from _parts(cast(pa.StructType, kind), f"{name}.")


def _beside(path: Path, named: set[str]) -> Iterator[tuple[str, str]]:
    """What lies in the folders of a corpus and is not named, with what it is."""
    for top in FOLDERS:
        if (path / top).is_symlink():
            yield top, "symbolic link"
            continue
        for folder, folders, files in os.walk(path / top):
            place = Path(folder)
            for name in sorted((*files, *(one for one in folders if (place / one).is_symlink()))):
                file = place / name
                relative = file.relative_to(path).as_posix()
                if relative not in named:
                    kind = "symbolic link" if file.is_symlink() else "file" if file.is_file() else "special file"
                    yield relative, kind


def _is_temporary(name: str) -> bool:
    return target_of_temporary(Path(name).name) is not None


def _is_histogram(path: Path, name: str) -> bool:
    """Whether a file of the folder of histograms is one, with nothing behind it."""
    if Path(name).parent.as_posix() != NYUL or not name.endswith(".npy"):
        return False
    try:
        found = nyul.load(path / name)
    except UserError:
        return False
    stored = np.load(path / name, mmap_mode="r", allow_pickle=False)
    return found.scale.size > 0 and (path / name).stat().st_size == stored.offset + stored.nbytes


def _faults_of_hashes(path: Path, hashes: dict[str, str | None]) -> Iterator[str]:
    with Progress("check hashes", total=len(hashes), unit="file") as progress:
        for name, expected in hashes.items():
            if expected is None:
                yield f"{name}: the manifest has no hash of it"
            elif sha256_of(path / name) != expected:
                yield f"{name}: not the file that the manifest's hash is of"
            progress.advance()
