"""The part of a report that is about segmentations: how well each structure is drawn, and the best and worst series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune.evaluation.overlap import DICE_PREFIX, StructureOverlap, structures
from finetune.evaluation.predictions import FOLD, FOLD_FOLDER, ID, MODALITY, SUBJECT
from finetune.evaluation.text import behind, interval, number
from finetune.model_folder import CONFIG, load_model, read_bundle
from finetune.models.assemble import Network
from finetune.report.charts import GREY, forest
from finetune.report.series import GAP_VOXELS, PLANES, SHOWN_PERCENTILES, cases_of
from finetune.segmentation import segment, true_classes
from finetune.series import Case
from finetune.tasks import Task, make_task
from finetune.views import make_view
from harmonize.corpus import Corpus
from harmonize.page import Page

SHOWN = 3
"""Best, and worst, series with a picture."""

LISTED = 20
"""Worst series in the table."""

TRUE_COLOUR, SAID_COLOUR = "#ffb000", "#56b4e9"
"""Of outlines; they are told apart by the width of their lines too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A series with what is known and what was said of each voxel.

    Attributes:
        values_XYZ: One channel of the network's input.
        true_XYZ: Classes by the mask, 0 for none.
        said_XYZ: Classes by the network.
    """

    values_XYZ: NDArray[np.float32]
    true_XYZ: NDArray[np.uint8]
    said_XYZ: NDArray[np.uint8]


def add_masks(page: Page, run: Path, corpus: Corpus | None, task: Task, table: pd.DataFrame) -> None:
    """Add the sections to a report.

    Args:
        page: The report.
        run: A finished run, or a cross-validation.
        corpus: The one it was trained on; without it there are no pictures.
        task: What it asks.
        table: Its predictions.

    Raises:
        UserError: The model or a file of a series is damaged.
    """
    *each, mean = structures(table, task.labels)
    page.tiles(
        [
            (number(mean.dice.value), f"mean Dice of {len(task.labels)} structures{behind(mean.dice)}"),
            (number(mean.distance_mm.value), "mm, mean surface distance"),
            (str(mean.missed), "structures missed as a whole"),
            (str(len(table)), f"held-out series of {table[SUBJECT].nunique()} patients"),
        ]
    )
    page.heading("By structure")
    page.text(
        "Dice is 2 x overlap / (mask + answer), over the series that have the structure or were said to have it; the "
        "surface distance is the mean distance between both surfaces, in mm, where both are there. Voxels are those of "
        "the network's input; the tiles of a series are put together first."
    )
    page.figure(figure_structures(table, each), caption="Each grey dot a series; blue: means with their intervals.")
    rows = [[one.name, one.series, one.missed, interval(one.dice), interval(one.distance_mm)] for one in (*each, mean)]
    page.table(["structure", "series", "missed", "Dice", "surface distance, mm"], rows)
    page.heading("By modality")
    found = [(name, structures(rows, task.labels)[-1]) for name, rows in table.groupby(MODALITY)]
    page.table(
        ["modality", "series", "mean Dice", "surface distance, mm"],
        [[name, one.series, interval(one.dice), interval(one.distance_mm)] for name, one in found],
    )
    _series(page, run, corpus, task, table)


def figure_structures(table: pd.DataFrame, each: Sequence[StructureOverlap]) -> Figure:
    """Dice of every series, a row a structure, and the means with their intervals."""
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(each)), layout="constrained")
    axis = figure.subplots()
    spread = np.random.default_rng(0)
    for place, one in enumerate(each):
        dice_N = table[f"{DICE_PREFIX}{one.name}"].dropna()
        axis.plot(dice_N, place + spread.uniform(-0.25, 0.25, len(dice_N)), ".", color=GREY, alpha=0.5, zorder=1)
    forest(axis, [(one.name, one.dice) for one in each], guess=None)
    axis.set(xlabel="Dice", xlim=(-0.02, 1.02))
    return figure


def figure_outlines(drawn: Mapping[str, Drawn], titles: Mapping[str, str]) -> Figure:
    """Three planes of each series, with the outlines of the masks and of what was said.

    Args:
        drawn: By the id of the series.
        titles: Likewise.
    """
    rows = max(1, len(drawn))
    figure = Figure(figsize=(11, 3.4 * rows))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.12 / rows, hspace=0.12)
    for place, (scan_id, one) in enumerate(drawn.items(), start=1):
        axis = figure.add_subplot(rows, 1, place)
        axis.set_axis_off()
        _draw(axis, one)
        axis.set_title(titles[scan_id], fontsize=8, loc="left")
    return figure


def _series(page: Page, run: Path, corpus: Corpus | None, task: Task, table: pd.DataFrame) -> None:
    means = table[[f"{DICE_PREFIX}{label}" for label in task.labels]].mean(axis=1)
    ranked = table.assign(mean=means).dropna(subset="mean").sort_values(["mean", ID])
    page.heading("Best and worst series")
    worst = list(ranked[ID].head(SHOWN))
    best = [one for one in ranked[ID].tail(SHOWN)[::-1] if one not in worst]
    dice = dict(zip(ranked[ID], ranked["mean"], strict=True))
    modality = dict(zip(ranked[ID], ranked[MODALITY], strict=True))
    drawn = _drawn(run, table, cases_of(corpus, task), [*worst, *best])
    if drawn:
        titles = {
            scan_id: f"{'worst' if scan_id in worst else 'best'}: ...{scan_id[-8:]} {modality[scan_id]}, "
            f"mean Dice {number(dice[scan_id])}"
            for scan_id in drawn
        }
        page.figure(
            figure_outlines(drawn, titles),
            caption="Axial, coronal and sagittal plane where most of the mask is. Thick amber: the mask. Thin blue: "
            "what the network says.",
        )
    columns = [f"{DICE_PREFIX}{label}" for label in task.labels]
    rows = [
        [row[ID], row[MODALITY], number(row["mean"]), _poorest(row, columns)]
        for _, row in ranked.head(LISTED).iterrows()
    ]
    page.text(f"The {len(rows)} series with the lowest mean Dice:")
    page.table(["series", "modality", "mean Dice", "poorest structure"], rows)


def _poorest(row: pd.Series[float], columns: Sequence[str]) -> str:
    values = row[list(columns)].astype(float)
    name = str(values.idxmin())
    return f"{name.removeprefix(DICE_PREFIX)} ({number(values[name])})"


def _drawn(run: Path, table: pd.DataFrame, cases: Mapping[str, Case], scan_ids: Sequence[str]) -> dict[str, Drawn]:
    """Some series as the model of their fold segments them; without those that the corpus does not hold."""
    folds = dict(zip(table[ID], table[FOLD], strict=True))
    found: dict[str, Drawn] = {}
    models: dict[Path, Network] = {}
    for scan_id in scan_ids:
        folder = run if (run / CONFIG).exists() else run / FOLD_FOLDER.format(folds[scan_id])
        if scan_id not in cases or not (folder / CONFIG).exists():
            continue
        bundle = read_bundle(folder)
        task = make_task(bundle.task)
        if folder not in models:
            models = {folder: load_model(folder, bundle)}
        view = make_view(bundle.view, bundle.data, task)
        region = view.load(cases[scan_id])
        classes = segment(models[folder], region, bundle.data, task, view, torch.device("cpu")).argmax(0)
        found[scan_id] = Drawn(
            values_XYZ=view.whole(region)[0].numpy(),
            true_XYZ=true_classes(region, tuple(classes.shape)),
            said_XYZ=classes.numpy().astype(np.uint8),
        )
    return found


def _draw(axis: Axes, one: Drawn) -> None:
    """Axial, coronal and sagittal planes through the busiest voxel side by side, with outlines."""
    shape = np.array(one.values_XYZ.shape)
    shown = one.true_XYZ if one.true_XYZ.any() else one.said_XYZ
    at = [int((shown > 0).sum(tuple(other for other in range(3) if other != own)).argmax()) for own in range(3)]
    low, high = np.percentile(one.values_XYZ, SHOWN_PERCENTILES)
    left = 0
    for dropped, (across, up) in PLANES:
        extent = (left - 0.5, left + shape[across] - 0.5, -0.5, shape[up] - 0.5)
        plane = np.take(one.values_XYZ, at[dropped], axis=dropped).T
        axis.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
        for classes_XYZ, colour, width in ((one.true_XYZ, TRUE_COLOUR, 2.2), (one.said_XYZ, SAID_COLOUR, 0.9)):
            cut = np.take(classes_XYZ, at[dropped], axis=dropped).T
            for value in np.unique(cut[cut > 0]):
                axis.contour(
                    left + np.arange(shape[across]),
                    np.arange(shape[up]),
                    (cut == value).astype(float),
                    [0.5],
                    colors=colour,
                    linewidths=width,
                )
        left += int(shape[across]) + GAP_VOXELS
    axis.set_xlim(-0.5, left - GAP_VOXELS - 0.5)
    axis.set_ylim(-0.5, max(shape[1], shape[2]) - 0.5)
    axis.set_aspect("equal")
