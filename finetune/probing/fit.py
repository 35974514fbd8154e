"""Probes of frozen features, fitted on some folds and asked about the one that is held out."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from finetune.evaluation.measures import Kind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Probe = Literal["linear", "knn"]
PROBES: tuple[Probe, ...] = ("linear", "knn")

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""C of the logistic regression that is swept; of ridge regression, the weight of the penalty is 1 / C."""

NEIGHBOURS = (5, 10, 20)
"""How many of them vote; swept likewise."""

UNSWEPT, UNSWEPT_NEIGHBOURS = 0.1, 5
"""What are taken where there are too few patients for folds within the training folds."""

INNER_FOLDS = 3

_KEYS = {
    ("linear", False): "C", ("linear", True): "alpha", ("knn", False): "n_neighbors", ("knn", True): "n_neighbors",
}  # fmt: skip


def out_of_fold(
    probe: Probe,
    kind: Kind,
    features_NE: Floats,
    truth_NL: Floats,
    folds_N: Ints,
    subjects_N: NDArray[np.str_],
    *,
    shots: int | None = None,
    seed: int = 0,
) -> Floats:
    """What probes say of each scan that were fitted on the scans of the other folds.

    Features are scaled by the deviations of the training scans. How strong the penalty is, or how many neighbours vote,
    is chosen within the training folds, patient-wise, by ROC area, balanced accuracy (classes) or squared error.

    Args:
        probe: ``linear``: logistic or ridge regression; ``knn``: the nearest neighbours by angle, the nearer the more.
        kind: Of the labels.
        features_NE: Of each scan.
        truth_NL: 0 or 1 (of one class of several: a single 1 a row), or numbers.
        folds_N: Of each scan; scans of a patient lie in one.
        subjects_N: The patient of each scan.
        shots: Fit on a scan each of so many training patients, each class being among them; None: on all.
        seed: Of their drawing.

    Returns:
        (N, L) probabilities or numbers; NaN where the training folds hold one class alone.
    """
    said_NL = np.full(truth_NL.shape, np.nan)
    for fold in np.unique(folds_N):
        for columns in (
            [list(range(truth_NL.shape[1]))] if kind == "multiclass" else [[c] for c in range(truth_NL.shape[1])]
        ):
            own_NL = truth_NL[:, columns]
            train = np.flatnonzero(folds_N != fold)
            target_N = own_NL.argmax(1) if kind == "multiclass" else own_NL[:, 0]
            if shots is not None:
                rng = np.random.default_rng([seed, int(fold), columns[0]])
                train = few(train, target_N, subjects_N, shots, rng, classes=kind != "regression")
            held_out = folds_N == fold
            said_NL[np.ix_(held_out, columns)] = fit_and_ask(
                probe, kind, features_NE[train], target_N[train], subjects_N[train], features_NE[held_out], len(columns)
            )
    return said_NL


def few(
    train: Ints, target_N: Floats, subjects_N: NDArray[np.str_], shots: int, rng: np.random.Generator, *, classes: bool
) -> Ints:
    """A scan each of some training patients: of each class its share, and one at least.

    Args:
        train: Indices of the training scans.
        target_N: Class or number of each scan.
        subjects_N: The patient of each scan.
        shots: How many patients; where there are fewer, all.
        rng: Draws them.
        classes: Whether `target_N` are classes.
    """
    shuffled = rng.permutation(train)
    one_each = shuffled[np.sort(np.unique(subjects_N[shuffled], return_index=True)[1])]
    if not classes:
        return np.asarray(one_each[:shots])
    names, counts = np.unique(target_N[one_each], return_counts=True)
    first = [int(np.flatnonzero(target_N[one_each] == name)[0]) for name in names]
    wanted = {name: max(1, round(shots * count / len(one_each))) for name, count in zip(names, counts, strict=True)}
    taken = first[:shots]
    for place, index in enumerate(one_each):
        if len(taken) >= shots:
            break
        own = sum(target_N[one_each[other]] == target_N[index] for other in taken)
        if place not in taken and own < wanted[target_N[index]]:
            taken.append(place)
    rest = [place for place in range(len(one_each)) if place not in taken]
    return np.asarray(one_each[taken + rest[: max(0, shots - len(taken))]])


