"""The sections of a report on findings and their places: what is said of them, and where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.evaluation import Evaluation, Predictions
from finetune.evaluation.text import behind, interval, number, probability
from finetune.evaluation.thresholds import Confusion, averaged, summed
from finetune.report import charts
from finetune.report.charts import BLUE
from finetune.report.series import Picture, figure_mistakes, figure_series
from harmonize.page import Page

EXAMPLES = 4
DASH = "-"


def add_evaluation(page: Page, found: Evaluation) -> None:
    """Add the sections of an evaluation that need no picture of a series."""
    for section in (_within, _sites, _shortcuts, _calibration, _thresholds, _curves):
        section(page, found)


def examples(predictions: Predictions) -> list[str]:
    """The series with and without a finding that the overall label ranks highest."""
    truth, scores = predictions.of(predictions.overall)
    order = np.argsort(-scores, kind="stable")
    ranked = [[predictions.scan_ids_N[row] for row in order if truth[row] == value] for value in (1, 0)]
    return [scan_id for one in ranked for scan_id in one[: EXAMPLES // 2]]


def figure_examples(predictions: Predictions, scan_ids: Sequence[str]) -> Figure:
    """The probabilities of some series as bars; those of true labels are filled."""
    labels = predictions.labels
    figure = Figure(figsize=(11, 1.0 + 0.24 * len(labels)), layout="constrained")
    axes: list[Axes] = list(np.asarray(figure.subplots(1, max(len(scan_ids), 1), squeeze=False))[0])[: len(scan_ids)]
    for axis, scan_id in zip(axes, scan_ids, strict=True):
        row = predictions.scan_ids_N.index(scan_id)
        filled = [BLUE if true else "none" for true in predictions.targets_NL[row]]
        axis.barh(range(len(labels)), predictions.probabilities_NL[row], color=filled, edgecolor=BLUE)
        charts.name_ticks(axis.yaxis, labels if axis is axes[0] else [""] * len(labels))
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.set(xlim=(0, 1), xlabel="probability")
        axis.set_title(f"...{scan_id[-8:]}", fontsize=9)
    return figure


def tiles(found: Evaluation) -> list[tuple[str, str]]:
    """The numbers at the head of the page, and what they are."""
    overall, within, pooled = found.predictions.overall, found.within.mean, found.within.pooled
    return [
        (number(within.value), f"AUC within modality, {overall}{behind(within)}"),
        (number(pooled.value), f"AUC of all series together, {overall}{behind(pooled)}"),
        (number(found.macro.value), f"mean AUC of the sites{behind(found.macro)}"),
        (number(found.score), f"score: mean of {overall} and of the sites"),
    ]


def _within(page: Page, found: Evaluation) -> None:
    page.heading("Within-modality AUC")
    page.text(
        f"How well {found.predictions.overall} ranks the series of one modality. All series together also reward a "
        "model that only knows which modality is ill more often; this does not."
    )
    page.figure(charts.figure_within(found), caption="ROC areas with their intervals; dashed: a guess.")
    rows = [[one.name, one.series, one.positives, interval(one.roc)] for one in found.within.groups]
    rows.append(["mean over modalities", "", "", interval(found.within.mean)])
    page.table(["modality", "series", "positive", "AUC"], rows)


def _sites(page: Page, found: Evaluation) -> None:
    page.heading("By site and size")
    page.text(
        "Left, how well each site's own label ranks all series. Right, how many of the series of each site "
        f"{found.predictions.overall} finds where one series in ten without any is a false alarm; grey, how many "
        "series these are."
    )
    page.figure(charts.figure_sites(found), caption="Left: ROC area a site. Right: share found, with Wilson intervals.")
    if not found.sizes:
        page.text("The sizes of the findings are not known: finetune report takes them with --sizes TABLE.csv.")
    else:
        page.table(["size", "series", "found"], [[o.name, o.series, interval(o.sensitivity)] for o in found.sizes])


def _shortcuts(page: Page, found: Evaluation) -> None:
    page.heading("Shortcuts")
    if not found.baselines:
        page.text("There are too few series, or too little is known of them, for baselines.")
        return
    page.text(
        "What can be had without looking at a picture: forests that know the modality, the geometry (voxels, spacing, "
        "field of view, raw and harmonized) or the intensities (percentiles, raw and harmonized) alone, and that never "
        "saw the patients they are judged on. A score that a baseline reaches too says nothing about the pictures. "
        "Where few have a finding, a baseline may lie far below 0.5: without one of them the rest knows fewer."
    )
    page.figure(charts.figure_shortcuts(found), caption="The model with its interval, and what each baseline reaches.")
    names = [f"{one.name} alone" for one in found.baselines]
    rows = [
        [one.name, interval(one.roc), *(interval(base.areas[one.name]) for base in found.baselines)]
        for one in found.labels
    ]
    within = [interval(found.within.mean), *(interval(one.within) for one in found.baselines)]
    rows.append([f"{found.predictions.overall}, within modality", *within])
    page.table(["AUC of", "model", *names], rows)


def _calibration(page: Page, found: Evaluation) -> None:
    page.heading("Calibration")
    page.text(
        "Whether one in five series with a probability of 0.2 has it. Logits divided by the temperature are best "
        "calibrated; what that is worth is measured with temperatures that were fitted to the other folds: those of a "
        "cross-validation, or parts into which the patients of a single run are dealt."
    )
    page.figure(
        charts.figure_calibration(found),
        caption="Left: bins of equal count. Right: distance between predicted and found; circles as predicted, "
        "squares with temperature.",
    )
    rows = [
        [
            one.name,
            number(one.temperature),
            number(one.before.error),
            DASH if one.after is None else number(one.after.error),
            number(one.brier),
            number(one.brier_after),
        ]
        for one in found.calibration
    ]
    page.table(
        ["label", "temperature", "calibration error", "with temperature", "Brier score", "with temperature"], rows
    )


def _thresholds(page: Page, found: Evaluation) -> None:
    overall = found.predictions.overall
    page.heading("Thresholds")
    honest = all(one.honest for one in found.thresholds)
    page.text(
        f"For {overall}, the smallest threshold with the precision that is asked for; for each site, that of the best "
        "F1. The calls beside it are "
        + (
            "those at thresholds that the other folds chose, so that nothing is judged by what it was chosen on."
            if honest
            else "those of the same series that chose it, which flatters: there are too few for folds."
        )
    )
    page.figure(charts.figure_thresholds(found), caption=f"{overall} over its threshold; dotted: the chosen one.")
    counts = ["true positives", "false positives", "false negatives", "true negatives"]
    rows = [
        [one.name, one.rule, probability(one.value), *_shares(one.confusion), *_counts(one.confusion)]
        for one in found.thresholds
    ]
    of_sites = [one.confusion for one in found.thresholds if one.name != overall]
    if of_sites:
        micro = summed(of_sites)
        rows.append(["sites, micro average", "", "", *_shares(micro), *_counts(micro)])
        rows.append(["sites, macro average", "", "", *map(number, averaged(of_sites).values()), *[""] * len(counts)])
    page.table(["label", "rule", "threshold", "precision", "sensitivity", "specificity", "F1", *counts], rows)


def _curves(page: Page, found: Evaluation) -> None:
    page.heading("ROC and PR")
    page.figure(charts.figure_roc(found), caption=f"{found.predictions.overall}, and all sites as one label.")
    page.figure(
        charts.figure_labels(found.predictions),
        caption="Each label. Solid: sensitivity over 1 - specificity. Dashed: precision over sensitivity.",
    )
    rows = [[one.name, one.positives, interval(one.roc), interval(one.precision)] for one in found.labels]
    if found.predictions.sites:
        micro = found.micro
        rows.append(["sites, micro average", micro.positives, interval(micro.roc), interval(micro.precision)])
        rows.append(["sites, macro average", "", interval(found.macro), ""])
    page.table(["label", "positive", "AUC", "average precision"], rows)
    if found.confusion_SS.any():
        caption = "Which site is taken for which, of series that have exactly one."
        page.figure(charts.figure_confusion(found), caption=caption)


def add_mistakes(page: Page, found: Evaluation, pictures: Mapping[str, Picture]) -> None:
    """Add the series that are ranked most wrongly, with pictures of those that have one."""
    page.heading("Most confident mistakes")
    page.text(
        f"The series without a finding that {found.predictions.overall} ranks highest, and those with one that it "
        "ranks lowest. Look at them first: they are wrong labels, or what the network has yet to learn."
    )
    if any(one.scan_id in pictures for one in found.mistakes):
        page.figure(
            figure_mistakes(pictures, found.mistakes),
            caption="Axial, coronal and sagittal: missed ones through their marked point (circle), false alarms "
            "through the hottest cell. Colour: the network's heat map, as a share of its highest value.",
        )
    rows = [[one.scan_id, "missed" if one.truth else "false alarm", probability(one.probability), one.site]
            for one in found.mistakes]  # fmt: skip
    page.table(["series", "what", "probability", "true site, or the highest one"], rows)


def add_examples(page: Page, predictions: Predictions, shown: Sequence[str], pictures: Mapping[str, Picture]) -> None:
    """Add some series that are ranked highest."""
    page.heading("Examples")
    page.text(f"The two series with {predictions.overall} that are ranked highest, and the two without it.")
    page.figure(figure_examples(predictions, shown), caption="Predictions; true labels are filled.")
    if any(scan_id in pictures for scan_id in shown):
        page.figure(
            figure_series(pictures, shown),
            caption="What the network saw: axial, coronal and sagittal, through a marked point or the middle.",
        )


def _shares(confusion: Confusion) -> list[str]:
    return [number(getattr(confusion, name)) for name in ("precision", "sensitivity", "specificity", "f1")]


def _counts(confusion: Confusion) -> list[int]:
    return [
        confusion.true_positives,
        confusion.false_positives,
        confusion.false_negatives,
        confusion.true_negatives,
    ]
