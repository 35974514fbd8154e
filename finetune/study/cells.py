"""One cell of a study: a fine-tuning, and what the model that came of it says of all held-out series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune.cohort import cohort_of_run
from finetune.evaluation.detection import read_sizes
from finetune.evaluation.predictions import ID
from finetune.model_folder import load_model, read_bundle
from finetune.recipe import Recipe
from finetune.regions import RegionStore
from finetune.series import Case, Region
from finetune.study import data
from finetune.study.config import Cell, StudyConfig
from finetune.study.pairs import read_pairs
from finetune.study.table import CELLS, DIAMETER, INSIDE, OUTSIDE, PAIR, PAIRS, SPACING, SPLIT
from finetune.tasks import make_task
from finetune.train import train
from finetune.validation import predict_cases
from finetune.views import make_view
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.phantom.rsna.tables import COUNTERFACTUALS, SIZES
from headspark.run.folder import FINISHED, read_state
from headspark.run.interrupt import Interrupt

RUN = "run"
"""Folder of the fine-tuning in that of its cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The held-out series of a split.

    Attributes:
        split: Its name.
        cases: The series.
        facts: A row a series: `ID`, `PAIR`, `DIAMETER`, `SPACING`.
        regions: What networks see of them, once that was read; all cells cut alike.
    """

    split: str
    cases: list[Case]
    facts: pd.DataFrame
    regions: dict[str, list[Region]]


def recipe_of_cell(base: Recipe, config: StudyConfig, cell: Cell) -> Recipe:
    """The recipe of a fine-tuning.

    Args:
        base: What all of them share.
        config: The study's.
        cell: Which.
    """
    own = replace(base.data, limit=(cell.labelled, config.data.validation))
    train_ = replace(base.train, seed=cell.seed, validate_every=0)
    return replace(base, data=own, train=train_, stages=config.arm(cell.arm).stages)


def labelled_cases(recipe: Recipe, corpus: Corpus, out: Path) -> list[Case]:
    """The series that a cell learns from: the same for all arms and for the probes.

    Args:
        recipe: Of the cell.
        corpus: Of its seed.
        out: Folder of the cell's run.

    Raises:
        UserError: There are fewer than the cell is named for.
    """
    task = make_task(recipe.task)
    assert recipe.data.limit is not None
    wanted = recipe.data.limit[0]
    found = cohort_of_run(task.cases(corpus), corpus, task, recipe, out).training
    if len(found) < wanted:
        raise UserError(
            f"{corpus.path}: {len(found)} labelled series are left to train on, {wanted} are wanted; harmonize more"
        )
    return found


def fine_tune(recipe: Recipe, cell: Cell, out: Path, *, encoder: Path) -> bool:
    """Train a cell, or what is left of it.

    Args:
        recipe: As `recipe_of_cell` gives it.
        cell: Which.
        out: The study's folder.
        encoder: What it begins with.

    Returns:
        Whether it is done; False after a signal, when what was done has been saved.
    """
    corpus = Corpus.open(data.corpus_path(out, data.labelled_name(cell.seed)))
    run = run_folder(out, cell)
    state = read_state(run) if run.is_dir() else None
    if state is not None and state["status"] == FINISHED:
        return True  # stopped while it was asked
    labelled_cases(recipe, corpus, run)
    return train(recipe, corpus=corpus, encoder_folder=str(encoder), out=run) is not None


def run_folder(out: Path, cell: Cell) -> Path:
    """Of the fine-tuning of a cell."""
    return out / CELLS / cell.name / RUN


def read_held(recipe: Recipe, out: Path) -> list[Held]:
    """The held-out series of all splits that there are.

    Args:
        recipe: Of the fine-tunings.
        out: The study's folder.
    """
    return list(_held(recipe, out))


def _held(recipe: Recipe, out: Path) -> Iterator[Held]:
    task = make_task(recipe.task)
    for split in (INSIDE, OUTSIDE, PAIRS):
        path = data.corpus_path(out, split)
        if not path.is_dir():
            continue
        corpus = Corpus.open(path)
        cases = task.cases(corpus).cases
        sizes = read_sizes(data.beside(out, split, SIZES)) if data.beside(out, split, SIZES).is_file() else {}
        pairs = read_pairs(data.beside(out, split, COUNTERFACTUALS)) if split == PAIRS else {}
        yield Held(split=split, cases=cases, facts=_facts(corpus, cases, sizes, pairs), regions={})


def _facts(corpus: Corpus, cases: list[Case], sizes: Mapping[str, float], pairs: Mapping[str, str]) -> pd.DataFrame:
    """What is known of series besides their truth."""
    raw_mm = {row["scan_id"]: float(max(row["raw_spacing"])) for row in corpus.scans.to_dict("records")}
    rows = [
        {
            ID: case.scan_id,
            PAIR: pairs.get(case.scan_id),
            DIAMETER: sizes.get(case.scan_id, np.nan) if any(case.labels) else np.nan,
            SPACING: raw_mm[case.scan_id],
        }
        for case in cases
    ]
    return pd.DataFrame(rows, columns=[ID, PAIR, DIAMETER, SPACING])


def ask(out: Path, cell: Cell, held: list[Held], *, device: torch.device, interrupt: Interrupt) -> pd.DataFrame:
    """What the model of a cell says of all held-out series; columns as `finetune.study.table.write_cell` wants them.

    Args:
        out: The study's folder.
        cell: Whose fine-tuning is finished.
        held: The series.
        device: Where to compute.
        interrupt: Whether to stop.

    Raises:
        Interrupted: That was asked for.
    """
    interrupt.check()
    folder = run_folder(out, cell)
    bundle = read_bundle(folder)
    model = load_model(folder, bundle).to(device)
    task = make_task(bundle.task)
    view = make_view(bundle.view, bundle.data, task)
    tables = []
    for one in held:
        key = repr([view.key(case) for case in one.cases[:1]])
        if key not in one.regions:
            one.regions.clear()  # of another way to cut
            one.regions[key] = [view.load(case) for case in one.cases]
        store = RegionStore(one.cases, view, one.regions[key])
        said = predict_cases(model, store, bundle.data, task, device, asked=lambda: bool(interrupt), shown=True)
        interrupt.check()
        tables.append(said.merge(one.facts, on=ID, how="left").assign(**{SPLIT: one.split}))
    return pd.concat(tables, ignore_index=True)
