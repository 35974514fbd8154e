"""Charts of an evaluation: intervals as forests, curves a label, reliability, and which site is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from finetune.evaluation import Estimate, Evaluation, Predictions
from finetune.evaluation.areas import UNDEFINED
from finetune.evaluation.text import number
from harmonize.terminal import printable

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#7a8694"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#000000")
"""Told apart by colour-blind eyes too (Okabe and Ito); shapes and dashes say the same again."""

MARKERS = ("s", "^", "D", "v")
WIDE = 9.0
ROW = 0.3
PANELS, FEW = 5, 3
"""Panels in a row of small curves, and in one of larger ones."""

Row = tuple[str, Estimate]


def figure_within(found: Evaluation) -> Figure:
    """Area of the overall label in each modality, their mean, and that of all series together."""
    rows: list[Row] = [(f"{one.name} ({one.positives} of {one.series})", one.roc) for one in found.within.groups]
    if rows:
        rows.append(("mean over modalities", found.within.mean))
    rows.append(("all together", found.within.pooled))
    figure = _rows_figure(len(rows))
    axis = figure.subplots()
    forest(axis, rows, strong={"mean over modalities"})
    axis.set_xlabel(f"AUC, {found.predictions.overall}")
    return figure


def figure_sites(found: Evaluation) -> Figure:
    """Left: area of each site. Right: how many series of each site, and of each size, the overall label finds."""
    of_label = {one.name: one for one in found.labels}
    figure = Figure(figsize=(WIDE, 1.1 + ROW * (len(found.sites) + len(found.sizes))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    groups = [*found.sites, *found.sizes]
    forest(left, [(one.name, of_label[one.name].roc if one.name in of_label else UNDEFINED) for one in groups])
    forest(right, [(one.name, one.sensitivity) for one in groups], guess=None)
    for place, one in enumerate(groups):
        right.text(1.03, place, f"{one.series}", fontsize=8, va="center", color=GREY)
    left.set_xlabel("AUC of the site")
    right.set_xlabel("share of series found, at 90 % specificity")
    return figure


def figure_shortcuts(found: Evaluation) -> Figure:
    """Each label's area beside those of the baselines."""
    rows: list[tuple[str, Estimate, list[float]]] = [
        (one.name, one.roc, [base.areas[one.name].value for base in found.baselines]) for one in found.labels
    ]
    if found.within.groups:
        name = f"{found.predictions.overall}, within modality"
        rows.append((name, found.within.mean, [base.within.value for base in found.baselines]))
    figure = _rows_figure(len(rows) + 1)
    axis = figure.subplots()
    forest(axis, [(name, area) for name, area, _ in rows], label="model")
    for place, base in enumerate(found.baselines):
        values = [of_bases[place] for _, _, of_bases in rows]
        marker, colour = MARKERS[place % len(MARKERS)], COLOURS[1 + place % (len(COLOURS) - 1)]
        axis.plot(values, range(len(rows)), marker, color=colour, fillstyle="none", label=f"{base.name} alone")
    axis.set_xlabel("AUC")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def figure_calibration(found: Evaluation) -> Figure:
    """Left: reliability of the overall label. Right: calibration error of each label, with and without temperature."""
    figure = Figure(figsize=(WIDE, max(3.6, 1.2 + 0.24 * len(found.calibration))), layout="constrained")
    left, right = figure.subplots(1, 2)
    overall = next(one for one in found.calibration if one.name == found.predictions.overall)
    left.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    left.plot(overall.before.predicted_B, overall.before.found_B, "o-", color=BLUE, label="as predicted")
    if overall.after is not None:
        label = "with the other folds' temperature"
        left.plot(overall.after.predicted_B, overall.after.found_B, "s--", color=ORANGE, label=label)
    left.set(
        xlabel=f"predicted probability, {overall.name}", ylabel="share that has it", xlim=(0, 1), ylim=(-0.02, 1.02)
    )
    left.legend(fontsize=8, loc="lower right")
    left.grid(alpha=0.3)
    places = range(len(found.calibration))
    right.plot([one.before.error for one in found.calibration], places, "o", color=BLUE)
    after = [np.nan if one.after is None else one.after.error for one in found.calibration]
    right.plot(after, places, "s", color=ORANGE, fillstyle="none")
    _name_rows(right, [one.name for one in found.calibration])
    right.set(xlabel="calibration error", xlim=(0, None))
    return figure


def figure_thresholds(found: Evaluation) -> Figure:
    """Precision, sensitivity and specificity of the overall label over its threshold, and the one that is chosen."""
    truth, scores = found.predictions.of(found.predictions.overall)
    figure = Figure(figsize=(WIDE, 3.2), layout="constrained")
    axis = figure.subplots()
    if len(np.unique(truth)) == 2:
        precision_T, sensitivity_T, values_T = precision_recall_curve(truth, scores)
        axis.plot(values_T, precision_T[:-1], "-", color=BLUE, label="precision")
        axis.plot(values_T, sensitivity_T[:-1], "--", color=ORANGE, label="sensitivity")
        false_T, _, values_T = roc_curve(truth, scores, drop_intermediate=False)
        axis.plot(values_T[1:], 1 - false_T[1:], "-.", color=GREEN, label="specificity")
    chosen = next(one for one in found.thresholds if one.name == found.predictions.overall)
    if not np.isnan(chosen.value):
        axis.axvline(
            chosen.value, color="black", linewidth=1, linestyle=":", label=f"{chosen.rule}: {chosen.value:.3f}"
        )
    axis.set(xlabel=f"threshold, {found.predictions.overall}", xlim=(0, 1), ylim=(-0.02, 1.02))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axis.grid(alpha=0.3)
    return figure


