"""How many of the series that have something are found at a fixed rate of false alarms, by site and by size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from finetune.evaluation.areas import Estimate
from finetune.evaluation.predictions import IDS, Predictions, given
from finetune.metrics import Interval
from finetune.series import Case, Spot
from harmonize.errors import UserError, WrongUse
from harmonize.sources.tables import number_of, read_table

SPECIFICITY = 0.9
"""Of the overall label at the threshold that sensitivities are given at: one series in ten is a false alarm."""

SIZE_EDGES_MM = (0.0, 3.0, 5.0, 7.0, 10.0, np.inf)
"""Bounds of the groups of sizes: 3 mm is about what CTA shows, 7 mm where ISUIA sees the risk of rupture rise."""

DIAMETER = "diameter_mm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of a group of series that all have something.

    Attributes:
        name: Of the group.
        series: How many.
        sensitivity: Share of them that the overall label calls, with its Wilson interval; NaN without series.
    """

    name: str
    series: int
    sensitivity: Estimate

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {"series": self.series, "sensitivity": self.sensitivity.facts()}


def threshold_at_specificity(predictions: Predictions, specificity: float = SPECIFICITY) -> float:
    """The smallest probability of the overall label that at most ``1 - specificity`` of the negatives reach.

    Returns:
        The threshold: a series is called where its probability reaches it. NaN without negatives.
    """
    truth, scores = predictions.of(predictions.overall)
    negatives = np.sort(scores[truth == 0])
    if not len(negatives):
        return float("nan")
    # The last of those that stay uncalled; whatever is above it is called.
    last = int(np.ceil(round(specificity * len(negatives), 9))) - 1
    return float(np.nextafter(negatives[max(last, 0)], np.inf))


def by_site(predictions: Predictions) -> tuple[Found, ...]:
    """Sensitivity of the overall label for the series of each site; a series may count at several."""
    truth, _ = predictions.of(predictions.overall)
    named = [(site, predictions.of(site)[0] == 1) for site in predictions.sites]
    somewhere = np.any([rows for _, rows in named], axis=0) if named else np.zeros(len(truth), dtype=bool)
    elsewhere = [("at none of the sites", (truth == 1) & ~somewhere)] if ((truth == 1) & ~somewhere).any() else []
    return _found(predictions, [*named, *elsewhere])


def by_size(predictions: Predictions, diameters_mm: Mapping[str, float]) -> tuple[Found, ...]:
    """Sensitivity of the overall label by the diameter of the largest finding.

    Args:
        predictions: Those.
        diameters_mm: Of the largest finding of each series, as far as known.
    """
    truth, _ = predictions.of(predictions.overall)
    sizes_N = np.array([diameters_mm.get(scan, np.nan) for scan in predictions.scan_ids_N], dtype=np.float64)
    groups = [
        (size_name(low, high), (truth == 1) & (sizes_N >= low) & (sizes_N < high))
        for low, high in pairwise(SIZE_EDGES_MM)
    ]
    unknown = (truth == 1) & np.isnan(sizes_N)
    return _found(predictions, [*groups, ("size unknown", unknown)] if unknown.any() else groups)


def read_sizes(path: Path) -> dict[str, float]:
    """Diameters in mm of the largest finding of each series, from a CSV table with a row a finding.

    Args:
        path: With a column that names the series and a column ``diameter_mm``.

    Raises:
        UserError: It is another table.
    """
    columns = read_table(given(path, option="--sizes "), (DIAMETER,)).columns
    named = next((column for column in IDS if column in columns), None)
    if named is None:
        raise WrongUse(f"--sizes {path}: no column names the series; call it {IDS[0]} or {IDS[1]}")
    largest: dict[str, float] = {}
    for row in read_table(path, (named, DIAMETER)).rows:
        diameter = number_of(row[DIAMETER])
        if diameter is None or not 0 < diameter < np.inf:
            raise UserError(f"--sizes {path}: a {DIAMETER} is no positive number; write mm")
        largest[row[named]] = max(diameter, largest.get(row[named], 0.0))
    return largest


def read_finding_sizes(path: Path) -> dict[tuple[str, str], float]:
    """Diameters in mm of the findings of a table as for `read_sizes`, by their series and label.

    Args:
        path: The label stands in a column ``label`` or ``location``; without one, of a series with a single finding it
            is "". Of several findings of one label the largest counts.

    Raises:
        UserError: It is another table.
    """
    columns = read_table(given(path, option="--sizes "), (DIAMETER,)).columns
    named = next((column for column in IDS if column in columns), IDS[0])
    label = next((column for column in ("label", "location") if column in columns), None)
    rows = read_table(path, (named, DIAMETER), () if label is None else (label,)).rows
    once = Counter(row[named] for row in rows)
    sizes: dict[tuple[str, str], float] = {}
    for row in rows:
        keys = [(row[named], "")] * (once[row[named]] == 1) + ([(row[named], row[label])] if label else [])
        for key in keys:
            sizes[key] = max(number_of(row[DIAMETER]) or 0.0, sizes.get(key, 0.0))
    return sizes


def measured(
    cases: Mapping[str, Case], sizes: Mapping[tuple[str, str], float], labels: Sequence[str]
) -> dict[str, Case]:
    """Series whose points know their size; one that stands alone may have another label than the table gives it.

    Args:
        cases: By id.
        sizes: As `read_finding_sizes` gives them.
        labels: Of the task.
    """

    def sized(case: Case, spot: Spot) -> Spot:
        alone = sizes.get((case.scan_id, "")) if len(case.spots) == 1 else None
        diameter_mm = sizes.get((case.scan_id, labels[spot.label])) if spot.label >= 0 else None
        return replace(spot, diameter_mm=diameter_mm or alone or spot.diameter_mm)

    return {scan: replace(case, spots=tuple(sized(case, spot) for spot in case.spots)) for scan, case in cases.items()}


def size_name(low: float, high: float) -> str:
    """Of a group of diameters in mm."""
    if not low:
        return f"below {high:g} mm"
    return f"{low:g} mm and more" if np.isinf(high) else f"{low:g} to {high:g} mm"


def _found(predictions: Predictions, groups: Sequence[tuple[str, np.ndarray]]) -> tuple[Found, ...]:
    _, scores = predictions.of(predictions.overall)
    threshold = threshold_at_specificity(predictions)
    called_N = scores >= threshold
    return tuple(
        Found(
            name=name,
            series=int(rows.sum()),
            sensitivity=_share(int((called_N & rows).sum()), int(rows.sum()), known=not np.isnan(threshold)),
        )
        for name, rows in groups
    )


def _share(part: int, whole: int, *, known: bool) -> Estimate:
    if not whole or not known:
        return Estimate(value=float("nan"), interval=Interval(low=float("nan"), high=float("nan"), defined=0.0))
    bounds = binomtest(part, whole).proportion_ci(method="wilson")
    return Estimate(value=part / whole, interval=Interval(low=bounds.low, high=bounds.high, defined=1.0))
