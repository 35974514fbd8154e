"""Pictures of series: what the network saw, where somebody marked a point, and where the network sees something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune import candidates
from finetune.evaluation import Mistake, Others, Predictions
from finetune.evaluation.predictions import FOLD_FOLDER
from finetune.evaluation.text import number, probability
from finetune.inference import voxels_to_mm
from finetune.model_folder import CONFIG, load_model, read_bundle
from finetune.series import Case, told_of
from finetune.sliding import sliding_maps
from finetune.tasks import Task, make_task
from finetune.views import make_view
from finetune.views.posing import pose_findings
from harmonize.corpus import Corpus
from headspark.channels import as_window
from headspark.folder_kind import is_model_config, read_json

WIDE = 11.0
PER_ROW = 2
PLANES = ((2, (0, 1)), (1, (0, 2)), (0, (1, 2)))
"""Axial, coronal, sagittal: the axis that is dropped, and those that run to the right and up."""

GAP_VOXELS, NEAR_VOXELS = 2, 4
HEAT_OUTPUT = "presence"
"""What a network calls the logits of something in each cell, (B, d, h, w)."""

"""Of x_CDHW; views of slices have no planes through a voxel."""

WINDOWS = ("vessel", "blood")
"""Of CT, that show what bleeds; the first of these that the network sees is drawn, else its first one."""

SHOWN_PERCENTILES = (1.0, 99.5)
MARK, SEEN, HEAT = "#ffb000", "#ffffff", "cool"
STRONGEST = 0.5
"""Opacity of the heat map where it is highest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A series as the network saw it: the box, or the whole head where it saw that in tiles.

    Attributes:
        values_XYZ: One channel of its input.
        points_K3: Marked points inside of it, as indices of voxels.
        heat_dhw: Probability of something in each cell; None where the network says none.
        modality: Of the series.
        cell: Edge of a cell of the heat map, in voxels.
        to_mm: (4, 4), from its voxels to RAS+ mm; None where nobody knows.
    """

    values_XYZ: NDArray[np.float32]
    points_K3: NDArray[np.float64]
    heat_dhw: NDArray[np.float32] | None
    modality: str
    cell: int = 1
    to_mm: NDArray[np.float64] | None = None

    def voxel(self, xyz_mm: Sequence[float]) -> NDArray[np.float64] | None:
        """Where a place in RAS+ mm lies in its voxels."""
        if self.to_mm is None:
            return None
        found: NDArray[np.float64] = (np.linalg.inv(self.to_mm) @ [*xyz_mm, 1.0])[:3]
        return found

    def hottest(self) -> NDArray[np.int64] | None:
        """Voxel in the middle of the hottest cell."""
        if self.heat_dhw is None:
            return None
        index = np.array(np.unravel_index(int(self.heat_dhw.argmax()), self.heat_dhw.shape))
        middle: NDArray[np.int64] = index * self.cell + self.cell // 2
        return middle


def task_of(run: Path) -> Task | None:
    """What a run, or the first fold of a cross-validation, asks; None where there is no model.

    Raises:
        UserError: The model's folder is damaged.
    """
    folders = [one for one in (run, *sorted(run.glob(FOLD_FOLDER.format("*")))) if (one / CONFIG).exists()]
    # Above the folds that were pushed lies a config.json that names them; a damaged model's says what is wrong.
    models = [one for one in folders if is_model_config(read_json(one / CONFIG))]
    model = next(iter(models or folders), None)
    return None if model is None else make_task(read_bundle(model).task)


def overall_of(task: Task | None) -> str | None:
    """The label of a task that is positive where any other is; None if there is none."""
    return None if task is None or task.any_label is None else task.labels[task.any_label]


def cases_of(corpus: Corpus | None, task: Task | None) -> dict[str, Case]:
    """The labelled series of a corpus by their ids; none without a corpus."""
    if corpus is None or task is None:
        return {}
    return {case.scan_id: case for case in task.cases(corpus, every_label=True).cases}


def others_of(predictions: Predictions, cases: Mapping[str, Case]) -> Others | None:
    """The labelled series that are not judged; None where their labels are others than the predictions'."""
    left = [case for case in cases.values() if case.scan_id not in set(predictions.scan_ids_N)]
    if not left or len(left[0].labels) != len(predictions.labels):
        return None
    return Others(
        scan_ids_M=tuple(case.scan_id for case in left),
        subjects_M=tuple(case.subject for case in left),
        modalities_M=tuple(case.modality for case in left),
        targets_ML=np.array([case.labels for case in left], dtype=np.int64),
    )


