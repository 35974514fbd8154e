"""The scans of a corpus as training sees them: files, foreground, weight, and which subjects are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.pipeline import WINDOWED
from harmonize.scan import AIR_HU, HU
from harmonize.settings import PERCENTILES
from harmonize.voxels.intensity import CT_WINDOWS
from headspark.channels import check_unit
from headspark.data.config import DataConfig
from headspark.data.crops import Box
from headspark.data.split import held_out
from headspark.vessels import look_of

LABELS = ("source", "modality", "sex")
"""Columns that a probe may ask for."""

_OUTSIDE = {HU: float(AIR_HU), WINDOWED: 0.0}
ANATOMY = "anatomy"
"""The kind of mask that says where the head is and what was defaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanItem:
    """One scan of the corpus.

    Attributes:
        scan_id: Its name.
        source: Registry name.
        subject: ``source/subject``: unique over the sources.
        modality: As in the manifest.
        unit: ``HU``, or another for normalised intensities.
        image: Its file.
        mask: Its anatomy mask, or None.
        sha256: Of the image file.
        mask_sha256: Of the mask file; empty if there is none.
        shape: Voxels.
        spacing: Of them, mm.
        box: Foreground, half open, voxels.
        fill: Real value that stands for outside: air, or the darkest of the foreground.
        channels: Values of a voxel: 1, or the windows that were baked in.
        labels: The manifest's columns that a probe may ask for.
    """

    scan_id: str
    source: str
    subject: str
    modality: str
    unit: str
    image: Path
    mask: Path | None
    sha256: str
    mask_sha256: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    box: Box
    fill: float
    channels: int
    labels: Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """All scans that take part, and which of them are trained on.

    Attributes:
        scans: In the manifest's order.
        train: Indices into `scans`.
        val: Indices into `scans`; subjects other than those of `train`.
        weights: How often each scan of `train` is drawn, relative.
    """

    scans: tuple[ScanItem, ...]
    train: tuple[int, ...]
    val: tuple[int, ...]
    weights: tuple[float, ...]


def read_cohort(corpus: Corpus, config: DataConfig) -> Cohort:
    """The scans of a corpus, split by subject; scans of weight 0 are left out of both parts.

    Raises:
        UserError: There is nothing to train on, or intensities that no network input can be made of.
    """
    items = [scan_item(corpus.path, row) for row in corpus.scans.to_dict("records")]
    items = [item for item in items if scan_weight(item, config.weights) > 0]
    if not items:
        raise UserError(f"{corpus.path}: no scan to train on; see `harmonize verify` and data.weights")
    for unit in sorted({item.unit for item in items}):
        check_unit(unit, config.windows)
    out = held_out([item.subject for item in items], share=config.val_share, seed=config.val_seed)
    train = tuple(index for index, item in enumerate(items) if item.subject not in out)
    val = tuple(index for index, item in enumerate(items) if item.subject in out)
    return Cohort(
        scans=tuple(items),
        train=train,
        val=val,
        weights=tuple(scan_weight(items[index], config.weights) for index in train),
    )


def scan_weight(item: ScanItem, weights: Mapping[str, float]) -> float:
    """A scan's weight: that of ``source/modality`` if it is named, else source's times modality's.

    Every name is matched whole; what is not named counts 1.
    """
    both = weights.get(f"{item.source}/{item.modality}")
    return weights.get(item.source, 1.0) * weights.get(item.modality, 1.0) if both is None else both


def idle_weights(scans: Sequence[ScanItem], weights: Mapping[str, float]) -> list[str]:
    """Names in `weights` that no scan answers to: a typing error, or a source that this corpus lacks."""
    names = {name for item in scans for name in (item.source, item.modality, f"{item.source}/{item.modality}")}
    return sorted(set(weights) - names)


def without_vessels(scans: Sequence[ScanItem]) -> str | None:
    """One line about scans whose vessels do not stand out, or whose contrast is not known; None if there are none."""
    counts = Counter(item.modality for item in scans if look_of(item.modality) is None)
    if not counts:
        return None
    which = ", ".join(f"{count} {modality}" for modality, count in sorted(counts.items()))
    return (
        f"vessels: not looked for in {counts.total()} of {len(scans)} scans, of contrasts in which they do not stand "
        f"out or that are not known ({which}): masked evenly, and without distances"
    )


def scan_item(folder: Path, row: Mapping[Any, Any]) -> ScanItem:
    """One scan of a corpus's manifest.

    Args:
        folder: Of the corpus.
        row: Of the manifest.
    """
    mask = row["mask_file_name"] if row["mask_kind"] == ANATOMY else None
    x, y, z = (int(size) for size in row["shape"])
    x_mm, y_mm, z_mm = (float(mm) for mm in row["spacing"])
    x0, x1, y0, y1, z0, z1 = (int(edge) for edge in row["foreground_box"])
    return ScanItem(
        scan_id=row["scan_id"],
        source=row["source"],
        subject=f"{row['source']}/{row['subject']}",
        modality=row["modality"],
        unit=row["unit"],
        image=folder / row["image_file_name"],
        mask=None if mask is None else folder / mask,
        sha256=row["sha256"],
        mask_sha256="" if mask is None else row["mask_sha256"],
        shape=(x, y, z),
        spacing=(x_mm, y_mm, z_mm),
        box=(x0, x1, y0, y1, z0, z1),
        fill=_OUTSIDE.get(row["unit"], float(row["intensity_percentiles"][PERCENTILES.index(0.5)])),
        channels=len(CT_WINDOWS) if row["unit"] == WINDOWED else 1,
        labels={name: row[name] if isinstance(row[name], str) else None for name in LABELS},
    )
