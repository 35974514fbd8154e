"""What could be had without looking at a picture: baselines that know the modality, the geometry or the intensities.

A score that a baseline reaches too says nothing about aneurysms, or whatever is asked for: hospitals differ in their
scanners and in their patients alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from finetune.evaluation.areas import UNDEFINED, Estimate, drawn_within
from finetune.evaluation.predictions import ID, Predictions
from finetune.metrics import Times, drawn_areas, percentile_interval, undrawn
from harmonize.corpus import Corpus

TREES, LEAST_IN_LEAF = 100, 3
_AXES = ("x", "y", "z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """Labelled series that are not judged, and that the model may have been trained on.

    Attributes:
        scan_ids_M: The series.
        subjects_M: Their patients.
        modalities_M: Their modalities.
        targets_ML: 0 or 1, columns as the predictions' labels.
    """

    scan_ids_M: tuple[str, ...]
    subjects_M: tuple[str, ...]
    modalities_M: tuple[str, ...]
    targets_ML: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A model of tabular facts alone.

    Attributes:
        name: What it knows.
        features: How many numbers that is; those that are the same for all series do not count.
        areas: ROC area of each label with its interval.
        within: ROC area of the overall label inside each modality, mean over modalities.
    """

    name: str
    features: int
    areas: dict[str, Estimate]
    within: Estimate


def baselines(
    predictions: Predictions,
    times_ND: Times,
    *,
    corpus: Corpus | None = None,
    others: Others | None = None,
) -> tuple[Baseline, ...]:
    """Train each baseline as the model was: on the series of all patients that were not held out with a series.

    Where those of a single fold are judged and nobody knows others, the judged patients are dealt into parts. Only
    pairs of one part are ranked: where a part has more positives, the others, which its baseline learned from, have
    fewer, and all pairs together would say less than nothing of a baseline that knows nothing.

    Args:
        predictions: Those that the baselines are to stand beside.
        times_ND: Draws of patients.
        corpus: Its manifest has geometry and intensities; without it the modality is all there is.
        others: What else there is to learn from.
    """
    parts_N = predictions.parts()
    targets_ML = predictions.targets_NL.astype(np.float64)
    scan_ids, subjects = predictions.scan_ids_N, predictions.subjects_N
    modalities = predictions.modalities_N
    if others is not None and len(others.scan_ids_M):
        if predictions.folds_N is None or len(set(predictions.folds_N)) == 1:
            parts_N = np.zeros(len(scan_ids), dtype=np.int64)
        scan_ids, subjects = scan_ids + others.scan_ids_M, subjects + others.subjects_M
        modalities = None if modalities is None else modalities + others.modalities_M
        targets_ML = np.concatenate([targets_ML, others.targets_ML])
    if parts_N is None:
        return ()
    found = []
    for name, features_MF in _tables(scan_ids, modalities, corpus).items():
        varied_F = np.array([len(np.unique(column[np.isfinite(column)])) > 1 for column in features_MF.T], dtype=bool)
        guesses_NL = _guess(features_MF[:, varied_F], targets_ML, parts_N, np.array(subjects))
        same_part = partial(drawn_areas, strata_N=parts_N)
        areas = {
            label: _estimate(same_part, times_ND, predictions.targets_NL[:, column], guesses_NL[:, column])
            for column, label in enumerate(predictions.labels)
        }
        truth, column = predictions.of(predictions.overall)[0], predictions.labels.index(predictions.overall)
        within = UNDEFINED
        if predictions.modalities_N is not None:
            drawn = partial(drawn_within, modalities_N=np.array(predictions.modalities_N), strata_N=parts_N)
            within = _estimate(drawn, times_ND, truth, guesses_NL[:, column])
        found.append(Baseline(name=name, features=int(varied_F.sum()), areas=areas, within=within))
    return tuple(found)


