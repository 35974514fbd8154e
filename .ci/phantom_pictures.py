"""Make the pictures of docs/phantom.md, from phantoms alone.

python .ci/phantom_pictures.py --out docs/images
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, Grid, place_of
from harmonize.phantom.rsna.images import hard_picture
from harmonize.phantom.rsna.options import TreeOptions
from harmonize.phantom.rsna.plan import SeriesPlan, planned
from harmonize.phantom.rsna.prevalence import MODALITIES
from harmonize.phantom.vessels import Aneurysm

SIZE, SEED, SMALLEST_MM, LARGEST_MM = 224, 8, 3.5, 7.0
MIMICS_SEED = 12
SIDE_MM = 44.0
HALF_MM = np.array([46.0, 46.0, 15.0])
RISE_MM = (0.0, 0.0, 9.0)
"""What is projected lies so far above the circle: less of it is hidden by bone."""
MARKERS = {
    "bulb": ("s", "#62c7d8"), "ectasia": ("D", "#62c7d8"), "infundibulum": ("v", "#e77fb3"), "loop": ("h", "#8fd16f"),
    "kink": ("^", "#8fd16f"), "fenestration": ("P", "#8fd16f"), "vein": ("X", "#b39ddb"), "clip": ("*", "#ff7043"),
    "coil": ("p", "#ff7043"), "blood": ("8", "#ef5350"),
}  # fmt: skip
"""Of each kind but calcium, which lies in most walls."""
WINDOWS = {"CTA": (-50.0, 500.0)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    keep(pairs(), given.out / "phantom-pairs.png")
    keep(mimics(), given.out / "phantom-mimics.png")
    return 0


def pairs() -> Figure:
    """One counterfactual pair of each modality: a whole slice, and where the sac is, with it and without."""
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    for column, modality in zip(figure.subplots(3, len(MODALITIES)).T, MODALITIES, strict=True):
        first, second = pair_of(modality)
        (with_XYZ, grid, sac), (without_XYZ, _, _) = seen(first), seen(second)
        assert sac is not None
        middle = grid.index(sac.centre_mm)
        i, j, k = np.round(middle).astype(int)
        low, high = window(modality, with_XYZ)
        reach = round(SIDE_MM / 2 / grid.spacing[0])
        part = (slice(max(i - reach, 0), i + reach), slice(max(j - reach, 0), j + reach), k)
        show(column[0], with_XYZ[:, :, k], grid, (low, high))
        column[0].set_title(f"{modality}, {first.hospital}", fontsize=11)
        column[0].plot(middle[0], middle[1], "o", mfc="none", mec="#ffc247", ms=13)
        for axes, values_XYZ in zip(column[1:], (with_XYZ, without_XYZ), strict=True):
            show(axes, values_XYZ[part], grid, (low, high))
        column[1].set_title(f"{sac.diameter_mm:.1f} mm, {sac.shape}", fontsize=10)
        column[2].set_title("the same without", fontsize=10)
    return figure


def mimics() -> Figure:
    """Projections of the arteries around the circle in a CTA and in an MRA, and what merely looks like a sac."""
    figure = Figure(figsize=(10, 5.6))
    for axes, modality in zip(figure.subplots(1, 2), ("CTA", "MRA"), strict=True):
        options = TreeOptions(difficulty="hard", hospital="north")
        found = (planned(index, seed=MIMICS_SEED, options=options) for index in range(64))
        series = next(one for one in found if one.modality == modality)
        picture = hard_picture(series, SIZE)
        values_XYZ, grid = np.stack(list(picture.planes), axis=2), picture.grid
        vessels = picture.head.vessels
        centre = place_of(picture.head.pose, CIRCLE_OF_WILLIS_MM, RISE_MM)
        low, high = (np.round(grid.index(centre + sign * HALF_MM)).astype(int) for sign in (-1, 1))
        low, high = np.minimum(low, high).clip(0), np.maximum(low, high)
        box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        show(axes, values_XYZ[box].max(axis=2), grid, window(modality, values_XYZ))
        for kind, (marker, colour) in MARKERS.items():
            here = np.array([grid.index(one.centre_mm) - low for one in vessels.mimics if one.kind == kind])
            inside = here[((here > 0) & (here < high - low)).all(axis=1)] if len(here) else np.zeros((0, 3))
            if len(inside):
                axes.plot(*inside[:, :2].T, marker, mfc="none", mec=colour, mew=1.6, ms=13, label=kind)
        for sac in vessels.aneurysms:
            axes.plot(*(grid.index(sac.centre_mm) - low)[:2], "o", mfc="none", mec="#ffc247", mew=2, ms=20, label="sac")
        axes.set_title(f"{modality}, {series.hospital}", fontsize=11)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.13, wspace=0.02)
    return figure


def pair_of(modality: str) -> tuple[SeriesPlan, SeriesPlan]:
    """The first pair of a modality in axial slices whose sac is neither small nor large."""
    options = TreeOptions(difficulty="hard", counterfactuals=True)
    for index in range(0, 400, 2):
        first, second = (planned(index + place, seed=SEED, options=options) for place in range(2))
        if first.modality != modality or not set(first.protocol.axes) <= {"LPS", "LPI"}:
            continue
        sac = seen(first, only_sac=True)[2]
        if sac is not None and SMALLEST_MM <= sac.diameter_mm <= LARGEST_MM and not sac.thrombosed:
            return first, second
    raise LookupError(modality)


def seen(series: SeriesPlan, *, only_sac: bool = False) -> tuple[NDArray[np.float32], Grid, Aneurysm | None]:
    """Voxels of a series (none of them if only its sac is asked for), where they lie, and its sac."""
    picture = hard_picture(series, SIZE)
    planes = [np.zeros((1, 1), dtype=np.float32)] if only_sac else list(picture.planes)
    return np.stack(planes, axis=2), picture.grid, next(iter(picture.head.vessels.aneurysms), None)


def keep(figure: Figure, out: Path) -> None:
    """A picture of few colours that keeps the rare ones."""
    with tempfile.TemporaryDirectory() as name:
        figure.savefig(Path(name) / "figure.png", dpi=90)
        image = Image.open(Path(name) / "figure.png").convert("RGB")
        image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, optimize=True)


def window(modality: str, values_XYZ: NDArray[np.float32]) -> tuple[float, float]:
    """The values that are shown black and white."""
    low, high = np.percentile(values_XYZ, (1, 99.8))
    return WINDOWS.get(modality, (float(low), float(high)))


def show(axes: Any, plane_XY: NDArray[np.float32], grid: Grid, limits: tuple[float, float]) -> None:
    """A slice as a radiologist sees it."""
    axes.imshow(plane_XY.T, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=grid.spacing[1] / grid.spacing[0])
    axes.set_axis_off()


if __name__ == "__main__":
    sys.exit(main())
