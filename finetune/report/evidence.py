"""Evidence: a page a series that shows where the network looked, what it says of it, and a mistake that is like it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import logit

from finetune.evaluation import Predictions, read
from finetune.evaluation.calibration import CLOSEST, calibrate, cooled
from finetune.evaluation.localisation import HIT_MM
from finetune.evaluation.predictions import ID
from finetune.evaluation.text import number, probability
from finetune.evaluation.thresholds import choose_thresholds
from finetune.report.series import Picture, candidates_of, cases_of, draw_planes, each_picture, overall_of, task_of
from finetune.series import Case
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse
from harmonize.page import Page, png_of
from harmonize.progress import Progress

FOLDER, INDEX = "evidence", "index.html"
WIDE, HIGH = 9.0, 3.4
NONE = "-"
STYLE = "p, td.id { overflow-wrap: anywhere; } td.id { min-width: 14ch; }"
"""Names of series are long, and screens narrow."""

CAPTION = (
    "Axial, coronal and sagittal through the place that the network is surest of; the patient's right is at the right, "
    "and the front in the sagittal plane. Colour: its heat map, as a share of the highest value; crosses: its three "
    "surest places; circles: marked points."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """What the pages know of a series.

    Attributes:
        scan_id: The series.
        row: Of the predictions.
        seen: Its candidates, the surest first.
        case: With its marked points; None where the corpus does not have it.
        mistake: The wrongly called series whose answers are most like its own; None where there is none.
    """

    scan_id: str
    row: int
    seen: pd.DataFrame
    case: Case | None
    mistake: str | None

    @property
    def name(self) -> str:
        """Of its page."""
        return f"{re.sub('[^0-9A-Za-z._-]+', '_', self.scan_id)}.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """What all pages share.

    Attributes:
        predictions: Of the held-out series.
        calibrated_NL: Their probabilities with the temperature of each label.
        threshold: Of the overall label: a series is called where it is reached.
        wrong_N: Which are called wrongly.
    """

    predictions: Predictions
    calibrated_NL: NDArray[np.float64]
    threshold: float
    wrong_N: NDArray[np.bool_]


def write_evidence(run: Path, corpus: Corpus, scan_ids: Sequence[str] = ()) -> Path:
    """Write a page a held-out series into ``evidence/`` of a run or of a cross-validation, and their index.

    Args:
        run: The folder.
        corpus: The one it was trained on.
        scan_ids: Which series; empty: all.

    Returns:
        Path of the index.

    Raises:
        UserError: There is no finished run, it has no candidates, or a series is none of its own.
    """
    task = task_of(run)
    found = candidates_of(run)
    if task is None or task.any_label is None or found is None:
        raise WrongUse(
            f"{run}: has no candidates.parquet, of which pages of evidence are made: its network has no heat map, or "
            "an earlier version trained it"
        )
    predictions = read(run, corpus=corpus, overall=overall_of(task))
    strangers = sorted(set(scan_ids) - set(predictions.scan_ids_N))
    if strangers:
        raise WrongUse(f"--series {strangers[0]}: is no held-out series of {run}; give ids of its predictions.parquet")
    calls = _called(predictions)
    series = _series(calls, found, cases_of(corpus, task), scan_ids)
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    cases = {one.scan_id: one.case for one in series.values() if one.case is not None}
    wanted = [scan for scan in (scan_ids or predictions.scan_ids_N) if scan in cases]
    # Pictures of mistakes are shown on the pages of others, so these come first.
    mistakes = [scan for scan in dict.fromkeys(series[name].mistake for name in wanted) if scan in cases]
    drawn: dict[str, bytes] = {}
    with Progress("evidence", total=len(wanted), unit="series") as progress:
        for scan_id, picture in each_picture(run, predictions, cases, [str(scan) for scan in mistakes]):
            drawn[scan_id] = _drawn(series[scan_id], picture)
        for scan_id in (scan for scan in wanted if scan in drawn):
            _write_page(folder, calls, series, scan_id, drawn[scan_id], drawn)
            progress.advance()
        for scan_id, picture in each_picture(run, predictions, cases, [scan for scan in wanted if scan not in drawn]):
            _write_page(folder, calls, series, scan_id, _drawn(series[scan_id], picture), drawn)
            progress.advance()
    _write_index(folder, calls, [series[scan] for scan in wanted])
    return folder / INDEX


def nearest_mistakes(
    probabilities_NL: NDArray[np.float64], wrong_N: NDArray[np.bool_], subjects_N: Sequence[str]
) -> list[int | None]:
    """For each series the wrongly called one, of another patient, whose answers are most like its own.

    Alike are answers whose logits, of all labels together, lie close; so a mistake is shown that the network makes of
    what looks the same to it.

    Args:
        probabilities_NL: Of all labels.
        wrong_N: Which are called wrongly.
        subjects_N: Their patients.

    Example:
        >>> said = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> nearest_mistakes(said, np.array([False, True, True]), ["a", "b", "c"])
        [1, 2, 1]
    """
    logits_NL = np.asarray(logit(np.clip(probabilities_NL, CLOSEST, 1 - CLOSEST)))
    subjects = np.array(subjects_N)
    nearest: list[int | None] = []
    for row in range(len(logits_NL)):
        possible = np.flatnonzero(wrong_N & (subjects != subjects[row]))
        distances = np.linalg.norm(logits_NL[possible] - logits_NL[row], axis=1)
        nearest.append(int(possible[distances.argmin()]) if len(possible) else None)
    return nearest


def _called(predictions: Predictions) -> _Calls:
    overall = predictions.labels.index(predictions.overall)
    calibrated_NL = np.stack(
        [
            cooled(predictions.probabilities_NL[:, column], one.temperature)
            for column, one in enumerate(calibrate(predictions))
        ],
        axis=1,
    )
    threshold = choose_thresholds(predictions)[overall].value
    truth_N, scores_N = predictions.of(predictions.overall)
    wrong_N = (scores_N >= threshold) != (truth_N == 1)
    return _Calls(predictions=predictions, calibrated_NL=calibrated_NL, threshold=threshold, wrong_N=wrong_N)


def _series(
    calls: _Calls, found: pd.DataFrame, cases: Mapping[str, Case], scan_ids: Sequence[str]
) -> dict[str, _Series]:
    predictions = calls.predictions
    own = dict(iter(found.sort_values([ID, "rank"]).groupby(ID)))
    nearest = nearest_mistakes(predictions.probabilities_NL, calls.wrong_N, predictions.subjects_N)
    return {
        scan: _Series(
            scan_id=scan,
            row=row,
            seen=own.get(scan, found.iloc[:0]),
            case=cases.get(scan),
            mistake=None if (place := nearest[row]) is None else predictions.scan_ids_N[place],
        )
        for row, scan in enumerate(predictions.scan_ids_N)
    }


def _drawn(series: _Series, picture: Picture) -> bytes:
    """The three planes of a series as PNG."""
    voxels = [picture.voxel(place) for place in series.seen[["x", "y", "z"]].itertuples(index=False)]
    seen_K3 = np.array([voxel for voxel in voxels if voxel is not None]).reshape(-1, 3)
    figure = Figure(figsize=(WIDE, HIGH))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    draw_planes(axis, picture, seen_K3[0] if len(seen_K3) else picture.hottest(), seen_K3[:3])
    return png_of(figure)


def _write_page(
    folder: Path,
    calls: _Calls,
    series: Mapping[str, _Series],
    scan_id: str,
    png: bytes,
    drawn: Mapping[str, bytes],
) -> None:
    one, predictions = series[scan_id], calls.predictions
    truth, said = (values[one.row] for values in predictions.of(predictions.overall))
    overall = predictions.labels.index(predictions.overall)
    modality = "" if predictions.modalities_N is None else f", {predictions.modalities_N[one.row]}"
    lead = f"{scan_id}, held out{modality}: no series of this patient was learned from."
    page = Page(f"Series ...{scan_id[-8:]}", lead=lead, style=STYLE)
    page.markup(f'<p><a href="{INDEX}">All series</a></p>')
    called = f"called from {probability(calls.threshold)} on" if np.isfinite(calls.threshold) else "never called"
    page.tiles(
        [
            (number(calls.calibrated_NL[one.row, overall]), f"calibrated probability, {predictions.overall}"),
            (probability(float(said)), f"as the network says it; {called}"),
            ("yes" if truth else "no", "has a finding, says the table"),
            ("wrong" if calls.wrong_N[one.row] else "right", "call"),
        ]
    )
    page.heading("Where the network looks")
    page.picture(png, caption=CAPTION)
    page.table(
        ["place", "label", "its probability", "score", "R, A, S in mm", "size in mm", "nearest marked point"],
        [_place(one, candidate) for candidate in one.seen.to_dict("records")],
    )
    _points(page, one, predictions.labels)
    page.heading("Labels")
    page.table(
        ["label", "calibrated", "as said", "true"],
        [
            [
                label,
                probability(float(calls.calibrated_NL[one.row, column])),
                probability(float(predictions.probabilities_NL[one.row, column])),
                "yes" if predictions.targets_NL[one.row, column] else "no",
            ]
            for column, label in enumerate(predictions.labels)
        ],
    )
    _mistake(page, calls, series, one, drawn)
    page.write(folder / one.name)


def _place(one: _Series, candidate: Mapping[Any, Any]) -> list[object]:
    """A row of a candidate."""
    xyz = tuple(float(candidate[axis]) for axis in "xyz")
    spots = () if one.case is None else one.case.spots
    distance = min((math.dist(xyz, spot.xyz_mm) for spot in spots), default=math.nan)
    hit = any(math.dist(xyz, spot.xyz_mm) <= max(HIT_MM, (spot.diameter_mm or 0) / 2) for spot in spots)
    named = candidate["label"] is not None and candidate["label"] == candidate["label"]  # no NaN
    return [
        candidate["rank"],
        candidate["label"] if named else NONE,
        probability(float(candidate["label_probability"])) if named else NONE,
        probability(float(candidate["score"])),
        ", ".join(f"{value:.1f}" for value in xyz),
        f"{float(candidate['size_mm']):.1f}",
        NONE if math.isnan(distance) else f"{distance:.1f} mm{', a hit' if hit else ''}",
    ]


def _points(page: Page, one: _Series, labels: Sequence[str]) -> None:
    page.heading("Marked points")
    if one.case is None or not one.case.spots:
        page.text("No point is marked in it.")
        return
    rows = [
        [
            labels[spot.label] if spot.label >= 0 else NONE,
            ", ".join(f"{value:.1f}" for value in spot.xyz_mm),
            NONE if spot.diameter_mm is None else f"{spot.diameter_mm:.1f}",
        ]
        for spot in one.case.spots
    ]
    page.table(["label", "R, A, S in mm", "diameter in mm"], rows)


def _mistake(
    page: Page, calls: _Calls, series: Mapping[str, _Series], one: _Series, drawn: Mapping[str, bytes]
) -> None:
    page.heading("Nearest mistake")
    if one.mistake is None:
        page.text("No series of another patient is called wrongly.")
        return
    other, predictions = series[one.mistake], calls.predictions
    truth, said = (values[other.row] for values in predictions.of(predictions.overall))
    kind = "missed" if truth else "called though there is nothing"
    page.text(
        f"Of the series of other patients that are called wrongly, the one whose answers are most like these: "
        f"{other.scan_id}, {kind}, with {probability(float(said))}. Whatever misled the network there may do so here."
    )
    if one.mistake in drawn:
        page.picture(drawn[one.mistake], caption=CAPTION)


def _write_index(folder: Path, calls: _Calls, shown: Sequence[_Series]) -> None:
    predictions = calls.predictions
    page = Page(
        "Evidence",
        lead=f"{len(shown)} held-out series of {predictions.name}, the likeliest first: where the network looks, what "
        "it says of it, and a mistake that is like it.",
        style=STYLE,
    )
    overall = predictions.labels.index(predictions.overall)
    rows = []
    for one in sorted(shown, key=lambda one: -predictions.probabilities_NL[one.row, overall]):
        first = one.seen.iloc[0] if len(one.seen) else None
        label = NONE if first is None or first["label"] != first["label"] or first["label"] is None else first["label"]
        cells = (
            "" if predictions.modalities_N is None else predictions.modalities_N[one.row],
            number(float(calls.calibrated_NL[one.row, overall])),
            "yes" if predictions.targets_NL[one.row, overall] else "no",
            "wrong" if calls.wrong_N[one.row] else "right",
            str(label),
        )
        link = f'<td class=id><a href="{escape(one.name, quote=True)}">{escape(one.scan_id)}</a></td>'
        rows.append(f"<tr>{link}{''.join(f'<td class=short>{escape(cell)}</td>' for cell in cells)}</tr>")
    columns = ("series", "modality", "calibrated", "has one", "call", "surest place")
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    page.markup(f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>")
    page.write(folder / INDEX)
