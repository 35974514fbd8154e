"""Whether a network sees findings where somebody marked them: FROC, the hit rate within 5 mm, and both by size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from finetune.evaluation.areas import UNDEFINED, Estimate
from finetune.evaluation.detection import SIZE_EDGES_MM, size_name
from finetune.evaluation.predictions import ID, Predictions
from finetune.metrics import Times, draw_patients, percentile_interval, undrawn
from finetune.series import Case, Spot

HIT_MM = 5.0
"""How far from a marked point a candidate may lie and still hit it. What is known to be larger may be hit anywhere
within its radius, as in the ADAM and LUNA16 challenges."""

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False candidates a series at which LUNA16 reads sensitivities; their mean is its score."""

SIZE_RATE = 1.0
"""That sensitivities by site and by size are read at."""

AT_ONCE = 2**22
"""Numbers that a pass over draws holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of some series or findings.

    Attributes:
        name: Of the group.
        count: How many there are.
        share: Of them, with its interval over patients; NaN without any.
    """

    name: str
    count: int
    share: Estimate

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {"count": self.count, "share": self.share.facts()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """Whether a network sees findings where they are.

    Attributes:
        series: How many series were looked at.
        findings: How many findings lie in them.
        left_out: Series that were not, by why.
        hit_rate: Of series with findings, in how many the surest candidate hits one.
        by_modality: The same inside each modality.
        named: Of these hits, how many are given the label of the finding.
        distance_mm: Median distance of the surest candidate that hits from the point.
        froc: Sensitivity at each of `RATES`, named by it.
        mean: Mean of these.
        curve: False candidates a series and sensitivity, from the surest candidates on.
        sizes: Sensitivity at `SIZE_RATE` by the diameter of findings, where one is known.
        sites: The same by the label of the point.
    """

    series: int
    findings: int
    left_out: Counter[str]
    hit_rate: Rate
    by_modality: tuple[Rate, ...]
    named: Rate
    distance_mm: float
    froc: tuple[Rate, ...]
    mean: Estimate
    curve: NDArray[np.float64]
    sizes: tuple[Rate, ...]
    sites: tuple[Rate, ...]

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "hit_mm": HIT_MM,
            "series": self.series,
            "findings": self.findings,
            "left_out": dict(self.left_out),
            "hit_rate": self.hit_rate.facts(),
            "by_modality": {one.name: one.facts() for one in self.by_modality},
            "right_label": self.named.facts(),
            "median_distance_mm": self.distance_mm,
            "froc": {one.name: one.share.facts() for one in self.froc},
            "froc_mean": self.mean.facts(),
            "false_candidates_for_sizes_and_sites": SIZE_RATE,
            "sizes": {one.name: one.facts() for one in self.sizes},
            "sites": {one.name: one.facts() for one in self.sites},
        }


