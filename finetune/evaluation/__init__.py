"""What predictions are worth: areas with intervals, shortcuts, calibration, thresholds, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from finetune.evaluation.areas import ByModality, Estimate, LabelAreas, by_label, by_modality, macro, micro
from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.detection import SPECIFICITY, Found, by_site, by_size, threshold_at_specificity
from finetune.evaluation.localisation import Localisation, localise
from finetune.evaluation.predictions import Predictions, read
from finetune.evaluation.shortcuts import Baseline, Others, baselines
from finetune.evaluation.thresholds import (
    TARGET_PRECISION,
    Threshold,
    averaged,
    choose_thresholds,
    site_confusion,
    summed,
)
from finetune.metrics import DRAWS, draw_patients
from finetune.series import Case
from harmonize.corpus import Corpus

__all__ = ["Estimate", "Evaluation", "Mistake", "Others", "Predictions", "evaluate", "read"]

MISTAKES = 3
"""Of each kind: called though there is nothing, and missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A series whose overall label the model was most sure of, and wrong.

    Attributes:
        scan_id: The series.
        truth: 0 or 1.
        probability: Of the overall label.
        site: The true site of a missed one (the first of several, "" if none is named), or the highest one of another.
    """

    scan_id: str
    truth: int
    probability: float
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All that is said of some predictions.

    Attributes:
        predictions: Those.
        draws: Of the bootstrap over patients.
        within: The overall label inside each modality.
        labels: Areas of each label.
        micro: Of all sites as one label.
        macro: Mean area of the sites.
        sites: Sensitivity of the overall label by site, at `SPECIFICITY`.
        sizes: The same by size; none where sizes are not known.
        baselines: What knows no picture.
        calibration: Of each label.
        thresholds: Of each label.
        confusion_SS: Which site is taken for which.
        mistakes: The most confident ones, false alarms first.
        localisation: Whether findings are seen where they are; None without candidates, or points to compare them with.
    """

    predictions: Predictions
    draws: int
    within: ByModality
    labels: tuple[LabelAreas, ...]
    micro: LabelAreas
    macro: Estimate
    sites: tuple[Found, ...]
    sizes: tuple[Found, ...]
    baselines: tuple[Baseline, ...]
    calibration: tuple[Calibration, ...]
    thresholds: tuple[Threshold, ...]
    confusion_SS: NDArray[np.int64]
    mistakes: tuple[Mistake, ...]
    localisation: Localisation | None = None

    @property
    def score(self) -> float:
        """Mean of the overall label's area and the mean area of the sites; NaN where one is."""
        return (self.within.pooled.value + self.macro.value) / 2

    def facts(self) -> dict[str, Any]:
        """All numbers by the names of the report's sections, for JSON: lists, dicts, text and numbers."""
        of_sites = [one.confusion for one in self.thresholds if one.name != self.predictions.overall]
        return {
            "name": self.predictions.name,
            "series": len(self.predictions.scan_ids_N),
            "patients": len(set(self.predictions.subjects_N)),
            "overall": self.predictions.overall,
            "bootstrap_draws": self.draws,
            "notes": list(self.predictions.notes),
            "score": self.score,
            "within_modality_auc": {
                "mean": self.within.mean.facts(),
                "pooled": self.within.pooled.facts(),
                "modalities": {one.name: one.facts() for one in self.within.groups},
            },
            "by_site_and_size": {
                "specificity": SPECIFICITY,
                "threshold": threshold_at_specificity(self.predictions),
                "sites": {one.name: one.facts() for one in self.sites},
                "sizes": {one.name: one.facts() for one in self.sizes},
            },
            "shortcuts": {
                one.name: {
                    "within_modality_auc": one.within.facts(),
                    "auc": {label: area.facts() for label, area in one.areas.items()},
                }
                for one in self.baselines
            },
            "calibration": {one.name: one.facts() for one in self.calibration},
            "thresholds": {
                "labels": {one.name: one.facts() for one in self.thresholds},
                "micro": summed(of_sites).facts(),
                "macro": averaged(of_sites),
            },
            "roc_and_pr": {
                "labels": {one.name: one.facts() for one in self.labels},
                "micro": self.micro.facts(),
                "macro": {"auc": self.macro.facts()},
                "site_confusion": self.confusion_SS.tolist(),
            },
            "most_confident_mistakes": [
                {"scan_id": one.scan_id, "truth": one.truth, "probability": one.probability, "site": one.site}
                for one in self.mistakes
            ],
            "localisation": None if self.localisation is None else self.localisation.facts(),
        }


def evaluate(
    predictions: Predictions,
    *,
    corpus: Corpus | None = None,
    others: Others | None = None,
    diameters_mm: Mapping[str, float] | None = None,
    candidates: pd.DataFrame | None = None,
    cases: Mapping[str, Case] | None = None,
    precision: float = TARGET_PRECISION,
    draws: int = DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Evaluate predictions.

    Args:
        predictions: Of held-out series.
        corpus: Their corpus, for baselines that know geometry and intensities.
        others: Labelled series that the model may have learned from, for baselines that learn from them too.
        diameters_mm: Of the largest finding of each series.
        candidates: Where something was seen, as `finetune.candidates.read_table` gives them.
        cases: The series with their points, by id, to compare these with.
        precision: That the threshold of the overall label is to reach.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap.
    """
    times_ND = draw_patients(predictions.subjects_N, draws=draws, seed=seed)
    return Evaluation(
        predictions=predictions,
        draws=draws,
        within=by_modality(predictions, times_ND),
        labels=by_label(predictions, times_ND),
        micro=micro(predictions, times_ND),
        macro=macro(predictions, times_ND),
        sites=by_site(predictions),
        sizes=() if diameters_mm is None else by_size(predictions, diameters_mm),
        baselines=baselines(predictions, times_ND, corpus=corpus, others=others),
        calibration=calibrate(predictions),
        thresholds=choose_thresholds(predictions, precision=precision),
        confusion_SS=site_confusion(predictions),
        mistakes=mistakes(predictions),
        localisation=None
        if candidates is None or not cases
        else localise(predictions, candidates, cases, draws=draws, seed=seed),
    )


def mistakes(predictions: Predictions, count: int = MISTAKES) -> tuple[Mistake, ...]:
    """The negatives that the overall label ranks highest, then the positives that it ranks lowest.

    Args:
        predictions: Those.
        count: Of each kind.
    """
    truth, scores = predictions.of(predictions.overall)
    order = np.argsort(-scores, kind="stable")
    alarms, missed = order[truth[order] == 0][:count], order[::-1][truth[order[::-1]] == 1][:count]
    columns = [predictions.labels.index(site) for site in predictions.sites]
    found = []
    for row in (*alarms, *missed):
        weights = predictions.targets_NL[row, columns] if truth[row] else predictions.probabilities_NL[row, columns]
        named = len(columns) > 0 and weights.max() > 0
        found.append(
            Mistake(
                scan_id=predictions.scan_ids_N[row],
                truth=int(truth[row]),
                probability=float(scores[row]),
                site=predictions.sites[int(weights.argmax())] if named else "",
            )
        )
    return tuple(found)
