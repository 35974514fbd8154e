"""The part of a report that says what answers to the question of a user's table are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune.evaluation.answers import Measured, Worth
from finetune.evaluation.calibration import bins_of
from finetune.evaluation.measures import HALF, NAMES
from finetune.evaluation.predictions import MODALITY, Predictions
from finetune.evaluation.text import behind, interval, number
from finetune.report.charts import BLUE, COLOURS, GREY, WIDE, figure_labels, name_ticks
from harmonize.page import Page

MISTAKES = 8
PER_ROW = 3


def add_answers(page: Page, found: Worth) -> None:
    """Add the sections: measures, groups, curves or scatter, confusion, calibration, and the worst mistakes."""
    page.tiles([(number(one.value), f"{NAMES[name]}{behind(one)}") for name, one in found.overall.measures.items()])
    _measures(page, found)
    for group, measured in found.groups.items():
        page.heading(f"By {group}")
        page.table(_header(group, measured), _rows(measured))
    if found.answers.asks == "regression":
        _scatter(page, found)
    else:
        _curves(page, found)
        _confusion(page, found)
        _calibration(page, found)
    _mistakes(page, found)


def _measures(page: Page, found: Worth) -> None:
    page.heading("Measures")
    page.text(f"Each with its interval. The score is the {NAMES[found.headline]}; of several labels, their mean.")
    page.table(_header("of", [found.overall]), _rows([found.overall]))
    if len(found.labels) > 1:
        page.text("Each label by itself.")
        page.table(_header("label", found.labels), _rows(found.labels))


def _header(first: str, measured: Sequence[Measured]) -> list[str]:
    counts = ["series", "patients", *(["positive"] if measured[0].positives is not None else [])]
    return [first, *counts, *(NAMES[name] for name in measured[0].measures)]


def _rows(measured: Sequence[Measured]) -> list[list[object]]:
    return [
        [
            one.name,
            one.series,
            one.patients,
            *([] if one.positives is None else [one.positives]),
            *map(interval, one.measures.values()),
        ]
        for one in measured
    ]


def _curves(page: Page, found: Worth) -> None:
    page.heading("ROC and PR")
    caption = "Each label. Solid: sensitivity over 1 - specificity. Dashed: precision over sensitivity."
    page.figure(figure_labels(_predictions(found)), caption=caption)


def _predictions(found: Worth) -> Predictions:
    answers = found.answers
    return Predictions(
        name=answers.name,
        labels=answers.labels,
        overall=answers.labels[-1],
        scan_ids_N=answers.scan_ids_N,
        subjects_N=answers.subjects_N,
        modalities_N=answers.groups[MODALITY],
        folds_N=None,
        targets_NL=answers.truth_NL.astype(np.int64),
        probabilities_NL=answers.said_NL,
    )


def _confusion(page: Page, found: Worth) -> None:
    answers = found.answers
    page.heading("Confusion")
    if answers.asks == "multiclass":
        truth_N, called_N = answers.truth_NL.argmax(1), answers.said_NL.argmax(1)
        counts = np.zeros((len(answers.labels),) * 2, dtype=np.int64)
        np.add.at(counts, (truth_N, called_N), 1)
        page.figure(figure_confusion(counts, answers.labels), caption="Which class is taken for which.")
        return
    page.text(f"Called where the probability is {HALF:g} or more.")
    called_NL, truth_NL = answers.said_NL >= HALF, answers.truth_NL == 1
    rows = [
        [label, *(int(both[:, place].sum()) for both in (
            called_NL & truth_NL, called_NL & ~truth_NL, ~called_NL & truth_NL, ~called_NL & ~truth_NL))]
        for place, label in enumerate(answers.labels)
    ]  # fmt: skip
    page.table(["label", "true positives", "false positives", "false negatives", "true negatives"], rows)


def _calibration(page: Page, found: Worth) -> None:
    page.heading("Calibration")
    page.text("Whether one in five series with a probability of 0.2 has it.")
    page.figure(figure_reliability(found), caption="Bins of equal count.")
    answers = found.answers
    rows = []
    for place, label in enumerate(answers.labels):
        truth_N, said_N = answers.truth_NL[:, place].astype(np.int64), answers.said_NL[:, place]
        rows.append([label, number(bins_of(truth_N, said_N).error), number(float(((said_N - truth_N) ** 2).mean()))])
    page.table(["label", "calibration error", "Brier score"], rows)


def _scatter(page: Page, found: Worth) -> None:
    page.heading("Predicted and true")
    page.figure(figure_scatter(found), caption="A point a series, coloured by modality; dashed: where both are equal.")


def _mistakes(page: Page, found: Worth) -> None:
    answers = found.answers
    page.heading("Largest errors")
    errors_NL = np.abs(answers.said_NL - answers.truth_NL)
    worst = np.argsort(-errors_NL, axis=None, kind="stable")[:MISTAKES]
    places = [np.unravel_index(one, errors_NL.shape) for one in worst]
    if answers.asks != "regression":
        places = [place for place in places if errors_NL[place] > HALF]
    if not places:
        page.text(f"No answer is further than {HALF:g} from the truth.")
        return
    page.text("Look at them first: they are wrong rows of the table, or what the network has yet to learn.")
    page.table(
        ["series", "modality", "label", "true", "predicted"],
        [
            [
                answers.scan_ids_N[row],
                answers.groups[MODALITY][row],
                answers.labels[column],
                number(float(answers.truth_NL[row, column])),
                number(float(answers.said_NL[row, column])),
            ]
            for row, column in places
        ],
    )


def figure_scatter(found: Worth) -> Figure:
    """A panel a number: what is predicted over what is true."""
    answers = found.answers
    figure, panels = _panels(len(answers.labels), height=4.0)
    modalities = sorted(set(answers.groups[MODALITY]))
    for place, axis in enumerate(panels):
        truth_N, said_N = answers.truth_NL[:, place], answers.said_NL[:, place]
        low, high = float(truth_N.min()), float(truth_N.max())
        axis.plot([low, high], [low, high], "--", color=GREY, linewidth=1)
        for count, modality in enumerate(modalities):
            rows = np.array(answers.groups[MODALITY]) == modality
            axis.plot(truth_N[rows], said_N[rows], "o", color=COLOURS[count % len(COLOURS)], markersize=4, alpha=0.7)
        axis.set_title(answers.labels[place], fontsize=9, parse_math=False)
        axis.set(xlabel="true", ylabel="predicted")
        axis.grid(alpha=0.3)
    handles = list(panels[0].lines[1:])
    figure.legend(handles, modalities, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def figure_reliability(found: Worth) -> Figure:
    """A panel a label: the share that has it over the predicted probability."""
    answers = found.answers
    figure, panels = _panels(len(answers.labels), height=2.8)
    for place, axis in enumerate(panels):
        bins = bins_of(answers.truth_NL[:, place].astype(np.int64), answers.said_NL[:, place])
        axis.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        axis.plot(bins.predicted_B, bins.found_B, "o-", color=BLUE)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="predicted probability", ylabel="share that has it")
        axis.set_title(answers.labels[place], fontsize=9, parse_math=False)
        axis.grid(alpha=0.3)
    return figure


def figure_confusion(counts_CC: np.ndarray, names: Sequence[str]) -> Figure:
    """Series by their class (rows) and by the one that is most probable (columns)."""
    figure = Figure(figsize=(WIDE, 1.8 + 0.4 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(counts_CC, cmap="Blues", vmin=0, vmax=max(1, counts_CC.max()), aspect="auto")
    for row, column in np.argwhere(counts_CC > 0):
        colour = "white" if counts_CC[row, column] > 0.6 * counts_CC.max() else "black"
        axis.text(column, row, str(counts_CC[row, column]), ha="center", va="center", fontsize=8, color=colour)
    name_ticks(axis.yaxis, names)
    name_ticks(axis.xaxis, names, rotation=40, ha="right", rotation_mode="anchor")
    axis.set(xlabel="most probable", ylabel="true class")
    return figure


def _panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, PER_ROW)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDE if columns > 1 else WIDE / 2, height * rows), layout="constrained")
    panels: list[Axes] = list(np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel())
    for axis in panels[count:]:
        axis.set_axis_off()
    for axis in panels[:count]:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, panels[:count]
