"""Pictures of a pretraining run: its losses by step, and scans beside what was hidden of them and filled in."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harmonize.figures import take_literally
from harmonize.files import atomic_path
from headspark.run.curves import has_number, plot_metric

PANEL_INCH = 2.4
DPI = 110
TERMS = {
    "vessel_distance": "nearness of vessels",
    "val_vessel_distance": "the same, held out",
    "agreement": "agreement of two maskings",
    "embedding_std": "spread of embeddings",
}
"""What metrics.jsonl may have beside the losses, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Triptych:
    """One row: axial slices of one channel, axes (X, Y) in RAS.

    Attributes:
        title: What it shows.
        original_XY: The truth.
        mask_XY: bool, what the encoder saw.
        reconstruction_XY: The truth where it saw, its prediction elsewhere.
    """

    title: str
    original_XY: NDArray[np.float32]
    mask_XY: NDArray[np.bool_]
    reconstruction_XY: NDArray[np.float32]


def write_triptychs(path: Path, rows: Sequence[Triptych], *, title: str) -> None:
    """Write a PNG with a row of three panels for each triptych, all in the gray scale of its original."""
    figure = Figure(figsize=(3 * PANEL_INCH, len(rows) * PANEL_INCH + 0.4), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for line, row in zip(panels, rows, strict=True):
        low, high = (float(edge) for edge in np.percentile(row.original_XY, (0.5, 99.5)))
        hidden_XY = np.ma.masked_where(~row.mask_XY, row.original_XY)
        shown = (("original", row.original_XY), ("visible", hidden_XY), ("reconstruction", row.reconstruction_XY))
        for axes, (name, slice_XY) in zip(line, shown, strict=True):
            axes.set_facecolor("0.35")
            # Columns run to the right of the picture and up: show R to the left and A at the top, as radiologists do.
            axes.imshow(slice_XY.T[::-1, ::-1], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name if line is panels[0] else "", fontsize=9)
        line[0].set_ylabel(row.title, fontsize=7)
    write_figure(path, figure)


def figure_losses(metrics: Sequence[Mapping[Any, Any]]) -> Figure:
    """Training and held-out loss of a pretraining run by step, its other terms if it has any, and its learning rate.

    Args:
        metrics: The lines of metrics.jsonl.
    """
    others = [name for name in TERMS if any(has_number(line, name) for line in metrics)]
    figure = Figure(figsize=(12 if others else 8, 3), dpi=DPI, layout="constrained")
    losses, *terms, rates = figure.subplots(1, 3 if others else 2)
    for axes in terms:
        for name in others:
            plot_metric(axes, metrics, name, label=TERMS[name], style="o-" if name.startswith("val_") else "-")
        axes.set(xlabel="step", ylabel="other terms, unweighted")
        axes.legend()
    plot_metric(losses, metrics, "loss", label="training")
    plot_metric(losses, metrics, "val_loss", label="held out, fixed masks", style="o-")
    plot_metric(rates, metrics, "lr", label="learning rate")
    losses.set(xlabel="step", ylabel="loss" if others else "squared error on hidden voxels")
    losses.legend()
    rates.set(xlabel="step", ylabel="learning rate")
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(figure))


def png(figure: Figure) -> bytes:
    """A figure as PNG, without a date or version in it."""
    stream = io.BytesIO()
    FigureCanvasAgg(take_literally(figure)).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
