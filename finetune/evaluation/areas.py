"""How well series are ranked: ROC areas and average precisions, inside each modality, a label, and over the sites."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.predictions import Predictions
from finetune.metrics import Interval, Times, drawn_areas, drawn_precisions, percentile_interval, undrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its bootstrap interval over patients.

    Attributes:
        value: Of the series themselves; NaN where undefined.
        interval: At 95 %.
    """

    value: float
    interval: Interval

    def facts(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.interval.low, "high": self.interval.high}


UNDEFINED = Estimate(value=float("nan"), interval=Interval(low=float("nan"), high=float("nan"), defined=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAreas:
    """How well one label ranks some series.

    Attributes:
        name: Of the label or of the group of series.
        series: How many there are.
        positives: How many of them have it.
        roc: ROC area.
        precision: Average precision, whose value for a guess is the share of positives.
    """

    name: str
    series: int
    positives: int
    roc: Estimate
    precision: Estimate

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "series": self.series,
            "positives": self.positives,
            "auc": self.roc.facts(),
            "average_precision": self.precision.facts(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ByModality:
    """The overall label inside each modality.

    A model that only knows how often each modality is ill ranks series across modalities, and none inside of one.

    Attributes:
        groups: Each modality, the most frequent first; none where modalities are not known.
        mean: Mean ROC area of the modalities that have both classes, each counting as much.
        pooled: ROC area of all series together.
    """

    groups: tuple[LabelAreas, ...]
    mean: Estimate
    pooled: Estimate


def label_areas(
    targets_N: NDArray[np.int64], scores_N: NDArray[np.float64], times_ND: Times, *, name: str
) -> LabelAreas:
    """The areas of one label with their intervals; arguments as for `finetune.metrics.drawn_areas`."""
    itself_N1 = undrawn(len(times_ND))
    estimates = [
        Estimate(
            value=float(drawn(targets_N, scores_N, itself_N1)[0]),
            interval=percentile_interval(drawn(targets_N, scores_N, times_ND)),
        )
        for drawn in (drawn_areas, drawn_precisions)
    ]
    return LabelAreas(
        name=name, series=len(times_ND), positives=int(targets_N.sum()), roc=estimates[0], precision=estimates[1]
    )


def by_modality(predictions: Predictions, times_ND: Times) -> ByModality:
    """Rank the series of each modality by the overall label.

    Args:
        predictions: Those.
        times_ND: Draws of patients, from `finetune.metrics.draw_patients`.
    """
    truth, scores = predictions.of(predictions.overall)
    pooled = label_areas(truth, scores, times_ND, name=predictions.overall).roc
    if predictions.modalities_N is None:
        return ByModality(groups=(), mean=UNDEFINED, pooled=pooled)
    modalities_N = np.array(predictions.modalities_N)
    groups = []
    for name in sorted(set(modalities_N), key=lambda name: (-(modalities_N == name).sum(), name)):
        rows = modalities_N == name
        groups.append(label_areas(truth[rows], scores[rows], times_ND[rows], name=str(name)))
    itself_N1 = undrawn(len(truth))
    value = float(drawn_within(truth, scores, modalities_N, itself_N1)[0])
    interval = percentile_interval(drawn_within(truth, scores, modalities_N, times_ND))
    return ByModality(groups=tuple(groups), mean=Estimate(value=value, interval=interval), pooled=pooled)


def drawn_within(
    targets_N: NDArray[np.int64],
    scores_N: NDArray[np.float64],
    modalities_N: NDArray[np.str_],
    times_ND: Times,
    *,
    strata_N: NDArray[np.generic] | None = None,
) -> NDArray[np.float64]:
    """Mean over modalities of the ROC area inside each, of each draw.

    A modality with a single class has no area and does not count. A draw that leaves another modality with a single
    class is undefined: a mean over other modalities would be another number.

    Args:
        targets_N: As for `finetune.metrics.drawn_areas`.
        scores_N: Likewise.
        modalities_N: Of each series.
        times_ND: As for `finetune.metrics.drawn_areas`.
        strata_N: Likewise.

    Returns:
        (D,)
    """
    both = [name for name in np.unique(modalities_N) if len(np.unique(targets_N[modalities_N == name])) == 2]
    if not both:
        return np.full(times_ND.shape[1], np.nan)
    areas = []
    for row in (modalities_N == name for name in both):
        strata = None if strata_N is None else strata_N[row]
        areas.append(drawn_areas(targets_N[row], scores_N[row], times_ND[row], strata_N=strata))
    return np.mean(areas, axis=0)


def by_label(predictions: Predictions, times_ND: Times) -> tuple[LabelAreas, ...]:
    """The areas of each label, in their order."""
    return tuple(label_areas(*predictions.of(label), times_ND, name=label) for label in predictions.labels)


def macro(predictions: Predictions, times_ND: Times) -> Estimate:
    """Mean ROC area of the sites that have both classes; NaN without any."""
    itself_N1 = undrawn(len(predictions.scan_ids_N))
    return Estimate(
        value=float(drawn_macro(predictions, itself_N1)[0]),
        interval=percentile_interval(drawn_macro(predictions, times_ND)),
    )


def drawn_macro(predictions: Predictions, times_ND: Times) -> NDArray[np.float64]:
    """Mean ROC area of the sites, of each draw; over those that are defined in it, as the metric has it.

    Returns:
        (D,)
    """
    areas = [drawn_areas(*predictions.of(site), times_ND) for site in predictions.sites]
    if not areas:
        return np.full(times_ND.shape[1], np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(areas, axis=0)


def micro(predictions: Predictions, times_ND: Times) -> LabelAreas:
    """The areas of all sites as one label: each series and site is an answer of its own."""
    columns = [predictions.labels.index(site) for site in predictions.sites]
    targets_NS, scores_NS = predictions.targets_NL[:, columns], predictions.probabilities_NL[:, columns]
    return label_areas(targets_NS, scores_NS, times_ND, name="all sites")
