"""Vectors of the scans of a corpus in one table, which says how they were made; begun ones go on where they were."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.files import atomic_path
from harmonize.parquet import read_parquet
from harmonize.progress import Progress
from harmonize.provenance import git_revision, library_versions
from headspark.config import to_plain
from headspark.data.cohort import ScanItem, scan_item
from headspark.embedding.vectors import Embedded, Pooling, embed_scans, settled
from headspark.encoder import MaskableEncoder
from headspark.weights import weights_sha256

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("scan_id", pa.string()),
        ("subject", pa.string()),
        ("modality", pa.string()),
        ("sha256", pa.string()),
        ("vector", pa.list_(pa.float32())),
    ]
)
CELLS = (
    pa.field("cells", pa.list_(pa.float16())),
    pa.field("cells_shape", pa.list_(pa.int32())),
    pa.field("cells_start", pa.list_(pa.int32())),
)
"""The cell map of a scan, row by row, its shape (C, d, h, w), and the voxel of the stored volume where it begins."""

FACTS = b"headspark.embedding"
"""Where the table's metadata say how the vectors were made, as JSON."""

PARTS = ".parts"
"""Behind the table's name: the folder of what is done so far."""

PART_SCANS, PART_S = 256, 60.0
"""Scans of a part at the most, and seconds after which one is written."""

_SAME = ("encoder_sha256", "preprocessing", "pooling", "precision", "cells")
"""Facts in which all rows of a table agree. The corpus may have grown: rows are known by the hash of their image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """A table of vectors.

    Attributes:
        facts: How they were made: ``encoder``, ``encoder_sha256``, ``preprocessing``, ``pooling``, ``corpus_sha256``.
        vectors: By source and scan id, (E,) float32.
        faults: Scans of the corpus that could not be used, a line each.
        interrupted: Whether it was asked to stop before it was through.
    """

    facts: Mapping[str, Any]
    vectors: Mapping[tuple[str, str], NDArray[np.float32]]
    faults: tuple[str, ...] = ()
    interrupted: bool = False


def embed_corpus(
    encoder: MaskableEncoder,
    corpus: Corpus,
    out: Path,
    *,
    name: str,
    pooling: Pooling | None = None,
    cells: bool = False,
    device: torch.device | None = None,
    batch: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    asked: Callable[[], bool] = lambda: False,
) -> Embeddings:
    """Embed the scans of a corpus into a parquet file; vectors that are there already are not made again.

    Args:
        encoder: In eval mode, with ``preprocessing``.
        corpus: Whose scans.
        out: The table. While it is made, what is done lies beside it, in the folder `PARTS`.
        name: Of the encoder, for people.
        pooling: How cells become a vector.
        cells: Keep the cell maps too, as float16.
        device: Where to compute; None: the CPU.
        batch: Tiles of a forward pass.
        precision: Of the network.
        asked: Whether to stop; the same call goes on.

    Raises:
        WrongUse: `out` is something else, or its vectors were made in another way.
        UserError: No scan could be used.
    """
    facts = {
        "encoder": name,
        "encoder_sha256": weights_sha256(encoder.state_dict()),
        "config": to_plain(encoder.config),
        "preprocessing": getattr(encoder, "preprocessing", None),
        "pooling": {
            **to_plain(settled(pooling or Pooling(), encoder)),
            "stride": encoder.strides[-1],
            "region": "foreground",
        },
        "precision": precision,
        "cells": cells,
        "corpus_sha256": corpus.manifest_sha256(),
        "corpus_spacing_mm": list(corpus.spacing),
        "revision": git_revision(),
        "libraries": library_versions(),
    }
    facts = json.loads(json.dumps(facts))
    schema = pa.schema([*SCHEMA, *CELLS]) if cells else SCHEMA
    parts = out.with_name(out.name + PARTS)
    known = _keys(_known(out, parts, facts, schema))
    scans = [scan_item(corpus.path, row) for row in corpus.scans.to_dict("records")]
    left = [scan for scan in scans if _key(scan) not in known]
    faults = _embed(encoder, left, facts, schema, parts, len(scans) - len(left), device, batch, asked) if left else []
    rows = _known(out, parts, facts, schema)
    interrupted = asked()
    if not interrupted:
        places = _keys(rows)
        rows = rows.take([places[_key(scan)] for scan in scans if _key(scan) in places])
        if not len(rows):
            raise UserError(f"{corpus.path}: none of its {len(scans)} scans could be embedded: {faults[0]}")
        _write(out, rows, facts)
        shutil.rmtree(parts, ignore_errors=True)
    return Embeddings(facts=facts, vectors=_vectors(rows), faults=tuple(faults), interrupted=interrupted)


def read_embeddings(path: Path) -> Embeddings:
    """Read a table that `embed_corpus` wrote.

    Raises:
        UserError: It cannot be read.
        WrongUse: It is something else.
    """
    facts, rows = _read(path, SCHEMA)
    vectors = _vectors(rows)
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise UserError(f"{path}: is damaged (vectors of several lengths, or none); embed the corpus again")
    return Embeddings(facts=facts, vectors=vectors)


def _embed(
    encoder: MaskableEncoder,
    scans: Sequence[ScanItem],
    facts: Mapping[str, Any],
    schema: pa.Schema,
    parts: Path,
    done: int,
    device: torch.device | None,
    batch: int,
    asked: Callable[[], bool],
) -> list[str]:
    """Embed scans, part by part; gives what could not be used."""
    kept = {name: facts["pooling"][name] for name in ("kind", "patch", "overlap")}
    pooling = Pooling(**{**kept, "patch": tuple(kept["patch"])})
    parts.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    rows: list[dict[str, Any]] = []
    since = time.monotonic()

    def keep() -> None:
        if rows:
            number = sum(1 for _ in parts.glob("*.parquet"))
            _write(parts / f"{number:06d}-{os.getpid()}.parquet", pa.Table.from_pylist(rows, schema=schema), facts)
            rows.clear()

    found = embed_scans(
        encoder,
        scans,
        pooling,
        device=device or torch.device("cpu"),
        batch=batch,
        precision=facts["precision"],
        asked=asked,
    )
    with Progress("headspark embed", total=done + len(scans), done=done) as progress:
        for one in found:
            if one.vector_E is None:
                faults.append(one.fault)
            else:
                rows.append(_row(one, cells=facts["cells"]))
            progress.advance(**({"not_used": len(faults)} if faults else {}))
            if len(rows) >= PART_SCANS or time.monotonic() - since > PART_S:
                keep()
                since = time.monotonic()
    keep()
    return faults


def _row(one: Embedded, *, cells: bool) -> dict[str, Any]:
    scan = one.scan
    row: dict[str, Any] = {
        "source": scan.source,
        "scan_id": scan.scan_id,
        "subject": scan.subject.removeprefix(f"{scan.source}/"),
        "modality": scan.modality,
        "sha256": scan.sha256,
        "vector": one.vector_E,
    }
    if cells and one.cells_Cdhw is not None:
        row |= {
            "cells": one.cells_Cdhw.astype(np.float16).ravel(),
            "cells_shape": list(one.cells_Cdhw.shape),
            "cells_start": list(scan.box[::2]),
        }
    return row


def _key(scan: ScanItem) -> tuple[str, str, str]:
    return scan.source, scan.scan_id, scan.sha256


def _known(out: Path, parts: Path, facts: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Rows that are there already, in the table and in its parts; the newest of a scan comes last."""
    files = [*([out] if os.path.lexists(out) else []), *sorted(parts.glob("*.parquet"))]
    return pa.concat_tables([schema.empty_table(), *(_read(path, schema, facts)[1] for path in files)])