def geometry_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Shapes, voxel sizes and fields of view of scans, raw and harmonized, as the manifest has them."""
    columns: dict[str, NDArray[np.float64]] = {}
    for kind in ("", "raw_"):
        shape_N3, spacing_N3 = _lists(rows[f"{kind}shape"], 3), _lists(rows[f"{kind}spacing"], 3)
        for axis, name in enumerate(_AXES):
            columns[f"{kind}voxels {name}"] = shape_N3[:, axis]
            columns[f"{kind}spacing {name}"] = spacing_N3[:, axis]
            columns[f"{kind}field of view {name}"] = shape_N3[:, axis] * spacing_N3[:, axis]
    box_N6 = _lists(rows["foreground_box"], 6)
    for axis, name in enumerate(_AXES):
        columns[f"head {name}"] = box_N6[:, 2 * axis + 1] - box_N6[:, 2 * axis]
    return pd.DataFrame(columns, index=rows.index)


def intensities_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Percentiles of the head's intensities, before and after normalisation, with the mean and spread they imply."""
    columns: dict[str, NDArray[np.float64]] = {}
    for kind in ("raw", "intensity"):
        values_NP = _lists(rows[f"{kind}_percentiles"], None)
        for place in range(values_NP.shape[1]):
            columns[f"{kind} percentile {place}"] = values_NP[:, place]
        if values_NP.shape[1]:
            columns[f"{kind} mean"], columns[f"{kind} sd"] = values_NP.mean(1), values_NP.std(1)
    return pd.DataFrame(columns, index=rows.index)


def _tables(
    scan_ids: tuple[str, ...], modalities: tuple[str, ...] | None, corpus: Corpus | None
) -> dict[str, NDArray[np.float64]]:
    """Features of the series by what they are about, (M, F) each."""
    tables: dict[str, NDArray[np.float64]] = {}
    if modalities is not None:
        tables["modality"] = pd.get_dummies(pd.Series(modalities)).to_numpy(np.float64)
    if corpus is not None:
        rows = corpus.scans.drop_duplicates(ID).set_index(ID)
        if set(scan_ids) <= set(rows.index):
            rows = rows.loc[list(scan_ids)]
            tables["geometry"] = geometry_of(rows).to_numpy(np.float64)
            tables["intensities"] = intensities_of(rows).to_numpy(np.float64)
    return tables


def _guess(
    features_MF: NDArray[np.float64],
    targets_ML: NDArray[np.float64],
    parts_N: NDArray[np.int64],
    subjects_M: NDArray[np.str_],
) -> NDArray[np.float64]:
    """What a forest says of each judged series (the first N) that never saw its patient, (N, L).

    Where no feature varies, or nobody is left to learn from, it says the same of all.
    """
    # Slow to load, and nothing that predicts needs it.
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    guesses_NL = np.zeros((len(parts_N), targets_ML.shape[1]))
    parts_M = np.concatenate([parts_N, np.full(len(subjects_M) - len(parts_N), -1)])
    for part in np.unique(parts_N):
        held_M = parts_M == part
        seen_M = ~held_M & ~np.isin(subjects_M, subjects_M[held_M])
        if not features_MF.shape[1] or not seen_M.any():
            continue
        forest = make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True),
            ExtraTreesRegressor(TREES, min_samples_leaf=LEAST_IN_LEAF, random_state=0),
        )
        taught_ML = targets_ML[seen_M]
        forest.fit(features_MF[seen_M], taught_ML[:, 0] if taught_ML.shape[1] == 1 else taught_ML)
        guesses_NL[parts_N == part] = forest.predict(features_MF[held_M]).reshape(-1, taught_ML.shape[1])
    return guesses_NL


def _estimate(
    drawn: Callable[..., NDArray[np.float64]],
    times_ND: Times,
    targets_N: NDArray[np.int64],
    guesses_N: NDArray[np.float64],
) -> Estimate:
    itself_N1 = undrawn(len(targets_N))
    value = float(drawn(targets_N, guesses_N, times_ND=itself_N1)[0])
    return Estimate(value=value, interval=percentile_interval(drawn(targets_N, guesses_N, times_ND=times_ND)))


def _lists(values: pd.Series[Any], width: int | None) -> NDArray[np.float64]:
    """A column of lists as (N, F); NaN where there is none of the usual length."""
    lists = [np.atleast_1d(np.asarray([] if value is None else value, dtype=np.float64)) for value in values]
    wanted = max((len(one) for one in lists), default=0) if width is None else width
    return np.array([one if len(one) == wanted else np.full(wanted, np.nan) for one in lists]).reshape(
        len(lists), wanted
    )
