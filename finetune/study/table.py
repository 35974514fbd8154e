"""The predictions of a study: a row a cell and held-out series. All that is published is computed from this table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.evaluation.predictions import ID, MODALITY, PREDICTIONS, SUBJECT, TARGET_PREFIX
from finetune.study.config import Cell, StudyConfig
from finetune.tasks.aneurysm import LABELS, PRESENT
from harmonize.bounded_files import fits, parse_json, read_small_json
from harmonize.errors import UserError, WrongUse
from harmonize.files import atomic_path
from harmonize.parquet import read_parquet
from headspark.config import from_plain, to_plain

INSIDE, OUTSIDE, PAIRS = "inside", "outside", "pairs"
"""Splits: held-out series like the training series; out of distribution; counterfactual pairs."""

LABELLED, ARM, SEED, SPLIT = "labelled", "arm", "seed", "split"
PAIR, DIAMETER, SPACING = "pair", "diameter_mm", "spacing_mm"
"""Which two series are one head with and without a sac; the largest sac; the longest edge of a raw voxel."""

CELLS = "cells"
"""Folder of the cells in that of a study."""

PLAN = "plan.json"
"""In the folder of a study, written before its first cell is run; it is never written again."""

FACTS, PLANNED = b"finetune.study", b"finetune.study.planned"
"""Where the metadata of the table hold the study's recipe, and what its plan said beforehand, as JSON."""

ENCODER = b"finetune.study.encoder"
"""Where the metadata of a cell's predictions hold the hash of the pretrained encoder that it began with."""

_POWER = {"series": int, "difference_error": float, "smallest": float}
_PLANNED = {
    "assumed": lambda assumed: _each(assumed, float),
    "power": lambda power: _each(power, lambda splits: _each(splits, _POWER)),
}