def candidates_of(run: Path) -> pd.DataFrame | None:
    """Where a run or a cross-validation sees something; None where it does not say.

    Raises:
        UserError: The table is damaged.
    """
    path = run / candidates.TABLE
    return candidates.read_table(path) if path.exists() else None


def model_folder_of(run: Path, predictions: Predictions, scan_id: str) -> Path:
    """The model that predicted a series: the run, or the fold of a cross-validation that held it out."""
    if (run / CONFIG).exists() or predictions.folds_N is None:
        return run
    return run / FOLD_FOLDER.format(predictions.folds_N[predictions.scan_ids_N.index(scan_id)])


def pictures_of(
    run: Path, predictions: Predictions, cases: Mapping[str, Case], scan_ids: Sequence[str]
) -> dict[str, Picture]:
    """Pictures of some series; without those that the corpus does not hold, or whose model is gone.

    Args:
        run: A finished run, or a cross-validation.
        predictions: Its.
        cases: The series of the corpus.
        scan_ids: Which.

    Raises:
        UserError: A model or a file of a series is damaged.
    """
    return dict(each_picture(run, predictions, cases, scan_ids))


def each_picture(
    run: Path, predictions: Predictions, cases: Mapping[str, Case], scan_ids: Sequence[str]
) -> Iterator[tuple[str, Picture]]:
    """The same one by one, for more series than there is memory for; those of one model come together."""
    folders: dict[Path, list[str]] = {}
    for scan_id in dict.fromkeys(scan_ids):
        if scan_id in cases:
            folders.setdefault(model_folder_of(run, predictions, scan_id), []).append(scan_id)
    for folder, own in folders.items():
        if not (folder / CONFIG).exists():
            continue
        bundle = read_bundle(folder)
        model, view = load_model(folder, bundle), make_view(bundle.view, bundle.data, make_task(bundle.task))
        names = [as_window(window).name for window in bundle.data.windows]
        channel = next((names.index(name) for name in WINDOWS if name in names), 0)
        bag = bundle.data.inference == "bag"
        for scan_id in own:
            region = view.load(replace(cases[scan_id], whole=bag))
            x = view.whole(region) if bag or view.pictures else view.sample(region)
            points_K3 = pose_findings(region, x.shape[1:]).points_K3
            heat = (
                None
                if view.pictures
                else sliding_maps(
                    partial(model, group_B=told_of([region])),
                    x[None],
                    bundle.data.patch,
                    bundle.data.overlap,
                    stride=bundle.encoder.cumulative_strides[-1],
                ).get(HEAT_OUTPUT)
            )
            inside_K = ((points_K3 >= -0.5) & (points_K3 < np.array(x.shape[1:]) - 0.5)).all(1)
            picture = Picture(
                values_XYZ=x[channel].numpy(),
                points_K3=points_K3[inside_K],
                heat_dhw=None if heat is None else heat[0].float().sigmoid().numpy(),
                modality=cases[scan_id].modality,
                cell=model.cells.get(HEAT_OUTPUT, 1),
                to_mm=voxels_to_mm(view, region),
            )
            yield scan_id, picture


def figure_mistakes(pictures: Mapping[str, Picture], mistakes: Sequence[Mistake]) -> Figure:
    """Three planes of each mistake: a missed one through its point, a false alarm through the hottest cell."""
    drawn = []
    for one in mistakes:
        if one.scan_id not in pictures:
            continue
        picture = pictures[one.scan_id]
        peak = "" if picture.heat_dhw is None else f", heat up to {number(float(picture.heat_dhw.max()))}"
        kind = "missed" if one.truth else "false alarm"
        title = (
            f"...{one.scan_id[-8:]} {picture.modality}: {kind}, p = {probability(one.probability)}{peak}\n{one.site}"
        )
        drawn.append((title, picture, _first_point(picture) if one.truth else picture.hottest()))
    return _figure(drawn)