def figure_roc(found: Evaluation) -> Figure:
    """ROC and precision-recall curves of the overall label, and of all sites as one label."""
    figure = Figure(figsize=(WIDE, 4.3), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    predictions = found.predictions
    columns = [predictions.labels.index(site) for site in predictions.sites]
    pooled = predictions.targets_NL[:, columns].ravel(), predictions.probabilities_NL[:, columns].ravel()
    overall = next(one for one in found.labels if one.name == predictions.overall)
    for name, areas, (truth, scores), style, colour in (
        (predictions.overall, overall, predictions.of(predictions.overall), "-", BLUE),
        ("sites, micro average", found.micro, pooled, "--", ORANGE),
    ):
        if len(np.unique(truth)) < 2:
            continue
        wrong, right, _ = roc_curve(truth, scores)
        roc.plot(wrong, right, style, color=colour, label=f"{name}: {number(areas.roc.value)}")
        found_T, recall_T, _ = precision_recall_curve(truth, scores)
        label = f"{name}: {number(areas.precision.value)}"
        precision.plot(recall_T, found_T, style, color=colour, drawstyle="steps-post", label=label)
        precision.axhline(truth.mean(), color=colour, linewidth=0.8, linestyle=":")
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, with its area")
    precision.set(xlabel="sensitivity", ylabel="precision", title="precision, with its average; dotted: a guess")
    for axis, place in ((roc, "lower right"), (precision, "best")):
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axis.title.set_size(10)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc=place, fontsize=8)
    return figure


def figure_labels(predictions: Predictions) -> Figure:
    """A panel a label, small where there are many: ROC (solid) over precision and recall (dashed)."""
    few = len(predictions.labels) <= FEW
    columns = FEW if few else PANELS
    rows = -(-len(predictions.labels) // columns)
    figure = Figure(figsize=(WIDE, (3.2 if few else 2.1) * rows), layout="constrained" if few else None)
    if not few:
        figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.2 / rows, bottom=0.02, wspace=0.08, hspace=0.3)
    for place, label in enumerate(predictions.labels):
        axis = figure.add_subplot(rows, columns, place + 1)
        truth, scores = predictions.of(label)
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
        if len(np.unique(truth)) == 2:
            wrong, right, _ = roc_curve(truth, scores)
            axis.plot(wrong, right, "-", color=BLUE, linewidth=1.4)
            found, recall, _ = precision_recall_curve(truth, scores)
            axis.plot(recall, found, "--", color=ORANGE, linewidth=1.2, drawstyle="steps-post")
        else:
            axis.text(0.5, 0.5, "one class", ha="center", va="center", fontsize=8, color=GREY)
        ticks = (0, 0.5, 1) if few else ()
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks)
        axis.set_title(_wrapped(label), fontsize=9 if few else 7.5)
    return figure


def figure_confusion(found: Evaluation) -> Figure:
    """Series with exactly one site: by that site (rows) and by the site that is ranked highest (columns)."""
    counts, names = found.confusion_SS, found.predictions.sites
    figure = Figure(figsize=(WIDE, 1.5 + 0.36 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(counts, cmap="Blues", vmin=0, vmax=max(1, counts.max()), aspect="auto")
    for row, column in np.argwhere(counts > 0):
        colour = "white" if counts[row, column] > 0.6 * counts.max() else "black"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    name_ticks(axis.yaxis, names)
    name_ticks(axis.xaxis, names, rotation=40, ha="right", rotation_mode="anchor")
    axis.set(xlabel="ranked highest", ylabel="true site")
    return figure


def forest(
    axis: Axes,
    rows: Sequence[Row],
    *,
    strong: set[str] = frozenset(),  # type: ignore[assignment]
    guess: float | None = 0.5,
    label: str | None = None,
) -> None:
    """Draw numbers with their intervals, the first row on top; a row without value stays empty.

    Args:
        axis: To draw on.
        rows: Name and number.
        strong: Names of rows that are drawn as diamonds.
        guess: Where a guess would lie; None draws no line.
        label: For the legend.
    """
    if guess is not None:
        axis.axvline(guess, color=GREY, linewidth=1, linestyle="--")
    for place, (name, estimate) in enumerate(rows):
        marker, colour = ("D", ORANGE) if name in strong else ("o", BLUE)
        axis.plot([estimate.interval.low, estimate.interval.high], [place, place], "-", color=colour, linewidth=1.5)
        axis.plot(estimate.value, place, marker, color=colour, label=label if place == 0 else None)
    _name_rows(axis, [name for name, _ in rows])
    axis.set_xlim(-0.02, 1.02)


def name_ticks(axis: Axis, names: Sequence[str], **style: Any) -> None:
    """Name the ticks 0, 1 ... of an axis, whatever the names hold: a dollar in one is no mathematics."""
    axis.set_ticks(range(len(names)), [printable(name) for name in names], fontsize=8, parse_math=False, **style)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    name_ticks(axis.yaxis, names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axis.grid(alpha=0.3, axis="x")
    axis.spines[["top", "right"]].set_visible(False)


def _rows_figure(rows: int) -> Figure:
    return Figure(figsize=(WIDE, 1.0 + ROW * rows), layout="constrained")


def _wrapped(name: str) -> str:
    """A name on two lines, parted at the blank that is nearest to its middle.

    Example:
        >>> _wrapped("Right Middle Cerebral Artery")
        'Right Middle\\nCerebral Artery'
    """
    blanks = [place for place, letter in enumerate(name) if letter == " "]
    if len(name) < 16 or not blanks:
        return name
    middle = min(blanks, key=lambda place: abs(place - len(name) / 2))
    return f"{name[:middle]}\n{name[middle + 1 :]}"
