"""A test outside of what models learned from: their answers to all series of another corpus, beside its truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune import candidates
from finetune.evaluation import Predictions
from finetune.evaluation.predictions import ID
from finetune.predict.ensemble import Ensemble, Panel, read_panel
from finetune.predict.inputs import kinds_of
from finetune.raw.look import CT, MR
from finetune.series import Case, Region
from finetune.tasks import make_task
from finetune.views import make_view
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.progress import Progress
from harmonize.scan import HU

NYUL = "nyul"
"""The one way to normalise MRI that learns from the corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideTest:
    """What models say of another corpus.

    Attributes:
        predictions: Of the labels whose truth the corpus tells; that there is something at all where it tells no more.
        found: Where they see something, as `finetune.candidates.read_table` gives it; None where they do not say.
        cases: The series with their points, by id.
    """

    predictions: Predictions
    found: pd.DataFrame | None
    cases: dict[str, Case]


def ask_outside(models: Sequence[Path], corpus: Corpus, *, device: torch.device) -> OutsideTest:
    """Ask models about all series of a corpus that the task knows.

    Several models, or the folds of a cross-validation, answer together, as `finetune predict` has it.

    Args:
        models: Folders of finished runs.
        corpus: None of whose patients they were trained on.
        device: Where they compute.

    Raises:
        UserError: The task takes no other corpora, or the corpus was harmonized otherwise than theirs.
    """
    panel = read_panel(models)
    task = make_task(panel.members[0].bundle.task)
    outside = getattr(task, "outside", None)
    if outside is None or task.any_label is None:
        raise WrongUse(f"{models[0]}: its task takes no other corpora; `finetune predict` answers their series")
    cases: list[Case] = outside(corpus)
    left_out: Counter[str] = Counter()
    usable = []
    for case in cases:
        fault = _fault(case, panel)
        left_out[fault or ""] += 1
        if fault is None:
            usable.append(case)
    del left_out[""]
    if not usable:
        raise UserError(f"{corpus.path}: no series for this test; left out: {dict(left_out)}")
    _check_intensities(panel, corpus, usable)
    ensemble = Ensemble(panel, device)
    overall = task.labels[task.any_label]
    labels = task.labels if all(case.labels for case in usable) else (overall,)
    columns = [task.labels.index(label) for label in labels]
    rows, said = [], []
    with Progress("outside", total=len(usable), unit="series") as progress:
        for case in usable:
            (one,) = ensemble.look_at([_regions(case, panel)], CT if case.unit == HU else MR)
            said.append(one.values_L.numpy()[columns])
            found = None if one.candidates is None else candidates.rows_of(one.candidates, task.labels)
            rows.append({ID: case.scan_id, candidates.CANDIDATES: found})
            progress.advance()
    truth = [case.labels if case.labels else (any(spot.counts for spot in case.spots),) for case in usable]
    predictions = Predictions(
        name=f"{', '.join(path.name for path in models)} on {corpus.path.name}",
        labels=labels,
        overall=overall,
        scan_ids_N=tuple(case.scan_id for case in usable),
        subjects_N=tuple(case.subject for case in usable),
        modalities_N=tuple(case.modality for case in usable),
        folds_N=None,
        targets_NL=np.array(truth, dtype=np.int64),
        probabilities_NL=np.array(said, dtype=np.float64),
        notes=tuple(f"left out: {count} {why}" for why, count in sorted(left_out.items())),
    )
    return OutsideTest(
        predictions=predictions,
        found=candidates.table_of(pd.DataFrame(rows), [ID]),
        cases={case.scan_id: case for case in usable},
    )


def _fault(case: Case, panel: Panel) -> str | None:
    """Why a series is no part of the test, or None."""
    kind = CT if case.unit == HU else MR
    if not any(kind in kinds_of(member.bundle.data) for member in panel.members):
        return f"of {kind}, which none of the models is for"
    if case.spots and not any(spot.counts for spot in case.spots):
        # Neither an example of the label nor of its absence.
        return "with nothing but what was treated"
    if not case.labels and not case.spots_complete:
        return "whose points cannot be read"
    return None


def _check_intensities(panel: Panel, corpus: Corpus, cases: Sequence[Case]) -> None:
    norms = {corpus.mri_norms[case.source] for case in cases if case.unit != HU}
    for member in panel.members:
        own = member.bundle.settings.mri_norm
        other = next((norm for norm in norms if norm != own or own == NYUL), None)
        if other is not None:
            raise UserError(
                f"{corpus.path}: its MRI is normalised by {other}, that of {member.folder} by {own}; harmonize it with "
                f"--mri-norm {own}"
                if own != NYUL
                else f"{member.folder}: its MRI is normalised by the histograms of its own corpus; `finetune predict` "
                "harmonizes raw series so"
            )


def _regions(case: Case, panel: Panel) -> list[Region | None]:
    """What the models see of a series, one region for each of their inputs."""
    kind = CT if case.unit == HU else MR
    return [
        make_view(one.view, one.data, make_task(one.task)).load(replace(case, whole=one.data.inference == "bag"))
        if kind in kinds_of(one.data)
        else None
        for one in panel.inputs
    ]