TARGETS = tuple(f"{TARGET_PREFIX}{label}" for label in LABELS)
SCHEMA = pa.schema(
    [
        (LABELLED, pa.int32()),
        (ARM, pa.string()),
        (SEED, pa.int64()),
        (SPLIT, pa.string()),
        (ID, pa.string()),
        (SUBJECT, pa.string()),
        (MODALITY, pa.string()),
        (PAIR, pa.string()),
        (DIAMETER, pa.float32()),
        (SPACING, pa.float32()),
        *((label, pa.float32()) for label in LABELS),
        *((target, pa.int8()) for target in TARGETS),
    ]
)
"""The probability of a label that a cell says nothing of is NaN: probes speak of `PRESENT` alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study's predictions, and what it was.

    Attributes:
        config: Its recipe.
        rows: Columns as in `SCHEMA`.
        missing: Cells without predictions.
        planned: What was said before its first cell was run: what was ``assumed``, and the ``power`` of its
            comparisons, by measure and split; None where that was not kept.
    """

    config: StudyConfig
    rows: pd.DataFrame
    missing: tuple[str, ...] = ()
    planned: Mapping[str, Any] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that there are, in their order."""
        return tuple(split for split in (INSIDE, OUTSIDE, PAIRS) if (self.rows[SPLIT] == split).any())

    @property
    def arms(self) -> tuple[str, ...]:
        """Those of the recipe, then the probes, as far as they have predictions."""
        names = dict.fromkeys(cell.arm for cell in self.config.cells())
        return tuple(name for name in names if (self.rows[ARM] == name).any())


def cell_path(out: Path, cell: Cell) -> Path:
    """The predictions of a cell: what makes it finished."""
    return out / CELLS / cell.name / PREDICTIONS


def write_cell(out: Path, cell: Cell, rows: pd.DataFrame, *, encoder: str | None = None) -> None:
    """Write the predictions of a cell.

    Args:
        out: The study's folder.
        cell: Which.
        rows: Columns as in `SCHEMA` without the cell's own.
        encoder: Hash of the pretrained encoder that it began with; None: it began with none.
    """
    rows = rows.copy()
    rows[LABELLED], rows[ARM], rows[SEED] = cell.labelled, cell.arm, cell.seed
    rows = rows.sort_values([SPLIT, ID], ignore_index=True)
    _write(cell_path(out, cell), rows, {} if encoder is None else {ENCODER: encoder.encode()})


def gather(config: StudyConfig, out: Path) -> Study:
    """Put the predictions of all finished cells into one table, ``predictions.parquet``.

    Raises:
        UserError: A cell's predictions are damaged, two cells disagree about a series, or began with two pretrained
            encoders.
    """
    cells = config.cells()
    there = [cell for cell in cells if cell_path(out, cell).is_file()]
    if not there:
        raise WrongUse(f"{out}: no cell of the study has predictions yet; run it first")
    rows = pd.concat([_read(cell_path(out, cell)) for cell in there], ignore_index=True)
    check_encoders(config, out)
    study = Study(
        config=config,
        rows=_checked(rows, out),
        missing=tuple(cell.name for cell in cells if cell not in there),
        planned=_read_plan(out / PLAN),
    )
    told = {FACTS: json.dumps(to_plain(config), sort_keys=True).encode()}
    if study.planned is not None:
        told[PLANNED] = json.dumps(study.planned).encode()  # in its order
    _write(out / PREDICTIONS, study.rows, told)
    return study


def check_encoders(config: StudyConfig, out: Path, *, now: str | None = None) -> None:
    """Refuse finished cells of two pretrained encoders; of a cell of an older version none is known, and it is taken.

    Args:
        config: The study's.
        out: Its folder.
        now: Hash of the pretrained encoder there, which the next cells begin with; None: it is not known.

    Raises:
        UserError: Names the cells to delete: all that began with another encoder than that, or else than the most.
    """
    paths = {cell.name: cell_path(out, cell) for cell in config.cells()}
    began = {name: _metadata(path).get(ENCODER, b"").decode() for name, path in paths.items() if path.is_file()}
    known = Counter(encoder for encoder in began.values() if encoder)
    taken = now or max(known, key=lambda encoder: known[encoder], default="")
    others = [name for name, encoder in began.items() if encoder not in ("", taken)]
    if others:
        raise UserError(
            f"{out / CELLS}: {', '.join(others)} began with another pretrained encoder than "
            f"{'that of this folder' if now else 'the others'}; delete their folders and run them again"
        )


def _read_plan(path: Path) -> dict[str, Any] | None:
    """What a plan says that can be held against what was found; None where there is none."""
    if not path.exists():
        return None
    try:
        plan = read_small_json(path)
    except (OSError, ValueError):
        plan = None
    if not fits(plan, _PLANNED):
        raise UserError(f"{path}: damaged, or not the plan of a study; delete it, and it will not be told of")
    return {key: plan[key] for key in _PLANNED}


def read_study(path: Path) -> Study:
    """Read a gathered table.

    Args:
        path: The table, or the folder that it lies in.

    Raises:
        UserError: There is none, or it is another table.
    """
    path = path / PREDICTIONS if path.is_dir() else path
    if not path.is_file():
        raise WrongUse(f"{path}: no such table; `finetune study --out FOLDER` writes one there")
    rows = _checked(_read(path), path)
    try:
        metadata = _metadata(path)
        config = from_plain(StudyConfig, json.loads(metadata[FACTS]))
        planned = parse_json(metadata[PLANNED]) if PLANNED in metadata else None  # older tables have none
        if not fits(planned, (type(None), _PLANNED)):
            raise ValueError("its plan is none")
    except (KeyError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{path}: does not say which study it is of; gather it again from its cells") from error
    known = set(rows[[LABELLED, ARM, SEED]].itertuples(index=False, name=None))
    missing = [cell.name for cell in config.cells() if (cell.labelled, cell.arm, cell.seed) not in known]
    return Study(config=config, rows=rows, missing=tuple(missing), planned=planned)


def _checked(rows: pd.DataFrame, where: Path) -> pd.DataFrame:
    """The rows in their order, after a look at whether each cell was asked about the same series.

    Raises:
        UserError: It was not, or a number is none.
    """
    rows = rows.sort_values([LABELLED, ARM, SEED, SPLIT, ID], ignore_index=True)
    keys = [LABELLED, ARM, SEED, SPLIT, ID]
    if rows.duplicated(keys).any():
        raise UserError(f"{where}: a series stands twice in one cell; write its predictions again")
    probabilities = rows[PRESENT].to_numpy(np.float64)
    if not (np.isfinite(probabilities) & (probabilities >= 0) & (probabilities <= 1)).all():
        raise UserError(f"{where}: a probability of {PRESENT} does not lie in [0, 1]; train that cell again")
    for split, own in rows.groupby(SPLIT):
        series = own.groupby([LABELLED, ARM, SEED])[ID].agg(tuple)
        if series.nunique() > 1:
            raise UserError(f"{where}: cells were asked about different series ({split}); delete those of older data")
        truths = own.groupby(ID)[list(TARGETS)].nunique()
        if (truths > 1).to_numpy().any():
            raise UserError(f"{where}: cells disagree about what is true of a series ({split})")
    return rows


def _read(path: Path) -> pd.DataFrame:
    with _any_damage(path):
        return read_parquet(path, SCHEMA).to_pandas()


@contextmanager
def _any_damage(path: Path) -> Iterator[None]:
    """Raise what a table cannot be read for as a `UserError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        fault = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: damaged, or no predictions of a study ({fault}); delete it to run that cell again") \
            from error  # fmt: skip


def _each(value: Any, shape: Any) -> bool:
    """Whether a plain value is a mapping to values of a shape."""
    return isinstance(value, dict) and fits(list(value.values()), [shape])


def _metadata(path: Path) -> Mapping[bytes, bytes]:
    with _any_damage(path):
        return dict(pq.read_schema(path).metadata or {})


def _write(path: Path, rows: pd.DataFrame, facts: Mapping[bytes, bytes]) -> None:
    columns: Sequence[Any] = [pa.array(rows[name], type=SCHEMA.field(name).type, from_pandas=name not in LABELS)
                              for name in SCHEMA.names]  # fmt: skip
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata(facts or None)), temporary, compression="zstd")
