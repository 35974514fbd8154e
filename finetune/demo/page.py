"""Draw the demo's page: scans before and after, histograms, curves, a reconstruction, the ROC, one prediction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune.evaluation import evaluate, read
from finetune.report import figure_curves
from finetune.report.charts import figure_roc
from finetune.tasks.aneurysm import competition_score
from harmonize import sources
from harmonize.corpus import Corpus, StoredVolume, read_volume
from harmonize.errors import Rejection
from harmonize.identity import raw_hash
from harmonize.labels import LABELS
from harmonize.page import Page
from harmonize.scan import HU, Scan
from headspark.channels import NAMED_WINDOWS
from headspark.pretraining.pictures import figure_losses

if TYPE_CHECKING:
    from finetune.demo import Demo

RAW, HARMONIZED = "#b5651d", "#0b6e99"
VIEW_NAMES = ("axial", "coronal", "sagittal")


def write_report(
    demo: Demo, *, series: str, prediction: Mapping[str, float], seconds: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Write ``report.html`` from the files of a finished demo; return the headline numbers as (name, value)."""
    corpora = [Corpus.open(demo.corpus), Corpus.open(demo.corpus_rsna)]
    metrics = _lines(demo.run / "metrics.jsonl")
    predictions = pd.read_parquet(demo.model / "predictions.parquet")
    score = competition_score(_targets(predictions), predictions[list(LABELS)].to_numpy())
    losses = metrics.dropna(subset=["loss"])["loss"].to_numpy()
    headline = [
        ("scans harmonized", str(sum(len(corpus.scans) for corpus in corpora))),
        ("scans refused, each with its reason", str(sum(len(corpus.rejected) for corpus in corpora))),
        ("masked loss, first and last", f"{losses[0]:.3f} → {losses[-1]:.3f}"),
        ("AUC, aneurysm present (validation fold)", f"{score.means['auc_present']:.3f}"),
        ("competition score (validation fold)", f"{score.score:.3f}"),
        ("seconds: pretraining, fine-tuning", f"{seconds.get('pretrain', 0):.0f}, {seconds.get('finetune', 0):.0f}"),
    ]
    page = Page(
        "headspark demo",
        lead="Synthetic heads in the raw formats of four public sources, made into one corpus, used to pretrain an "
        "encoder without labels, and to fine-tune it for aneurysm detection. Every number and picture below is an "
        "output of this run.",
    )
    page.tiles([(value, name) for name, value in headline])
    page.heading("Scans before and after harmonization")
    page.text(
        "Left: the voxels as they lie in the raw files, in the scanner's own order and spacing. Right: the same scan "
        "in the corpus: RAS, isotropic, CT in Hounsfield units (brain window), MRI normalised."
    )
    histograms: dict[str, tuple[NDArray[np.float32], NDArray[np.float32], str]] = {}
    for corpus, names in ((corpora[0], demo.sources), (corpora[1], ("rsna",))):
        for name in names:
            pair = _first_pair(demo.raw / name, name, corpus)
            if pair is None:
                page.text(f"{name}: no scan was accepted.")
                continue
            scan, volume, row = pair
            page.figure(
                figure_before_after(scan, volume),
                caption=f"{name}, {row['modality']}: raw {_by(row['raw_shape'])} voxels at "
                f"{_mm(row['raw_spacing'])} mm, corpus {_by(row['shape'])} voxels at {_mm(row['spacing'])} mm.",
            )
            histograms[f"{name} ({row['modality']})"] = (
                _finite(scan.voxels_XYZ),
                _finite(volume.values()),
                row["unit"],
            )
    page.heading("Intensities before and after")
    page.figure(
        figure_histograms(histograms),
        caption="The scans above. CT keeps its Hounsfield units; MRI leaves the scanner's arbitrary units.",
    )
    refused = pd.concat([corpus.rejected for corpus in corpora])
    if len(refused):
        page.heading("Refused")
        counts = refused.groupby(["source", "reason"]).size().reset_index(name="scans")
        page.table(["source", "reason", "scans"], counts.to_numpy().tolist())
    page.heading("Pretraining")
    page.figure(
        figure_losses(metrics.to_dict("records")), caption="Mean squared error on masked voxels, by optimizer step."
    )
    pictures = sorted((demo.run / "pictures").glob("step_*.png"))
    if pictures:
        page.picture(
            pictures[-1].read_bytes(),
            caption=f"Original, what the encoder saw, and its reconstruction ({pictures[-1].stem.replace('_', ' ')}).",
        )
    page.heading("Fine-tuning in stages")
    page.figure(
        figure_curves(_lines(demo.model / "metrics.jsonl").to_dict("records")),
        caption="Training loss and validation AUC; the shaded spans are the stages.",
    )
    page.figure(
        figure_roc(evaluate(read(demo.model))),
        caption=f"Validation fold, {len(predictions)} series: a small set, so the curve is coarse.",
    )
    page.heading("One prediction")
    page.figure(
        figure_prediction(corpora[1], series, prediction),
        caption=f"Series {series}: the slice through a labelled place if there is one, and the 14 probabilities; "
        "filled bars are true labels.",
    )
    page.table(["label", "probability"], [[label, prediction[label]] for label in LABELS])
    page.write(demo.report)
    return headline


