"""Where a network sees something: the connected components of its heat map, as points with a size and a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from harmonize.errors import UserError
from harmonize.parquet import read_parquet

HEATS = ("presence", "spheres", "blobs")
"""Outputs that say how likely something is in each cell, (B, d, h, w) logits; the first that a network gives counts."""

PEAK_SHARE = 0.4
"""A component is what reaches this share of its peak, as in the "dynamic" candidates of report-guided annotation
(Bosma et al. 2023), who divide the peak by 2.5: a fixed threshold would find nothing where a network is never sure."""

MOST = 10
"""Of a series: eight false ones and its findings are all that a FROC curve asks for."""

LEAST_SCORE = 0.001
APART_MM = 5.0
"""Nearer ones are one; the reach of a marked point."""

TABLE = "candidates.parquet"
"""Beside the predictions of a run and of a cross-validation: a row a candidate."""

CANDIDATES = "candidates"
"""The column of a prediction in memory that holds the rows of its series."""

COLUMNS = ("rank", "label", "label_probability", "x", "y", "z", "size_mm", "score")
"""Of a table of candidates, behind what names the series; label, x, y and z are as in the `points` of a corpus."""

_TYPES = {"rank": "int64"} | dict.fromkeys(("label_probability", "x", "y", "z", "size_mm", "score"), "float64")
_TOUCHING = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A place where a network sees something.

    Attributes:
        xyz_mm: Its centre, in RAS+ mm of the corpus, which are those of the scan.
        size_mm: Diameter of a ball of the volume in which the heat reaches half of its peak. Where balls of one radius
            were learned it tells how sharply something was seen, not how large a sac is.
        score: Heat at the peak, 0 to 1.
        places_P: How likely it belongs to each of the task's places; empty where the network says nothing of them.
    """

    xyz_mm: tuple[float, float, float]
    size_mm: float
    score: float
    places_P: tuple[float, ...] = ()

    def facts(self, labels: Sequence[str], rank: int) -> dict[str, object]:
        """A row of a table.

        Args:
            labels: The task's; the first ones are its places.
            rank: Among the series' candidates, from 1.
        """
        place = int(np.argmax(self.places_P)) if self.places_P else None
        x, y, z = self.xyz_mm
        values = (
            rank,
            None if place is None else labels[place],
            None if place is None else self.places_P[place],
            x,
            y,
            z,
            self.size_mm,
            self.score,
        )
        return dict(zip(COLUMNS, values, strict=True))


def rows_of(candidates: Sequence[Candidate], labels: Sequence[str]) -> list[dict[str, object]]:
    """The rows of a series in a table, the surest candidate first."""
    return [one.facts(labels, rank) for rank, one in enumerate(candidates, start=1)]


def table_of(predictions: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame | None:
    """A row a candidate, of predictions that hold them in their column `CANDIDATES`; None where these do not.

    Args:
        predictions: A row a series.
        keys: Columns of the predictions that stand before those of the candidates.

    Example:
        >>> candidate = Candidate(xyz_mm=(1.0, 2.0, 3.0), size_mm=4.0, score=0.5)
        >>> table = pd.DataFrame({"scan_id": ["a", "b"], "candidates": [rows_of([candidate], ()), []]})
        >>> table_of(table, ["scan_id"])[["scan_id", "rank", "x", "score"]].values.tolist()
        [['a', 1, 1.0, 0.5]]
    """
    if CANDIDATES not in predictions or predictions[CANDIDATES].isna().any():
        return None
    rows = [
        {**dict(zip(keys, own, strict=True)), **one}
        for *own, found in predictions[[*keys, CANDIDATES]].itertuples(index=False)
        for one in found
    ]
    return pd.DataFrame(rows, columns=[*keys, *COLUMNS]).astype(_TYPES)


def read_table(path: Path) -> pd.DataFrame:
    """The candidates that a run left.

    Raises:
        UserError: The table is damaged, or another's.
    """
    try:
        table = read_parquet(path).to_pandas(ignore_metadata=True)
    except (OSError, ValueError) as error:
        fault = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())[:120]
        raise UserError(f"{path}: damaged, or no table of candidates ({fault}); predict again") from error
    missing = [name for name in ("scan_id", *COLUMNS) if name not in table]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]}; it is no table of candidates, or damaged")
    numbers = table[[name for name in _TYPES if name != "label_probability"]].to_numpy(
        dtype=np.float64, na_value=np.nan
    )
    if not np.isfinite(numbers).all():
        raise UserError(f"{path}: a place or a score is no finite number; predict again")
    return table.astype(_TYPES)


def heat_of(outputs: Mapping[str, object]) -> str | None:
    """The output of a network that says where something is; None where none does.

    Example:
        >>> heat_of({"labels": 0, "presence": 0}), heat_of({"labels": 0})
        ('presence', None)
    """
    return next((name for name in HEATS if name in outputs), None)