@dataclass(slots=True, kw_only=True)
class _Matched:
    """Candidates beside findings; series are numbered as in the predictions.

    Attributes:
        findings: Series and spot of each finding that counts.
        best: Score of the surest candidate that hits each; 0 where none does.
        false: Series and score of each candidate that hits nothing.
        first: Of each series with findings, how far its surest candidate lies from the finding that it hits, and
            which label this has and it is given; None where it hits none.
    """

    findings: list[tuple[int, Spot]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    false: list[tuple[int, float]] = field(default_factory=list)
    first: dict[int, tuple[float, bool | None] | None] = field(default_factory=dict)


def localise(
    predictions: Predictions,
    candidates: pd.DataFrame,
    cases: Mapping[str, Case],
    *,
    draws: int,
    seed: int = 0,
) -> Localisation | None:
    """Compare candidates with marked points.

    A candidate hits a finding within `HIT_MM` of its point, or within its radius if that is more. Further candidates
    that hit the same finding are neither hits nor false; nor are those at what does not count (`Spot.counts`). What
    lies outside of what the network saw is missed.

    Args:
        predictions: Of the series.
        candidates: As `finetune.candidates.read_table` gives them.
        cases: The series and their points, by id, whose labels are those of the predictions.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap.

    Returns:
        None where no series has a marked point.
    """
    truth_N, _ = predictions.of(predictions.overall)
    labels = predictions.labels
    left_out: Counter[str] = Counter()
    used = []
    for number, scan in enumerate(predictions.scan_ids_N):
        fault = _fault(cases.get(scan), positive=bool(truth_N[number]))
        if fault is None:
            used.append(number)
        else:
            left_out[fault] += 1
    spots = {number: cases[predictions.scan_ids_N[number]].spots for number in used}
    if not any(spot.counts for found in spots.values() for spot in found):
        return None
    own = dict(iter(candidates.sort_values([ID, "rank"]).groupby(ID)))
    matched = _Matched()
    for number, found in spots.items():
        _match(matched, number, found, own.get(predictions.scan_ids_N[number]), labels)
    rows_N = np.array(used)
    times_ND = draw_patients([predictions.subjects_N[number] for number in used], draws=draws, seed=seed)
    modalities = None if predictions.modalities_N is None else np.array(predictions.modalities_N)[rows_N]
    return _measured(matched, rows_N, times_ND, modalities, labels, left_out)


def _fault(case: Case | None, *, positive: bool) -> str | None:
    """Why a series cannot be compared, or None."""
    if case is None:
        return "not in the corpus"
    if not case.spots_complete:
        return "with a point that was lost"
    marked = any(spot.counts for spot in case.spots)
    if positive and not marked:
        return "positive without a point"
    if marked and not positive:
        return "negative with a point"
    return None


def _match(
    matched: _Matched, number: int, spots: Sequence[Spot], table: pd.DataFrame | None, labels: Sequence[str]
) -> None:
    """Take in the candidates and the findings of a series."""
    points_C3 = np.zeros((0, 3)) if table is None else table[["x", "y", "z"]].to_numpy(dtype=np.float64)
    scores_C = np.zeros(0) if table is None else table["score"].to_numpy(dtype=np.float64)
    names_C = [] if table is None else list(table["label"])
    spots_K3 = np.array([spot.xyz_mm for spot in spots], dtype=np.float64).reshape(-1, 3)
    reach_K = np.array([max(HIT_MM, (spot.diameter_mm or 0) / 2) for spot in spots])
    distance_CK = np.linalg.norm(points_C3[:, None] - spots_K3, axis=-1)
    hits_CK = distance_CK <= reach_K
    counts_K = np.array([spot.counts for spot in spots], dtype=bool)
    for place, spot in enumerate(spots):
        if spot.counts:
            matched.findings.append((number, spot))
            matched.best.append(float(scores_C[hits_CK[:, place]].max(initial=0)))
    matched.false += [
        (number, float(score)) for score, hits_K in zip(scores_C, hits_CK, strict=True) if not hits_K.any()
    ]
    if counts_K.any():
        matched.first[number] = None
        own_K = hits_CK[0] & counts_K if len(points_C3) else counts_K & False
        if own_K.any():
            nearest = int(np.where(own_K, distance_CK[0], np.inf).argmin())
            known = spots[nearest].label >= 0 and names_C[0] is not None
            right = labels[spots[nearest].label] == names_C[0] if known else None
            matched.first[number] = float(distance_CK[0, nearest]), right


def _measured(
    matched: _Matched,
    rows_N: NDArray[np.int64],
    times_ND: Times,
    modalities_N: NDArray[np.str_] | None,
    labels: Sequence[str],
    left_out: Counter[str],
) -> Localisation:
    place = {int(number): row for row, number in enumerate(rows_N)}
    series_S = np.array([place[number] for number in matched.first], dtype=np.int64)
    hits_S = np.array([one is not None for one in matched.first.values()])
    hit = [one for one in matched.first.values() if one is not None]
    rights = [(place[number], one[1]) for number, one in matched.first.items() if one and one[1] is not None]
    groups = [] if modalities_N is None else sorted(set(modalities_N[series_S].tolist()))
    froc = _Froc(
        series_F=np.array([place[number] for number, _ in matched.findings], dtype=np.int64),
        best_F=np.array(matched.best),
        false_A=np.array([place[number] for number, _ in matched.false], dtype=np.int64),
        scores_A=np.array([score for _, score in matched.false]),
    )
    everything_F = np.ones(len(matched.findings), dtype=bool)
    at_rates = [froc.at(rate, everything_F, times_ND) for rate in RATES]
    return Localisation(
        series=len(rows_N),
        findings=len(matched.findings),
        left_out=left_out,
        hit_rate=_rate("all", series_S, hits_S, times_ND),
        by_modality=tuple(
            _rate(name, series_S[own], hits_S[own], times_ND)
            for name in groups
            if modalities_N is not None and (own := modalities_N[series_S] == name).any()
        ),
        named=_rate(
            "of the hits",
            np.array([row for row, _ in rights], dtype=np.int64),
            np.array([bool(right) for _, right in rights], dtype=bool),
            times_ND,
        ),
        distance_mm=float(np.median([one[0] for one in hit])) if hit else float("nan"),
        froc=tuple(
            Rate(name=f"{rate:g}", count=len(everything_F), share=_estimate(*one))
            for rate, one in zip(RATES, at_rates, strict=True)
        ),
        mean=_estimate(
            float(np.mean([value for value, _ in at_rates])), np.mean([drawn_D for _, drawn_D in at_rates], axis=0)
        ),
        curve=froc.curve(len(rows_N)),
        sizes=_by_size(froc, [spot for _, spot in matched.findings], times_ND),
        sites=_by_site(froc, [spot for _, spot in matched.findings], labels, times_ND),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Froc:
    """Findings with the score of the surest candidate that hits them, and false candidates; series as in the draws."""

    series_F: NDArray[np.int64]
    best_F: NDArray[np.float64]
    false_A: NDArray[np.int64]
    scores_A: NDArray[np.float64]

    def at(self, rate: float, group_F: NDArray[np.bool_], times_ND: Times) -> tuple[float, NDArray[np.float64]]:
        """Sensitivity for some findings where there are `rate` false candidates a series; and of each draw, (D,).

        All candidates count that are surer than the first false one that would be too many.
        """
        itself = self._drawn(rate, group_F, undrawn(len(times_ND)))
        step = max(1, AT_ONCE // max(len(self.scores_A), len(self.best_F), 1))
        parts = [
            self._drawn(rate, group_F, times_ND[:, first : first + step]) for first in range(0, times_ND.shape[1], step)
        ]
        return float(itself[0]), np.concatenate(parts)

    def _drawn(self, rate: float, group_F: NDArray[np.bool_], times_ND: Times) -> NDArray[np.float64]:
        order_A = np.argsort(-self.scores_A, kind="stable")
        too_many_AD = np.cumsum(times_ND[self.false_A[order_A]], axis=0) > rate * times_ND.sum(0)
        # One more row: where no false candidate is too many, all count that there are.
        bounds_A = np.append(self.scores_A[order_A], 0.0)
        first_D = np.vstack([too_many_AD, np.ones((1, times_ND.shape[1]), dtype=bool)]).argmax(0)
        found_FD = self.best_F[group_F, None] > bounds_A[first_D]
        weights_FD = times_ND[self.series_F[group_F]]
        with np.errstate(invalid="ignore"):
            sensitivity_D: NDArray[np.float64] = (weights_FD * found_FD).sum(0) / weights_FD.sum(0)
        return sensitivity_D

    def curve(self, series: int) -> NDArray[np.float64]:
        """(P, 2): false candidates a series, and sensitivity, at the score of each candidate that changes one."""
        scores = np.unique(np.concatenate([self.best_F[self.best_F > 0], self.scores_A]))[::-1]
        false_P = len(self.scores_A) - np.searchsorted(np.sort(self.scores_A), scores, side="left")
        found_P = len(self.best_F) - np.searchsorted(np.sort(self.best_F), scores, side="left")
        return np.stack([false_P / series, found_P / len(self.best_F)], axis=1)


def _by_size(froc: _Froc, spots: Sequence[Spot], times_ND: Times) -> tuple[Rate, ...]:
    sizes_F = np.array([np.nan if spot.diameter_mm is None else spot.diameter_mm for spot in spots])
    if np.isnan(sizes_F).all():
        return ()
    groups = [(size_name(low, high), (sizes_F >= low) & (sizes_F < high)) for low, high in pairwise(SIZE_EDGES_MM)]
    unknown_F = np.isnan(sizes_F)
    return tuple(_group(froc, name, own, times_ND) for name, own in (*groups, ("size unknown", unknown_F)) if own.any())


def _by_site(froc: _Froc, spots: Sequence[Spot], labels: Sequence[str], times_ND: Times) -> tuple[Rate, ...]:
    labels_F = np.array([spot.label for spot in spots])
    return tuple(
        _group(froc, labels[label], labels_F == label, times_ND)
        for label in sorted(set(labels_F.tolist()))
        if label >= 0
    )


def _group(froc: _Froc, name: str, own_F: NDArray[np.bool_], times_ND: Times) -> Rate:
    return Rate(name=name, count=int(own_F.sum()), share=_estimate(*froc.at(SIZE_RATE, own_F, times_ND)))


def _rate(name: str, series_S: NDArray[np.int64], hits_S: NDArray[np.bool_], times_ND: Times) -> Rate:
    if not len(series_S):
        return Rate(name=name, count=0, share=UNDEFINED)
    with np.errstate(invalid="ignore"):
        drawn_D = (times_ND[series_S] * hits_S[:, None]).sum(0) / times_ND[series_S].sum(0)
    return Rate(name=name, count=len(series_S), share=_estimate(float(hits_S.mean()), drawn_D))


def _estimate(value: float, drawn_D: NDArray[np.float64]) -> Estimate:
    return Estimate(value=value, interval=percentile_interval(drawn_D))