def figure_before_after(scan: Scan, volume: StoredVolume) -> Figure:
    """Middle planes of the raw voxels (left three) and of the corpus volume (right three)."""
    figure = Figure(figsize=(13, 2.7), layout="constrained")
    axes = figure.subplots(1, 6)
    raw_spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    _planes(axes[:3], np.asarray(scan.voxels_XYZ), raw_spacing, scan.unit, ("axes 0, 1", "axes 0, 2", "axes 1, 2"))
    _planes(axes[3:], volume.values(), spacing, scan.unit, VIEW_NAMES)
    return figure


def figure_histograms(pairs: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32], str]]) -> Figure:
    """One column a scan: raw values above, corpus values below."""
    figure = Figure(figsize=(3.1 * max(len(pairs), 1), 4.2), layout="constrained")
    axes = figure.subplots(2, max(len(pairs), 1), squeeze=False)
    for column, (name, (before, after, unit)) in enumerate(pairs.items()):
        axes[0, column].set_title(name, fontsize=10)
        for row, (values, colour, label) in enumerate(((before, RAW, "raw"), (after, HARMONIZED, unit))):
            low, high = np.percentile(values, [0.1, 99.9])
            axes[row, column].hist(values, bins=80, range=(low, max(high, low + 1e-6)), color=colour, log=True)
            axes[row, column].set_xlabel(label, fontsize=9)
            axes[row, column].tick_params(labelsize=8)
    return figure


def figure_prediction(corpus: Corpus, scan_id: str, prediction: Mapping[str, float]) -> Figure:
    """Three planes through a labelled point (else the middle), beside the 14 probabilities."""
    row = corpus.scans.set_index("scan_id").loc[scan_id]
    volume = read_volume(corpus.path / row["image_file_name"], shape=list(row["shape"]))
    points = row["points"] if row["points"] is not None else []
    centre = np.asarray(volume.stored_XYZ.shape) // 2
    if len(points):
        place = np.array([points[0]["x"], points[0]["y"], points[0]["z"], 1.0])
        centre = np.clip(np.rint(np.linalg.inv(volume.affine) @ place)[:3].astype(int), 0, 2 * centre - 1)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.3))
    axes = [figure.add_subplot(grid[0, column]) for column in range(3)]
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    _planes(axes, volume.values(), spacing, str(row["unit"]), VIEW_NAMES, centre, mark=bool(len(points)))
    bars = figure.add_subplot(grid[0, 3])
    truth = dict(zip(LABELS, row["labels"], strict=True))
    for place_on_axis, label in enumerate(reversed(LABELS)):
        bars.barh(place_on_axis, prediction[label], color=HARMONIZED if truth[label] else "none", edgecolor=HARMONIZED)
    bars.set_yticks(range(len(LABELS)), [short_name(label) for label in reversed(LABELS)], fontsize=8)
    bars.set(xlim=(0, 1), xlabel="probability")
    return figure


def short_name(label: str) -> str:
    """A label's name for a narrow place.

    Example:
        >>> short_name("Left Posterior Communicating Artery")
        'Left Posterior Comm.'
    """
    return label.replace("Internal Carotid Artery", "ICA").replace("Communicating", "Comm.").removesuffix(" Artery")


def _planes(
    axes: Iterable[Axes],
    voxels: NDArray[Any],
    spacing: NDArray[np.float64],
    unit: str,
    titles: tuple[str, str, str],
    centre: NDArray[np.int64] | None = None,
    *,
    mark: bool = False,
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
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        if mark:
            axis.plot(*centre[kept], "o", markersize=14, fillstyle="none", color="#ffb000")


def _first_pair(root: Path, name: str, corpus: Corpus) -> tuple[Scan, StoredVolume, Mapping[Any, Any]] | None:
    """The first accepted scan of a source, raw and harmonized."""
    module = sources.get(name)
    rows = corpus.scans[corpus.scans["source"] == name].set_index("raw_hash")
    for ref in sources.references(name, root):
        digest = raw_hash(ref, salt="")
        if digest not in rows.index:
            continue
        try:
            scan = module.load(ref)
        except Rejection:
            continue
        row = rows.loc[[digest]].to_dict("records")[0]
        return scan, read_volume(corpus.path / row["image_file_name"], shape=row["shape"]), row
    return None


def _finite(voxels: NDArray[np.generic]) -> NDArray[np.float32]:
    flat = np.asarray(voxels, dtype=np.float32).ravel()[::7]
    return flat[np.isfinite(flat)]


def _targets(predictions: pd.DataFrame) -> NDArray[np.int64]:
    return predictions[[f"target: {label}" for label in LABELS]].to_numpy().astype(np.int64)


def _lines(path: Path) -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines() if line.strip()])


def _by(values: Iterable[float]) -> str:
    return " x ".join(str(int(value)) for value in values)


def _mm(values: Iterable[float]) -> str:
    return " x ".join(f"{float(value):.2f}" for value in values)
