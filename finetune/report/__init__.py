"""The report of a fine-tuning run: curves with their stages, ROC, areas by location, calibration, example series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from finetune.inference import PREDICTIONS, TARGET_PREFIX, read_predictions, targets_and_predictions
from finetune.metrics import Score, bootstrap_interval
from finetune.model_folder import read_bundle
from finetune.samples import DataConfig
from finetune.tasks import Task
from finetune.tasks.aneurysm import AneurysmTask
from finetune.views import make_view
from finetune.views.box import BoxConfig
from harmonize.corpus import Corpus
from harmonize.decisions import unusual
from harmonize.errors import WrongUse
from harmonize.labels import LABELS, PRESENT
from harmonize.page import Page
from headspark.run.curves import plot_metric
from headspark.run.folder import read_metrics, read_state

REPORT = "report.html"
EXAMPLES = 4
CALIBRATION_BINS = 5
INK, SECOND, THIRD, PALE = "#0b6e99", "#b5651d", "#5a7d2b", "#9aa6b5"
STAGE_TINTS = ("#e8f1f5", "#f7efe6", "#eef3e6", "#f3eaf3")


def write_report(run: Path, corpus: Corpus | None = None) -> Path:
    """Write ``report.html`` into a finished run's folder.

    Args:
        run: The folder.
        corpus: The one it was trained on; without it there are no pictures of series.

    Returns:
        Path of the page.

    Raises:
        UserError: There is no finished run.
    """
    state = read_state(run)
    if state is None or not (run / PREDICTIONS).exists():
        raise WrongUse(f"{run}: no finished run there; let finetune.train finish")
    predictions = read_predictions(run / PREDICTIONS, LABELS)
    metrics = read_metrics(run)
    score = AneurysmTask().score(predictions)
    interval = bootstrap_interval(predictions[f"{TARGET_PREFIX}{PRESENT}"], predictions[PRESENT])
    page = Page(
        "Fine-tuning report",
        lead=f"{len(predictions)} held-out series, none of whose patients were trained on; "
        f"{metrics[-1]['step'] if metrics else 0} steps.",
    )
    page.tiles(
        [
            (_number(score.means["auc_present"]), "AUC, aneurysm present"),
            (f"{_number(interval.low)} to {_number(interval.high)}", "its 95 % interval (bootstrap over series)"),
            (_number(score.means["auc_mean_locations"]), "mean AUC of the locations"),
            (_number(score.score), "competition score"),
        ]
    )
    if score.note():
        page.text(f"{score.note()}.")
    page.heading("Training")
    page.figure(figure_curves(metrics), caption="Losses and held-out AUC by step; the bands are the stages.")
    page.heading("Held-out series")
    page.figure(figure_roc(predictions), caption="ROC of aneurysm present, and of the locations together.")
    page.table(["label", "positive", "AUC"], location_rows(predictions, score))
    page.figure(
        figure_calibration(predictions),
        caption="Share of positive series by predicted probability of aneurysm present, in bins of equal count.",
    )
    left_out = (state.get("results") or {}).get("left_out")
    if left_out:
        page.text("Series of the corpus that the run could not use, neither to train nor to judge:")
        page.table(["why", "series"], sorted(left_out.items()))
    if corpus is not None:
        page.heading("Out of the ordinary")
        found = unusual_rows(corpus, predictions)
        page.text(
            "What harmonize decided about held-out series that is no matter of course."
            if found
            else "Harmonize noted nothing out of the ordinary about a held-out series."
        )
        if found:
            page.table(["series", "decision"], found)
    page.heading("Examples")
    page.text("The two highest-ranked series with an aneurysm, and the two without one that ranked highest.")
    page.figure(figure_examples(predictions, examples(predictions)), caption="Predictions; true labels are filled.")
    if corpus is not None:
        config = read_bundle(run).data
        page.figure(
            figure_patches(corpus, examples(predictions), config),
            caption="What the network saw: axial, coronal and sagittal, through a labelled place or the middle.",
        )
    page.heading("Made with")
    page.table(["what", "value"], sorted((name, str(value)) for name, value in state["libraries"].items()))
    page.write(run / REPORT)
    return run / REPORT


def figure_curves(metrics: Sequence[Mapping[Any, Any]]) -> Figure:
    """Training losses above, held-out areas below, over the optimizer steps, with the stages as bands.

    Args:
        metrics: The lines of metrics.jsonl; what a line lacks may be absent, None or NaN.
    """
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    losses, areas = figure.subplots(2, 1, sharex=True)
    for axis in (losses, areas):
        _mark_stages(axis, metrics, named=axis is losses)
        axis.grid(alpha=0.3)
    for name, colour in (("loss", INK), ("labels", SECOND), ("presence", THIRD), ("territory", PALE)):
        plot_metric(losses, metrics, name, label=name, color=colour)
    losses.set(ylabel="training loss", yscale="log")
    losses.legend(loc="upper right", fontsize=9, ncols=4)
    for name, label, colour in (
        ("auc_present", PRESENT, INK),
        ("auc_mean_locations", "mean of locations", SECOND),
        ("score", "competition score", THIRD),
    ):
        plot_metric(areas, metrics, name, label=label, style="o-", color=colour)
    areas.axhline(0.5, color=PALE, linewidth=1, linestyle="--")
    areas.set(xlabel="optimizer step", ylabel="held-out AUC", ylim=(0, 1.02))
    areas.legend(loc="lower right", fontsize=9)
    return figure


def figure_roc(predictions: pd.DataFrame) -> Figure:
    """ROC of `Aneurysm Present`, and of all location labels pooled.

    Args:
        predictions: Columns as in predictions.parquet.
    """
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    targets_N14, probabilities_N14 = targets_and_predictions(predictions, LABELS)
    score = AneurysmTask().score(predictions)
    axis.plot([0, 1], [0, 1], "--", color=PALE, linewidth=1)
    for name, columns, colour, area in (
        (PRESENT, slice(13, 14), INK, score.means["auc_present"]),
        ("locations, pooled", slice(0, 13), SECOND, None),
    ):
        truth, values = targets_N14[:, columns].ravel(), probabilities_N14[:, columns].ravel()
        if len(np.unique(truth)) == 2:
            wrong, right, _ = roc_curve(truth, values)
            axis.plot(wrong, right, color=colour, label=name if area is None else f"{name}: {area:.3f}")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.set_aspect("equal")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right", fontsize=9)
    return figure


def figure_calibration(predictions: pd.DataFrame) -> Figure:
    """Share of positives against the mean predicted probability of `Aneurysm Present`."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axis = figure.subplots()
    ordered = predictions.sort_values(PRESENT)
    parts = [part for part in np.array_split(np.arange(len(ordered)), CALIBRATION_BINS) if len(part)]
    predicted = [ordered[PRESENT].iloc[part].mean() for part in parts]
    found = [ordered[f"{TARGET_PREFIX}{PRESENT}"].iloc[part].mean() for part in parts]
    axis.plot([0, 1], [0, 1], "--", color=PALE, linewidth=1)
    axis.plot(predicted, found, "o-", color=INK)
    axis.set(xlabel="predicted probability", ylabel="share with an aneurysm", xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    return figure


def figure_examples(predictions: pd.DataFrame, scan_ids: Sequence[str]) -> Figure:
    """The 14 probabilities of some series as bars; those of true labels are filled."""
    figure = Figure(figsize=(13, 4.0), layout="constrained")
    rows = predictions.set_index("scan_id")
    for axis, scan_id in zip(_row_of_axes(figure, len(scan_ids)), scan_ids, strict=True):
        series = rows.loc[scan_id].to_dict()
        for place, label in enumerate(reversed(LABELS)):
            true = series[f"{TARGET_PREFIX}{label}"] == 1
            axis.barh(place, float(series[label]), color=INK if true else "none", edgecolor=INK)
        first = axis.get_subplotspec().is_first_col()  # type: ignore[union-attr]
        axis.set_yticks(range(len(LABELS)), [short_name(label) for label in reversed(LABELS)] if first else [])
        axis.tick_params(labelsize=8)
        axis.set(xlim=(0, 1), xlabel="probability")
        axis.set_title(f"...{scan_id[-8:]}", fontsize=9)
    return figure


def figure_patches(corpus: Corpus, scan_ids: Sequence[str], config: DataConfig) -> Figure:
    """Three planes of the network's input for some series, through an aneurysm or the middle."""
    cases = {case.scan_id: case for case in AneurysmTask().cases(corpus, every_label=True).cases}
    task: Task = AneurysmTask()
    view = make_view(BoxConfig(), config, task)
    figure = Figure(figsize=(13, 3.0 * len(scan_ids) / 2), layout="constrained")
    axes = np.asarray(figure.subplots(-(-len(scan_ids) // 2), 6, squeeze=False)).reshape(-1, 3)
    for axis in axes.ravel():
        axis.set_axis_off()
    for row, scan_id in zip(axes, scan_ids, strict=False):
        region = view.load(cases[scan_id])
        x_CXYZ, points_K3 = view.sample(region).numpy(), view.findings(region).points_K3
        centre = np.array(config.patch) // 2
        if len(points_K3):
            centre = np.clip(np.rint(points_K3[0]).astype(int), 0, np.array(config.patch) - 1)
        channel = x_CXYZ[min(1, len(x_CXYZ) - 1)]
        low, high = np.percentile(channel, [1, 99.5])
        for axis, dropped in zip(row, (2, 1, 0), strict=True):
            kept = [i for i in range(3) if i != dropped]
            plane = np.take(channel, centre[dropped], axis=dropped)
            axis.imshow(plane.T, origin="lower", cmap="gray", vmin=low, vmax=high)
            if len(points_K3):
                axis.plot(*centre[kept], "o", markersize=14, fillstyle="none", color="#ffb000")
        row[0].set_title(f"...{scan_id[-8:]} {cases[scan_id].modality}", fontsize=9)
    return figure


def examples(predictions: pd.DataFrame) -> list[str]:
    """The highest-ranked series with and without an aneurysm, by the prediction for `Aneurysm Present`."""
    ordered = predictions.sort_values(PRESENT, ascending=False)
    truth = ordered[f"{TARGET_PREFIX}{PRESENT}"]
    half = EXAMPLES // 2
    return [*ordered[truth == 1]["scan_id"].head(half), *ordered[truth == 0]["scan_id"].head(half)]


def location_rows(predictions: pd.DataFrame, score: Score) -> list[tuple[str, int, object]]:
    """Label, positives and area of each label; a dash where the area is undefined."""
    return [
        (label, int(predictions[f"{TARGET_PREFIX}{label}"].sum()), "-" if np.isnan(area) else area)
        for label, area in score.areas.items()
    ]


def unusual_rows(corpus: Corpus, predictions: pd.DataFrame) -> list[tuple[str, str]]:
    """(series, decision) of the held-out series about which something out of the ordinary was decided."""
    judged = set(predictions["scan_id"])
    rows = corpus.scans[(corpus.scans["source"] == AneurysmTask.source) & corpus.scans["scan_id"].isin(judged)]
    return [
        (f"...{scan_id[-8:]}", line)
        for scan_id, decisions in sorted(zip(rows["scan_id"], rows["decisions"], strict=True), key=lambda row: row[0])
        for line in unusual(decisions)
    ]


def short_name(label: str) -> str:
    """A label's name for a narrow place.

    Example:
        >>> short_name("Left Posterior Communicating Artery")
        'Left Posterior Comm.'
    """
    return label.replace("Internal Carotid Artery", "ICA").replace("Communicating", "Comm.").removesuffix(" Artery")


def _mark_stages(axis: Axes, metrics: Sequence[Mapping[Any, Any]], *, named: bool) -> None:
    start = 0
    for number, (name, lines) in enumerate(groupby(metrics, key=lambda line: line["stage"])):
        end = max(line["step"] for line in lines)
        axis.axvspan(start, end, color=STAGE_TINTS[number % len(STAGE_TINTS)], zorder=0)
        if named:
            axis.text((start + end) / 2, 1.01, name, transform=axis.get_xaxis_transform(), ha="center", fontsize=9)
        start = end


def _row_of_axes(figure: Figure, count: int) -> list[Axes]:
    return list(np.asarray(figure.subplots(1, max(count, 1), squeeze=False))[0])[:count]


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"
