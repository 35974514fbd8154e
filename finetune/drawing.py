"""Which of a task's series a run takes, and how often each is drawn for training."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.series import Case
from harmonize.errors import WrongUse

Balance = Literal["presence", "modality"]
CT, MR = "CT", "MR"


def of_modalities(cases: Sequence[Case], wanted: Sequence[str], *, strict: bool = True) -> list[Case]:
    """The series of some modalities.

    Args:
        cases: Of the task.
        wanted: Modalities as in the corpus, or ``CT`` and ``MR`` as headers say; none stand for all.
        strict: Whether each must have a series.

    Raises:
        WrongUse: There is no series of one of them.
    """
    if not wanted:
        return list(cases)
    has = {case.modality for case in cases} | {kind_of(case.modality) for case in cases}
    for name in wanted:
        if strict and name not in has:
            raise WrongUse(f"data.modalities {name}: the corpus has series of {', '.join(sorted(has))}")
    return [case for case in cases if {case.modality, kind_of(case.modality)} & set(wanted)]


def kind_of(modality: str) -> str:
    """What a header can tell of a modality by its name in a corpus: `CT` or `MR`.

    Example:
        >>> [kind_of(name) for name in ("CT", "CTA", "MRA", "T1w")]
        ['CT', 'CT', 'MR', 'MR']
    """
    return CT if modality.upper().startswith(CT) else MR


def limited(cases: Sequence[Case], most: int, *, seed: int) -> list[Case]:
    """At most so many series: half of them positive, and of each half as many of every modality, as far as they go.

    Args:
        cases: To choose from.
        most: How many.
        seed: Of the choice, which depends on nothing else: more series contain the fewer.

    Returns:
        In the order in which they came.
    """
    groups: dict[tuple[bool, str], list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: hashlib.sha256(f"{seed} {case.scan_id}".encode()).digest()):
        groups[any(case.labels), case.modality].append(case)
    classes = [
        _in_turn(group for (positive, _), group in sorted(groups.items()) if positive == wanted)
        for wanted in (True, False)
    ]
    chosen = {case.scan_id for case in _in_turn(classes)[:most]}
    return [case for case in cases if case.scan_id in chosen]


def drawing_weights(
    cases: Sequence[Case], *, places: int, any_label: int, positive_share: float, balance: Balance = "presence"
) -> NDArray[np.float64]:
    """Probability of each series to be drawn for training.

    Positive series get `positive_share` of the draws, and among them those with a rare place get more: a series weighs
    the sum over its places of one over the square root of how many series have that place. With `balance` by modality
    this holds within every modality, so that the modality tells nothing about the label, and a modality gets draws by
    the square root of how many series it has.

    Args:
        cases: The training series.
        places: How many of the labels are places, the first ones.
        any_label: Index of the label that is positive where any other is.
        positive_share: Between 0 and 1. Where only one class exists, it gets everything.
        balance: Whether each modality is balanced by itself.

    Returns:
        (N,) summing to 1.
    """
    labels_NL = np.array([case.labels for case in cases], dtype=np.float64)
    places_NP, positive_N = labels_NL[:, :places], labels_NL[:, any_label] == 1
    rarity_P = 1 / np.sqrt(np.maximum(places_NP.sum(0), 1))
    # A positive series without a named place still counts as one of a common place.
    rare_N = np.where(positive_N, np.maximum(places_NP @ rarity_P, rarity_P.min()), 0)
    if balance == "presence":
        return _of_classes(rare_N, positive_N, positive_share)
    modality_N = np.array([case.modality for case in cases])
    weights_N = np.zeros(len(cases))
    for modality, count in Counter(modality_N.tolist()).items():
        of_it_N = modality_N == modality
        weights_N[of_it_N] = np.sqrt(count) * _of_classes(rare_N[of_it_N], positive_N[of_it_N], positive_share)
    return weights_N / weights_N.sum()


def with_pseudo_labelled(weights_N: NDArray[np.float64], count: int, *, weight: float) -> NDArray[np.float64]:
    """The same with as many series behind them as have pseudo-labels; not normalised.

    Args:
        weights_N: Of the labelled series, summing to 1.
        count: Of the pseudo-labelled ones.
        weight: How often one of them is drawn against an average labelled one.
    """
    return np.concatenate([weights_N, np.full(count, weight / len(weights_N))])


def with_masked_share(weights_N: NDArray[np.float64], masked_N: NDArray[np.bool_], share: float) -> NDArray[np.float64]:
    """Weights that give series with a mask a share of the draws; among them, and in the rest, as before.

    Args:
        weights_N: Of all series.
        masked_N: Which have a mask. Where none or all have one, or the share is 0, nothing changes.
        share: Between 0, which leaves the weights as they are, and 1, which draws no others.

    Example:
        >>> with_masked_share(np.array([0.125, 0.375, 0.5]), np.array([True, True, False]), 0.75).tolist()
        [0.1875, 0.5625, 0.25]
    """
    of_masked = weights_N[masked_N].sum()
    others = weights_N.sum() - of_masked
    if share == 0 or of_masked == 0 or others == 0:
        return weights_N
    return np.where(masked_N, weights_N * (share / of_masked), weights_N * ((1 - share) / others))


def _of_classes(
    rare_N: NDArray[np.float64], positive_N: NDArray[np.bool_], positive_share: float
) -> NDArray[np.float64]:
    """Weights that give positive series their share, among them by `rare_N`; summing to 1."""
    negative_N = (~positive_N).astype(np.float64)
    if not positive_N.any() or positive_N.all():
        weights_N = rare_N + negative_N
        return weights_N / weights_N.sum()
    return positive_share * rare_N / rare_N.sum() + (1 - positive_share) * negative_N / negative_N.sum()


def _in_turn(groups: Iterable[Sequence[Case]]) -> list[Case]:
    """One of each group, another of each, and so on."""
    return [case for turn in zip_longest(*groups) for case in turn if case is not None]
