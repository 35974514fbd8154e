"""Make the pictures of docs/images that show what the programs do, from phantoms alone.

    python .ci/pictures.py CORPUS REPORT --out docs/images

CORPUS is that of docs/getting-started.md, REPORT the `report.html` of the cross-validation in docs/benchmarks.md, which
Chromium shows.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from harmonize import phantom, sources
from harmonize.corpus import Corpus, read_volume
from harmonize.pipeline import harmonize_scan
from harmonize.settings import Settings
from headspark.masking import draw_mask

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, TALL = 1100, 1400
BLOCK, RATIO = 16, 0.75


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    save(tilted_ct(), given.out / "tilted-ct.png")
    save(masked_head(Corpus.open(given.corpus)), given.out / "masked-head.png")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no picture of {given.report}: install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 1
    photograph(browser, given.report, given.out / "report.png")
    return 0


def tilted_ct() -> Figure:
    """A CT of a tilted gantry: its slices as a stack, and what the corpus holds of it."""
    with tempfile.TemporaryDirectory() as name:
        (root,) = phantom.write("tcia", Path(name), scans=3, size=128, seed=0)
        found = [ref for ref in sources.references("tcia", root) if ref.modality == "CT" and ref.rejection is None]
        scans = [sources.get("tcia").load(ref) for ref in found]
    scan = max(scans, key=lambda one: shear(one.affine))
    made = harmonize_scan(scan, Settings()).volume
    figure = Figure(figsize=(9, 4), layout="constrained")
    before, after = figure.subplots(1, 2)
    raw_XYZ = np.asarray(scan.voxels_XYZ)
    steps = np.linalg.norm(scan.affine[:3, :3], axis=0)
    show(before, raw_XYZ[raw_XYZ.shape[0] // 2, ::-1], steps[2] / steps[1], "slices as they lie in the files")
    values_XYZ = made.values()
    show(after, values_XYZ[values_XYZ.shape[0] // 2], 1.0, "the same scan in the corpus")
    return figure


def shear(affine: NDArray[np.float64]) -> float:
    """How far the axes of a grid are from standing upright on each other."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def show(axes: object, plane_AB: NDArray[np.generic], stretch: float, title: str) -> None:
    """A plane in a window of brain and bone, its second axis up."""
    image = np.clip((np.asarray(plane_AB, dtype=np.float32).T[::-1] + 100) / 400, 0, 1)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=stretch)  # type: ignore[attr-defined]
    axes.set_title(title, fontsize=11)  # type: ignore[attr-defined]
    axes.set_axis_off()  # type: ignore[attr-defined]


def masked_head(corpus: Corpus) -> Figure:
    """A T1w whole, and with three quarters of its blocks hidden: what an encoder is given."""
    row = next(row for row in corpus.scans.to_dict("records") if row["modality"] == "T1w")
    values_XYZ = read_volume(corpus.path / row["image_file_name"]).values()
    edges = [edge // BLOCK * BLOCK for edge in values_XYZ.shape]
    values_XYZ = values_XYZ[: edges[0], : edges[1], : edges[2]]
    low, high = np.percentile(values_XYZ, (1, 99.5))
    grid = (edges[0] // BLOCK, edges[1] // BLOCK, edges[2] // BLOCK)
    mask_dhw = draw_mask(1, grid, RATIO, torch.Generator().manual_seed(3))[0].numpy()
    mask_XYZ = mask_dhw.repeat(BLOCK, 0).repeat(BLOCK, 1).repeat(BLOCK, 2)
    figure = Figure(figsize=(9, 5), layout="constrained")
    for line, hidden in zip(figure.subplots(2, 3), (False, True), strict=True):
        for axis, axes in enumerate(line):
            at = edges[axis] // 2
            plane, seen = values_XYZ.take(at, axis), mask_XYZ.take(at, axis)
            shown = np.ma.masked_where(~seen, plane) if hidden else plane
            axes.set_facecolor("#31525b")
            axes.imshow(shown.T[::-1], cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel("what is seen" if hidden else "the head", fontsize=11)
    return figure


def photograph(browser: str, page: Path, out: Path) -> None:
    """The first screen of a page."""
    with tempfile.TemporaryDirectory() as name:
        shot = Path(name) / "shot.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}",
             f"--window-size={WIDE},{TALL}", page.resolve().as_uri()],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        small(Image.open(shot).convert("RGB")).save(out, optimize=True)


def save(figure: Figure, out: Path) -> None:
    """A picture of few colours."""
    with tempfile.TemporaryDirectory() as name:
        figure.savefig(Path(name) / "figure.png", dpi=100)
        small(Image.open(Path(name) / "figure.png").convert("RGB")).save(out, optimize=True)


def small(image: Image.Image) -> Image.Image:
    """The same with 128 colours."""
    return image.quantize(128, dither=Image.Dither.NONE)


if __name__ == "__main__":
    sys.exit(main())