def figure_series(pictures: Mapping[str, Picture], scan_ids: Sequence[str]) -> Figure:
    """Three planes of each series, through a marked point or the middle."""
    shown = [(scan_id, pictures[scan_id]) for scan_id in scan_ids if scan_id in pictures]
    return _figure([(f"...{scan_id[-8:]} {one.modality}", one, _first_point(one)) for scan_id, one in shown])


def _first_point(picture: Picture) -> NDArray[np.float64] | None:
    return picture.points_K3[0] if len(picture.points_K3) else None


def _figure(drawn: Sequence[tuple[str, Picture, NDArray[Any] | None]]) -> Figure:
    """Title, picture and the voxel that its planes go through; `PER_ROW` series a row."""
    rows = max(1, -(-len(drawn) // PER_ROW))
    figure = Figure(figsize=(WIDE, 2.4 * rows))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.2 / rows, wspace=0.03, hspace=0.25)
    for place, (title, picture, centre) in enumerate(drawn):
        axis = figure.add_subplot(rows, PER_ROW, place + 1)
        axis.set_axis_off()
        draw_planes(axis, picture, centre)
        axis.set_title(title, fontsize=8, loc="left")
    return figure


def draw_planes(
    axis: Axes, picture: Picture, centre: NDArray[Any] | None, seen_K3: NDArray[np.float64] | None = None
) -> None:
    """Axial, coronal and sagittal planes through a voxel side by side, the heat map over them.

    Args:
        axis: To draw on.
        picture: With marked points, which get circles.
        centre: The voxel; None: the middle.
        seen_K3: Voxels of candidates, which get crosses.
    """
    shape = np.array(picture.values_XYZ.shape)
    at = shape // 2 if centre is None else np.clip(np.rint(centre).astype(int), 0, shape - 1)
    left = 0
    for dropped, kept in PLANES:
        across, up = shape[list(kept)]
        extent = (left - 0.5, left + across - 0.5, -0.5, up - 0.5)
        axis.imshow(_plane(picture, at, dropped), origin="lower", extent=extent)
        for point in picture.points_K3[np.abs(picture.points_K3[:, dropped] - at[dropped]) <= NEAR_VOXELS]:
            for width, colour in ((3.0, "black"), (1.4, MARK)):
                place = left + point[kept[0]], point[kept[1]]
                axis.plot(*place, "o", markersize=12, fillstyle="none", color=colour, markeredgewidth=width)
        if seen_K3 is not None:
            for seen in seen_K3[np.abs(seen_K3[:, dropped] - at[dropped]) <= NEAR_VOXELS]:
                axis.plot(left + seen[kept[0]], seen[kept[1]], "+", markersize=11, color=SEEN, markeredgewidth=1.4)
        left += across + GAP_VOXELS
    axis.set_xlim(-0.5, left - GAP_VOXELS - 0.5)
    axis.set_ylim(-0.5, max(shape[1], shape[2]) - 0.5)


def _plane(picture: Picture, at: NDArray[np.int64], dropped: int) -> NDArray[np.float64]:
    """A plane in grey with the heat map over it, rows from below, (rows, columns, 3)."""
    low, high = np.percentile(picture.values_XYZ, SHOWN_PERCENTILES)
    grey = np.clip((np.take(picture.values_XYZ, at[dropped], axis=dropped).T - low) / max(high - low, 1e-6), 0, 1)
    colours = np.repeat(grey[..., None].astype(np.float64), 3, axis=2)
    if picture.heat_dhw is None:
        return colours
    cells = np.take(picture.heat_dhw, at[dropped] // picture.cell, axis=dropped).T
    place = np.ix_(*(np.arange(edge) // picture.cell for edge in grey.shape))
    share = (cells / max(float(picture.heat_dhw.max()), 1e-6))[place][..., None]
    over = STRONGEST * share**3
    return np.clip(colours * (1 - over) + over * colormaps[HEAT](share[..., 0])[..., :3], 0, 1)
