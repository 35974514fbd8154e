"""Figures of a corpus's manifest: intensities before and after, voxel sizes, shapes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from harmonize.report.outliers import foreground_share
from harmonize.settings import PERCENTILES

MAX_GROUPS = 12
"""Modalities drawn, the most frequent ones."""

MAX_LINES = 40
"""Scans drawn one by one, evenly chosen."""

MAX_AVERAGED = 500
"""Scans that the bold mean is over, evenly chosen."""

POINTS = 160
TRIM = (2, 98)
"""Percentiles of the scans' ends between which an axis runs, so that one odd scan does not squeeze all others."""

TALL = 80
"""Percentile of the scans' peaks that an axis shows whole."""

INK = "#0b6e99"
COLOURS = ("#0b6e99", "#b5651d", "#5a7d2b", "#8d5a97", "#9aa6b5", "#b33f62", "#3d5a80", "#c9a227")
"""Of sources, which begin again where there are more of them."""


def intensity_groups(scans: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The modalities that `intensities` draws, by name and unit, the most frequent first, with their rows."""
    names = scans["modality"] + ", " + scans["unit"]
    return [(name, scans[names == name]) for name in names.value_counts().index[:MAX_GROUPS]]


def intensities(groups: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """Foreground histograms before (left) and after (right), a row a modality: scans thin, their mean bold."""
    figure = Figure(figsize=(10, 1.0 + 1.75 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False)
    for row, (name, scans) in enumerate(groups):
        for column, (stage, title) in enumerate((("raw_percentiles", "before"), ("intensity_percentiles", "after"))):
            axis: Axes = axes[row, column]
            known = [np.asarray(value, dtype=float) for value in scans[stage] if value is not None]
            _draw_densities(axis, known)
            axis.set_yticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
            if row == 0:
                axis.set_title(title, fontsize=10)
            if column == 0:
                axis.set_ylabel(
                    f"{name}\n{len(scans)} scan{'s' * (len(scans) > 1)}",
                    rotation=0,
                    ha="right",
                    va="center",
                    fontsize=9,
                )
    return figure


def geometry(scans: pd.DataFrame) -> Figure:
    """Raw voxel sizes, harmonized extents and foreground shares, coloured by source."""
    raw_spacing = np.stack(scans["raw_spacing"].to_list()).astype(float)
    shape = np.stack(scans["shape"].to_list()).astype(int)
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    panels = (
        ("raw slice spacing (mm)", raw_spacing.max(axis=1)),
        ("raw in-plane spacing (mm)", raw_spacing.min(axis=1)),
        ("share of the foreground box", foreground_share(scans)),
        ("voxels right to left", shape[:, 0]),
        ("voxels back to front", shape[:, 1]),
        ("voxels foot to head", shape[:, 2]),
    )
    sources = sorted(scans["source"].unique())
    for axis, (title, values) in zip(axes, panels, strict=True):
        by_source = [values[(scans["source"] == source).to_numpy()] for source in sources]
        bins = np.histogram_bin_edges(values, bins=24)
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axis.hist(by_source, bins=bins, stacked=True, color=list(islice(cycle(COLOURS), len(sources))), label=sources)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("scans")
    axes[3].set_ylabel("scans")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sources), frameon=False)
    return figure


def density(percentile_values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Histogram that a scan's percentiles imply, as a density at the places `at`.

    The distribution function goes monotonically through the percentiles (Fritsch & Carlson 1980); its slope is the
    density. Tied percentiles become one place with the highest of their ranks.

    Args:
        percentile_values: (9,), at `harmonize.corpus.PERCENTILES`.
        at: (N,).

    Returns:
        (N,), zero outside the percentiles; all zero for a constant scan.
    """
    ranks = np.asarray(PERCENTILES) / 100
    places = np.unique(percentile_values)
    if len(places) < 2:
        return np.zeros(len(at))
    highest = ranks[np.searchsorted(percentile_values, places, side="right") - 1]
    slopes = PchipInterpolator(places, highest, extrapolate=False).derivative()(at)
    return np.nan_to_num(slopes, nan=0.0)


def _draw_densities(axis: Axes, scans: list[NDArray[np.float64]]) -> None:
    if not scans:
        axis.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axis.transAxes, color="#777777")
        axis.set_xticks([])
        return
    ends = np.array([(values[0], values[-1]) for values in scans])
    low, high = np.percentile(ends[:, 0], TRIM[0]), np.percentile(ends[:, 1], TRIM[1])
    at = np.linspace(low, high if high > low else low + 1, POINTS)
    curves = np.array([density(values, at) for values in _evenly(scans, MAX_AVERAGED)])
    for curve in _evenly(list(curves), MAX_LINES):
        axis.plot(at, curve, color=INK, alpha=0.35, linewidth=0.8)
    mean = curves.mean(axis=0)
    axis.plot(at, mean, color=INK, linewidth=1.8)
    axis.set_xlim(at[0], at[-1])
    top = max(1.15 * float(mean.max()), float(np.percentile(curves.max(axis=1), TALL)))
    axis.set_ylim(0, 1.05 * top if top > 0 else 1)


def _evenly(items: list[NDArray[np.float64]], count: int) -> list[NDArray[np.float64]]:
    if len(items) <= count:
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, count).astype(int)]
