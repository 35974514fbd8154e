"""The predictions of a study: a row a cell and held-out series. All that is published is computed from this table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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

FACTS = b"finetune.study"
"""Where the metadata of the table hold the study's recipe, as JSON."""

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
    """

    config: StudyConfig
    rows: pd.DataFrame
    missing: tuple[str, ...] = ()

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


def write_cell(out: Path, cell: Cell, rows: pd.DataFrame) -> None:
    """Write the predictions of a cell; columns as in `SCHEMA` without the cell's own."""
    rows = rows.copy()
    rows[LABELLED], rows[ARM], rows[SEED] = cell.labelled, cell.arm, cell.seed
    rows = rows.sort_values([SPLIT, ID], ignore_index=True)
    _write(cell_path(out, cell), rows, {})


def gather(config: StudyConfig, out: Path) -> Study:
    """Put the predictions of all finished cells into one table, ``predictions.parquet``.

    Raises:
        UserError: A cell's predictions are damaged, or two cells disagree about a series.
    """
    cells = config.cells()
    there = [cell for cell in cells if cell_path(out, cell).is_file()]
    if not there:
        raise WrongUse(f"{out}: no cell of the study has predictions yet; run it first")
    rows = pd.concat([_read(cell_path(out, cell)) for cell in there], ignore_index=True)
    study = Study(
        config=config, rows=_checked(rows, out), missing=tuple(cell.name for cell in cells if cell not in there)
    )
    _write(out / PREDICTIONS, study.rows, {FACTS: json.dumps(to_plain(config), sort_keys=True).encode()})
    return study


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
        facts = json.loads((pq.read_schema(path).metadata or {})[FACTS])
        config = from_plain(StudyConfig, facts)
    except (KeyError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{path}: does not say which study it is of; gather it again from its cells") from error
    known = set(rows[[LABELLED, ARM, SEED]].itertuples(index=False, name=None))
    missing = [cell.name for cell in config.cells() if (cell.labelled, cell.arm, cell.seed) not in known]
    return Study(config=config, rows=rows, missing=tuple(missing))


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
    try:
        return read_parquet(path, SCHEMA).to_pandas()
    except (OSError, ValueError) as error:
        fault = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: damaged, or no predictions of a study ({fault}); delete it to run that cell again") \
            from error  # fmt: skip


def _write(path: Path, rows: pd.DataFrame, facts: Mapping[bytes, bytes]) -> None:
    columns: Sequence[Any] = [pa.array(rows[name], type=SCHEMA.field(name).type, from_pandas=name not in LABELS)
                              for name in SCHEMA.names]  # fmt: skip
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata(facts or None)), temporary, compression="zstd")