def _keys(rows: pa.Table) -> dict[tuple[str, str, str], int]:
    """The place of each scan among rows."""
    columns = (rows[name].to_pylist() for name in ("source", "scan_id", "sha256"))
    return {key: place for place, key in enumerate(zip(*columns, strict=True))}


def _vectors(rows: pa.Table) -> dict[tuple[str, str], NDArray[np.float32]]:
    names = zip(rows["source"].to_pylist(), rows["scan_id"].to_pylist(), strict=True)
    return {name: np.asarray(vector.values, np.float32) for name, vector in zip(names, rows["vector"], strict=True)}


def _read(path: Path, schema: pa.Schema, wanted: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], pa.Table]:
    try:
        stated = (pq.read_schema(path).metadata or {}).get(FACTS) if path.is_file() else None
        facts = None if stated is None else json.loads(stated)
        if not isinstance(facts, dict):
            raise WrongUse(f"{path}: no table of embeddings; `headspark embed` writes one")
        other = [name for name in _SAME if wanted is not None and facts.get(name) != wanted[name]]
        if other:
            raise WrongUse(
                f"{path}: its vectors were made with another {' and '.join(other)}; give another --out, or delete it"
            )
        return facts, read_parquet(path, schema).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); delete it and embed the corpus again"
        ) from error


def _write(path: Path, rows: pa.Table, facts: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        stated = rows.replace_schema_metadata({FACTS: json.dumps(facts, sort_keys=True)})
        pq.write_table(stated.combine_chunks(), temporary, compression="zstd")