def fit_and_ask(
    probe: Probe,
    kind: Kind,
    train_NE: Floats,
    target_N: Floats,
    subjects_N: NDArray[np.str_],
    asked_ME: Floats,
    columns: int = 1,
) -> Floats:
    """Fit a probe on some scans and ask it about others; features, and what is chosen, as for `out_of_fold`.

    Args:
        probe: As for `out_of_fold`.
        kind: Of the label.
        train_NE: Features of the scans that are learned from.
        target_N: Class or number of each of these.
        subjects_N: The patient of each of these.
        asked_ME: Features of the scans that are asked about.
        columns: Of the answer: a class each where there are several, else one.

    Returns:
        (M, columns) probabilities or numbers; NaN where there is one class alone.
    """
    if kind != "regression" and len(np.unique(target_N)) < 2:
        return np.full((len(asked_ME), columns), np.nan)
    scale_E = train_NE.std(0)
    mean_E, scale_E = train_NE.mean(0), np.where(scale_E > 1e-9 * np.abs(train_NE).max(initial=1e-9), scale_E, np.inf)
    x_NE, asked_ME = (train_NE - mean_E) / scale_E, (asked_ME - mean_E) / scale_E
    if probe == "knn":
        x_NE, asked_ME = _unit(x_NE), _unit(asked_ME)
    elif len(x_NE) < x_NE.shape[1]:
        # A penalty on squares knows no directions: in those that the training scans span, the same at less cost.
        directions_ER = np.linalg.svd(x_NE, full_matrices=False)[2].T
        x_NE, asked_ME = x_NE @ directions_ER, asked_ME @ directions_ER
    with warnings.catch_warnings():
        for ignored in (ConvergenceWarning, FitFailedWarning, UndefinedMetricWarning):
            warnings.simplefilter("ignore", ignored)
        model = _swept(probe, kind, x_NE, target_N, subjects_N)
        model.fit(x_NE, target_N)
    if kind == "regression":
        return np.asarray(model.predict(asked_ME)).reshape(-1, 1)
    said = model.predict_proba(asked_ME)
    if kind != "multiclass":
        return np.asarray(said[:, 1:])
    every = np.zeros((len(asked_ME), columns))
    every[:, model.classes_.astype(int)] = said
    return every


def _swept(probe: Probe, kind: Kind, x_NE: Floats, target_N: Floats, subjects_N: NDArray[np.str_]) -> Any:
    """The estimator, with its strength or its number of neighbours chosen."""
    patients = len(np.unique(subjects_N))
    if kind == "regression":
        splits, of_class = GroupKFold(INNER_FOLDS), patients // 2
    else:
        splits = StratifiedGroupKFold(INNER_FOLDS)
        of_class = min(len(np.unique(subjects_N[target_N == name])) for name in np.unique(target_N))
    usable = [count for count in NEIGHBOURS if 2 * count <= len(x_NE)] or [max(1, min(UNSWEPT_NEIGHBOURS, len(x_NE)))]
    values: Any = STRENGTHS if probe == "linear" else usable
    if of_class < 2 * INNER_FOLDS or len(values) == 1:
        return _estimator(probe, kind, UNSWEPT if probe == "linear" else usable[0])
    scoring = {"regression": "neg_mean_squared_error", "multiclass": "balanced_accuracy"}.get(kind, _area)
    search = GridSearchCV(
        _estimator(probe, kind, values[0]),
        {_KEYS[probe, kind == "regression"]: [1 / value for value in values] if _is_ridge(probe, kind) else values},
        scoring=scoring,
        cv=list(splits.split(x_NE, target_N, subjects_N)),
        error_score=0.0,
        refit=False,
    ).fit(x_NE, target_N)
    return _estimator(probe, kind, values[int(search.best_index_)])


def _is_ridge(probe: Probe, kind: Kind) -> bool:
    return probe == "linear" and kind == "regression"


def _estimator(probe: Probe, kind: Kind, value: float) -> Any:
    if probe == "knn":
        return (KNeighborsRegressor if kind == "regression" else KNeighborsClassifier)(int(value), weights="distance")
    if kind == "regression":
        return Ridge(alpha=1 / value)
    return LogisticRegression(C=value, class_weight="balanced", max_iter=1000)


def _area(model: Any, x_NE: Floats, target_N: Floats) -> float:
    """ROC area; that of chance where there is one class alone."""
    if len(np.unique(target_N)) < 2:
        return 0.5
    return float(roc_auc_score(target_N, model.predict_proba(x_NE)[:, 1]))


def _unit(x_NE: Floats) -> Floats:
    return np.asarray(x_NE / np.maximum(np.linalg.norm(x_NE, axis=1, keepdims=True), 1e-12))
