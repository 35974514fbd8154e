"""The pictures of the demo's page, each small enough for a narrow screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harmonize.corpus import Corpus, StoredVolume, read_volume
from harmonize.labels import LABELS
from harmonize.scan import HU, Scan
from headspark.channels import NAMED_WINDOWS

RAW, HARMONIZED = "#b5651d", "#0b6e99"
MARK = "#ffb000"
VIEW_NAMES = ("axial", "coronal", "sagittal")
RAW_NAMES = ("axes 0, 1", "axes 0, 2", "axes 1, 2")
WIDE = 6.6
"""Inches; text of 9 points can still be read where this is shown 360 pixels wide."""


def figure_raw(scan: Scan) -> Figure:
    """Middle planes of the raw voxels, in the scanner's own order."""
    return _three(np.asarray(scan.voxels_XYZ), np.linalg.norm(scan.affine[:3, :3], axis=0), scan.unit, RAW_NAMES)


def figure_stored(volume: StoredVolume, unit: str) -> Figure:
    """Middle planes of a volume of the corpus."""
    return _three(volume.values(), np.linalg.norm(volume.affine[:3, :3], axis=0), unit, VIEW_NAMES)


def figure_histogram(before: NDArray[np.float32], after: NDArray[np.float32], unit: str) -> Figure:
    """Raw values left, corpus values right."""
    figure = Figure(figsize=(WIDE, 2.4), layout="constrained")
    sides = ((before, RAW, "raw value"), (after, HARMONIZED, f"in the corpus: {unit}"))
    for axis, (values, colour, label) in zip(figure.subplots(1, 2), sides, strict=True):
        low, high = np.percentile(values, [0.1, 99.9])
        axis.hist(values, bins=80, range=(low, max(high, low + 1e-6)), color=colour, log=True)
        axis.set_xlabel(label, fontsize=10)
        axis.set_ylabel("voxels", fontsize=10)
        axis.tick_params(labelsize=9)
    return figure


def figure_place(corpus: Corpus, scan_id: str) -> tuple[Figure, bool]:
    """Three planes of a series through its first labelled point, else through its middle; and whether it has one."""
    row = corpus.scans.set_index("scan_id").loc[scan_id]
    volume = read_volume(corpus.path / row["image_file_name"], shape=list(row["shape"]))
    points = row["points"] if row["points"] is not None else []
    shape = np.asarray(volume.stored_XYZ.shape)
    centre = shape // 2
    if len(points):
        place = np.array([points[0]["x"], points[0]["y"], points[0]["z"], 1.0])
        centre = np.clip(np.rint(np.linalg.inv(volume.affine) @ place)[:3].astype(int), 0, shape - 1)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    figure = _three(volume.values(), spacing, str(row["unit"]), VIEW_NAMES, centre, mark=bool(len(points)))
    return figure, bool(len(points))


def figure_answers(prediction: Mapping[str, float], truth: Mapping[str, float]) -> Figure:
    """The probabilities of one series as bars; those of true labels are filled."""
    figure = Figure(figsize=(WIDE, 4.0), layout="constrained")
    axis = figure.subplots()
    for place, label in enumerate(LABELS):
        axis.barh(place, prediction[label], color=HARMONIZED if truth[label] else "none", edgecolor=HARMONIZED)
        axis.text(prediction[label] + 0.01, place, f"{prediction[label]:.2f}", va="center", fontsize=9)
    axis.set_yticks(range(len(LABELS)), [short_name(label) for label in LABELS], fontsize=10)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08)
    axis.set_xlabel("probability", fontsize=10)
    return figure


def figure_time(seconds: Mapping[str, float]) -> Figure:
    """How long each step took."""
    figure = Figure(figsize=(WIDE, 0.6 + 0.3 * len(seconds)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(seconds)), list(seconds.values()), color=HARMONIZED)
    for place, value in enumerate(seconds.values()):
        axis.text(value, place, f" {value:.0f} s", va="center", fontsize=9)
    axis.set_yticks(range(len(seconds)), list(seconds), fontsize=10)
    axis.invert_yaxis()
    axis.set_xlabel("seconds", fontsize=10)
    axis.margins(x=0.12)
    return figure


def short_name(label: str) -> str:
    """A label's name for a narrow place.

    Example:
        >>> short_name("Left Posterior Communicating Artery")
        'Left Posterior Comm.'
    """
    return label.replace("Internal Carotid Artery", "ICA").replace("Communicating", "Comm.").removesuffix(" Artery")


def _three(
    voxels: NDArray[Any],
    spacing: NDArray[np.float64],
    unit: str,
    titles: tuple[str, str, str],
    centre: NDArray[np.int64] | None = None,
    *,
    mark: bool = False,
) -> Figure:
    figure = Figure(figsize=(WIDE, 2.5), layout="constrained", facecolor="black")
    _planes(figure.subplots(1, 3), voxels, spacing, unit, titles, centre, mark=mark)
    return figure


def _planes(
    axes: Iterable[Axes],
    voxels: NDArray[Any],
    spacing: NDArray[np.float64],
    unit: str,
    titles: tuple[str, str, str],
    centre: NDArray[np.int64] | None,
    *,
    mark: bool,
) -> None:
    centre = np.asarray(voxels.shape) // 2 if centre is None else centre
    if unit == HU:
        width, level = NAMED_WINDOWS["vessel" if mark else "blood"]
        low, high = level - width / 2, level + width / 2
    else:
        low, high = np.percentile(voxels, [1, 99.5])
    for axis, title, dropped in zip(axes, titles, (2, 1, 0), strict=True):
        kept = [index for index in range(3) if index != dropped]
        plane = np.take(voxels, centre[dropped], axis=dropped)
        aspect = spacing[kept[1]] / spacing[kept[0]]
        axis.imshow(plane.T, origin="lower", cmap="gray", vmin=low, vmax=high, aspect=aspect)
        axis.set_title(title, fontsize=10, color="white")
        axis.set_axis_off()
        if mark:
            axis.plot(*centre[kept], "o", markersize=14, fillstyle="none", color=MARK)