def find_candidates(
    heat_dhw: NDArray[np.floating],
    to_mm: NDArray[np.float64],
    places_Pdhw: NDArray[np.floating] | None = None,
    *,
    most: int = MOST,
) -> list[Candidate]:
    """The components of a heat map, the hottest first.

    The hottest cell and what touches it with `PEAK_SHARE` of its heat is a component; it is taken away, and so on. What
    then touches a component is its flank and no candidate.

    Args:
        heat_dhw: 0 to 1.
        to_mm: (4, 4), from indices of cells to RAS+ mm.
        places_Pdhw: Probability of each place in each cell.
        most: How many at the most.

    Example:
        >>> heat = np.zeros((9, 5, 5)); heat[1, 2, 2], heat[7, 2, 2], heat[8, 2, 2] = 0.2, 0.9, 0.45
        >>> [(one.score, one.xyz_mm) for one in find_candidates(heat, np.diag([2.0, 2.0, 2.0, 1.0]))]
        [(0.9, (14.666666666666666, 4.0, 4.0)), (0.2, (2.0, 4.0, 4.0))]
    """
    left_dhw = np.array(heat_dhw, dtype=np.float64)
    taken_dhw = np.zeros(left_dhw.shape, dtype=bool)
    cell_mm3 = abs(float(np.linalg.det(to_mm[:3, :3])))
    found: list[Candidate] = []
    while len(found) < most:
        peak = np.unravel_index(int(left_dhw.argmax()), left_dhw.shape)
        score = float(left_dhw[peak])
        if not score >= LEAST_SCORE:
            break
        components_dhw, _ = ndimage.label(left_dhw >= PEAK_SHARE * score, structure=_TOUCHING)
        own_dhw = components_dhw == components_dhw[peak]
        (bounds,) = ndimage.find_objects(own_dhw.view(np.uint8))
        box = tuple(slice(max(edge.start - 1, 0), edge.stop + 1) for edge in bounds)
        is_flank = bool((ndimage.binary_dilation(own_dhw[box], _TOUCHING) & taken_dhw[box]).any())
        if not is_flank:
            cells_N3, weights_N = np.argwhere(own_dhw), left_dhw[own_dhw]
            x, y, z = (np.average(cells_N3, axis=0, weights=weights_N) @ to_mm[:3, :3].T + to_mm[:3, 3]).tolist()
            volume_mm3 = cell_mm3 * int((weights_N >= score / 2).sum())
            places_P = () if places_Pdhw is None else np.average(places_Pdhw[:, own_dhw], axis=1, weights=weights_N)
            found.append(
                Candidate(
                    xyz_mm=(x, y, z),
                    size_mm=2 * math.cbrt(volume_mm3 * 3 / (4 * math.pi)),
                    score=score,
                    places_P=tuple(float(share) for share in places_P),
                )
            )
        taken_dhw |= own_dhw
        left_dhw[own_dhw] = 0
    return found


def apart(candidates: Sequence[Candidate], *, most: int = MOST) -> list[Candidate]:
    """Of candidates that lie closer than `APART_MM`, as those of overlapping tiles do, the surest; the surest first."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: -one.score):
        if all(math.dist(one.xyz_mm, other.xyz_mm) >= APART_MM for other in kept):
            kept.append(one)
    return kept[:most]


def together(members: Sequence[Sequence[Candidate]], weights: Sequence[float]) -> list[Candidate]:
    """What several models see together: of what lies close, the mean of the places and of the scores' logits.

    A model that sees nothing there counts with `LEAST_SCORE`.

    Args:
        members: The candidates of each model.
        weights: Of each model, positive.

    Example:
        >>> one, other = (Candidate(xyz_mm=(x, 0.0, 0.0), size_mm=4.0, score=s) for x, s in ((0.0, 0.2), (2.0, 0.8)))
        >>> [(each.xyz_mm[0], round(each.score, 3)) for each in together([[one], [other]], [1.0, 1.0])]
        [(1.6, 0.5)]
    """
    if len(members) == 1:
        return list(members[0])
    groups: list[dict[int, Candidate]] = []
    everything = [(one, number) for number, member in enumerate(members) for one in member]
    for one, number in sorted(everything, key=lambda pair: -pair[0].score):
        near = (g for g in groups if number not in g and math.dist(_first(g).xyz_mm, one.xyz_mm) < APART_MM)
        group = next(near, None)
        if group is None:
            groups.append({number: one})
        else:
            group[number] = one
    shares = [weight / sum(weights) for weight in weights]
    return apart([_mean(group, shares) for group in groups])


def _first(group: Mapping[int, Candidate]) -> Candidate:
    return next(iter(group.values()))


def _mean(group: Mapping[int, Candidate], shares: Sequence[float]) -> Candidate:
    """One candidate of those that models see at one place."""
    logit = sum(
        share * _logit(group[number].score if number in group else LEAST_SCORE) for number, share in enumerate(shares)
    )
    weights = [shares[number] * one.score for number, one in group.items()]

    def mean(values: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(float(value) for value in np.average(values, axis=0, weights=weights))

    x, y, z = mean([one.xyz_mm for one in group.values()])
    (size_mm,) = mean([[one.size_mm] for one in group.values()])
    places = [one.places_P for one in group.values()]
    first = replace(_first(group), xyz_mm=(x, y, z), size_mm=size_mm, score=1 / (1 + math.exp(-logit)))
    return replace(first, places_P=mean(places)) if all(places) else first


def _logit(score: float) -> float:
    bounded = min(max(score, LEAST_SCORE), 1 - LEAST_SCORE)
    return math.log(bounded / (1 - bounded))
