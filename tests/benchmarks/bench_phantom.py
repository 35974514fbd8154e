"""Whether the phantoms of RSNA can be solved by what is not their pictures, and whether they can be solved at all.

    python tests/benchmarks/bench_phantom.py --series 600 --json phantom.json

Presence of an aneurysm is guessed from (a) the modality, (b) the geometry and the hospital, (c) the intensities within
each modality, (d) blobs in the mask of all arteries, sacs among them; and (e) by an observer that knows where a sac is
or would be, and how large. ROC areas are of folds that were not learned from, and only series of one
fold are ranked. Each series is scanned as its hospital does it, in a box around the circle of Willis. What was found
of a series is kept in FILE.DIFFICULTY.rows, below a line that says what it is of, so that a run that was stopped goes
on; rows of another seed, size or phantom are refused.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_harmonize import describe_machine
from kept_rows import resumed, version_of
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import harmonize.phantom
from harmonize.errors import WrongUse
from harmonize.files import write_json
from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, Grid, place_of, scan_head
from harmonize.phantom.anatomy import draw_pose, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna.grids import draw_grid, hospital_grid, would_be
from harmonize.phantom.rsna.images import CONTRAST_OF, hard_look
from harmonize.phantom.rsna.options import TreeOptions
from harmonize.phantom.rsna.plan import SeriesPlan, planned
from harmonize.phantom.rsna.prevalence import MODALITIES
from harmonize.phantom.slabs import scan_slabs
from harmonize.phantom.vessels import DIFFICULTIES, Aneurysm, Difficulty, Flow, VesselTree
from harmonize.phantom.vessels.tubes import distances
from harmonize.terminal import say

SHORTCUT_BOUNDS, OBSERVER_BOUND = (0.45, 0.60), 0.90

SIZE = 160
LEAST = 64
"""With fewer series some modality has too few of a kind to be divided into folds."""
HALF_BOX_MM = (46.0, 46.0, 36.0)
"""Half the box that is looked at: to the right, to the front, up."""
HEAD_MM = 2.5
MASK_MM = 1.0
PERCENTILES = (0.5, 2, 5, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9)
BLOB_RADII_MM = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
BALLS_MM = (1.5, 2.0, 3.0, 4.0)
LEAST_PEAK, PEAKS = 0.1, (0.3, 0.4, 0.5)
DARK = ("MRI T2",)
"""Where vessels are darker than what surrounds them."""
RING_MM = (1.0, 4.0)
"""What surrounds a sac lies so far from its wall."""
SPLITS, REPEATS = 5, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What can be said of one series.

    Attributes:
        modality: As ``train.csv`` says it.
        ill: Whether it has an aneurysm.
        geometry: Shape, spacing, field of view, orientation, hospital and layout, in numbers.
        intensities: `PERCENTILES` of its values.
        blobs: What a detector of blobs finds in its arteries; see `blobs_of`.
        contrast: What the observer sees at the places that it knows; their mean.
    """

    modality: str
    ill: bool
    geometry: list[float]
    intensities: list[float]
    blobs: list[float]
    contrast: float


def series_of(count: int, seed: int, difficulty: Difficulty) -> list[SeriesPlan]:
    """The plans of a tree."""
    return [planned(index, seed=seed, options=TreeOptions(difficulty=difficulty)) for index in range(count)]


def grid_of(series: SeriesPlan, size: int) -> Grid:
    """Where the slices of a series lie."""
    if series.difficulty != "easy":
        return hospital_grid(series, size, rng_of(*series.names, "grid"))
    rng = rng_of(*series.names, "series")
    return draw_grid(series, size, float(np.clip(rng.uniform(180, 220) / size, 0.4, 2.0)), rng)


def geometry_of(series: SeriesPlan, grid: Grid) -> list[float]:
    """All that is known of a series without its voxels, but its modality."""
    directions = grid.affine[:3, :3] / np.asarray(grid.spacing)
    extent = np.abs(grid.affine[:3, :3]) @ np.asarray(grid.shape)
    middle = grid.world((np.asarray(grid.shape) - 1) / 2)
    hospital = [float(series.hospital == name) for name in ("north", "east", "south", "west")]
    layout = [float(series.multiframe), float(series.segmented)]
    return [*grid.shape, *grid.spacing, *extent, *middle, *directions.ravel(), *hospital, *layout]


def look_at(series: SeriesPlan, size: int = SIZE) -> Seen:
    """Scan a series around its circle of Willis, and say what is seen."""
    grid = grid_of(series, size)
    pose = draw_pose(*series.names)
    box = around(grid, place_of(pose, CIRCLE_OF_WILLIS_MM))
    head = make_head(*series.names, resolution_mm=HEAD_MM, locations=series.locations, difficulty=series.difficulty)
    if series.difficulty != "easy":
        contrast, artefacts = hard_look(series, head, grid)
        planes = scan_slabs(head, box, contrast, artefacts, series.names, grain=series.protocol.grain)
        image_XYZ = np.stack(list(planes), axis=2)
    else:
        day = CONTRASTS[CONTRAST_OF[series.modality]].varied(rng_of(*series.names, "look"))
        image_XYZ = scan_head(head, box, day, rng_of(*series.names, "noise"))
    sites = would_be(series, pose)
    return Seen(
        modality=series.modality,
        ill=series.ill,
        geometry=geometry_of(series, grid),
        intensities=np.percentile(image_XYZ, PERCENTILES).tolist(),
        blobs=blobs_of(head.vessels, place_of(pose, CIRCLE_OF_WILLIS_MM)),
        contrast=float(np.mean([contrast_at(image_XYZ, box, sac, sites, series.modality) for sac in sites.aneurysms])),
    )


def around(grid: Grid, centre_mm: NDArray[np.float64]) -> Grid:
    """The part of a grid that shows the box of `HALF_BOX_MM` around a place."""
    half = np.asarray(HALF_BOX_MM)
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3, indexing="ij")).reshape(3, -1).T
    corners_N3 = np.array([grid.index(centre_mm + sign * half) for sign in signs])
    low = np.clip(np.floor(corners_N3.min(axis=0)), 0, np.asarray(grid.shape) - 2).astype(int)
    high = np.clip(np.ceil(corners_N3.max(axis=0)) + 1, low + 2, grid.shape).astype(int)
    (x, y, z), (a, b, c) = low.tolist(), (high - low).tolist()
    return Grid(shape=(a, b, c), affine=grid.affine, first=(x, y, z))


def blobs_of(vessels: VesselTree, centre_mm: NDArray[np.float64]) -> list[float]:
    """What a detector of blobs finds in the mask of all arteries, sacs among them; it cannot see anything else.

    Of what is left of the mask when it is eroded, at each of `BLOB_RADII_MM`, volume in mm³ and number of pieces. Of
    the Laplacian of Gaussians that answers most to a ball of each of `BALLS_MM`, the six highest peaks, and how many
    are above `PEAKS`.
    """
    half = np.asarray(HALF_BOX_MM)
    affine = np.diag([MASK_MM, MASK_MM, MASK_MM, 1.0])
    affine[:3, 3] = centre_mm - half
    shape = [int(2 * reach / MASK_MM) for reach in half]
    arteries = [v.tube for v in vessels.vessels if v.flow in (Flow.ARTERY, Flow.SAC)]
    distance_XYZ, _ = distances(arteries, affine, shape, MASK_MM)
    depth_XYZ = ndimage.distance_transform_edt(distance_XYZ < 0, sampling=MASK_MM)
    found: list[float] = [float(depth_XYZ.max())]
    for radius in BLOB_RADII_MM:
        left = depth_XYZ >= radius
        found += [float(np.log1p(left.sum() * MASK_MM**3)), float(ndimage.label(left)[1])]
    mask_XYZ = np.clip(0.5 - distance_XYZ / MASK_MM, 0, 1)
    for radius in BALLS_MM:
        sigma = radius / np.sqrt(3) / MASK_MM
        answer_XYZ = -ndimage.gaussian_laplace(mask_XYZ, sigma, truncate=3.0) * sigma**2
        peaks = answer_XYZ[(ndimage.maximum_filter(answer_XYZ, 5) == answer_XYZ) & (answer_XYZ > LEAST_PEAK)]
        highest = np.sort(peaks)[::-1][:6]
        found += [*np.pad(highest, (0, 6 - len(highest))).tolist(), *(float((peaks > least).sum()) for least in PEAKS)]
    return found


def contrast_at(image_XYZ: NDArray[np.float32], box: Grid, sac: Aneurysm, sites: VesselTree, modality: str) -> float:
    """How far a sac, or where it would be, stands out: mean inside less median around, in deviations of what is around.

    Voxels count by how deep in the sac they lie. Vessels are left out, for the observer knows them too.
    """
    half = sac.diameter_mm / 2 + RING_MM[1]
    reach = half * np.linalg.norm(np.linalg.inv(box.affine[:3, :3]), axis=1)
    middle = box.index(sac.centre_mm)
    low = np.clip(np.floor(middle - reach), box.first, np.add(box.first, box.shape) - 1).astype(int)
    high = np.clip(np.ceil(middle + reach) + 1, low + 1, np.add(box.first, box.shape)).astype(int)
    (x, y, z), (a, b, c) = low.tolist(), (high - low).tolist()
    patch = image_XYZ[tuple(slice(s - f, e - f) for s, e, f in zip(low, high, box.first, strict=True))]
    own = [v.tube for v in sites.vessels if v.flow is Flow.SAC]
    others = [v.tube for v in sites.vessels if v.flow in (Flow.ARTERY, Flow.VEIN)]
    to_sac, _ = distances(own, box.affine, (a, b, c), half, (x, y, z))
    to_others, _ = distances(others, box.affine, (a, b, c), half, (x, y, z))
    weights = np.maximum(float(np.mean(box.spacing)) / 2 - to_sac, 0) * (to_others > 0)
    if not weights.any():
        weights = (to_sac == to_sac.min()).astype(np.float32)
    ring = (to_sac > RING_MM[0]) & (to_sac < RING_MM[1]) & (to_others > RING_MM[0])
    if ring.sum() < 8:
        ring = to_others > 0
    spread = float(np.std(patch[ring])) + 1e-6
    difference = float(np.average(patch, weights=weights) - np.median(patch[ring])) / spread
    return -difference if modality in DARK else difference


def area(features_NF: NDArray[np.float64], ill_N: NDArray[np.bool_], strata_N: Sequence[str], model: str) -> float:
    """Mean ROC area of the folds of a model that learned from the other folds."""
    keys = [f"{stratum} {ill}" for stratum, ill in zip(strata_N, ill_N, strict=True)]
    areas = []
    splits = min(SPLITS, *Counter(keys).values())
    folds = RepeatedStratifiedKFold(n_splits=splits, n_repeats=REPEATS, random_state=0)
    for train, test in folds.split(features_NF, keys):
        fitted = MODELS[model]().fit(features_NF[train], ill_N[train])
        areas.append(roc_auc_score(ill_N[test], fitted.predict_proba(features_NF[test])[:, 1]))
    return float(np.mean(areas))


MODELS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
    "forest": lambda: RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=0),
}


def within(rows: Sequence[Seen], score: Callable[[Sequence[Seen]], float]) -> float:
    """A score inside each modality, the mean over modalities by their numbers of series."""
    parts = [[row for row in rows if row.modality == modality] for modality in MODALITIES]
    return float(np.average([score(part) for part in parts if part], weights=[len(part) for part in parts if part]))


def areas_of(rows: Sequence[Seen], models: Sequence[str] = ("logistic", "forest")) -> dict[str, float]:
    """ROC areas of all observers, over all series and within modality."""
    modality_NF = np.array([[float(row.modality == name) for name in MODALITIES] for row in rows])
    tables = {
        "geometry": lambda some: np.array([row.geometry for row in some]),
        "intensities": lambda some: np.array([row.intensities for row in some]),
        "blobs": lambda some: np.array([row.blobs for row in some]),
    }
    found = {"modality": area(modality_NF, ill_of(rows), strata(rows), "logistic")}
    for name, table in tables.items():
        for model in models:
            if name != "intensities":
                found[f"{name}, {model}"] = area(table(rows), ill_of(rows), strata(rows), model)
            found[f"{name} within modality, {model}"] = within(
                rows, lambda some, table=table, model=model: area(table(some), ill_of(some), strata(some), model)
            )
    found["observer within modality"] = within(rows, known)
    for modality in MODALITIES:
        found[f"observer, {modality}"] = known([row for row in rows if row.modality == modality])
    return found


def known(rows: Sequence[Seen]) -> float:
    """ROC area of the observer that knows the places."""
    return float(roc_auc_score(ill_of(rows), [row.contrast for row in rows]))


def ill_of(rows: Sequence[Seen]) -> NDArray[np.bool_]:
    """Which series have an aneurysm."""
    return np.array([row.ill for row in rows])


def strata(rows: Sequence[Seen]) -> list[str]:
    """What folds get their share of, besides illness."""
    return [row.modality for row in rows]


def collect(series: Sequence[SeriesPlan], kept: Path | None, size: int = SIZE) -> list[Seen]:
    """Look at all series; those that `kept` has are not looked at again.

    Raises:
        WrongUse: `kept` has rows of something else.
    """
    lines = [] if kept is None else resumed(kept, rows_of(series[0], size))
    rows = [Seen(**json.loads(line)) for line in lines[: len(series)]]
    for one in series[len(rows) :]:
        rows.append(look_at(one, size))
        if kept is not None:
            with kept.open("a") as stream:
                stream.write(json.dumps(asdict(rows[-1])) + "\n")
    return rows


def rows_of(series: SeriesPlan, size: int) -> dict[str, object]:
    """What the rows of a series and its like are of; other rows say nothing of them."""
    files = [*Path(harmonize.phantom.__file__).parent.rglob("*.py"), Path(__file__)]
    return {"seed": series.names[0], "size": size, "difficulty": series.difficulty, **version_of(files)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all difficulties, and say whether the medium and the hard one keep their bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--difficulties", nargs="+", default=[*DIFFICULTIES], choices=DIFFICULTIES)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    if given.series < LEAST:
        parser.error(f"--series {given.series}: ask for at least {LEAST}, or some modality has too few for its folds")
    found: dict[str, Any] = {}
    for difficulty in given.difficulties:
        start = time.perf_counter()
        kept = None if given.json is None else given.json.with_suffix(f".{difficulty}.rows")
        try:
            rows = collect(series_of(given.series, given.seed, difficulty), kept, given.size)
        except WrongUse as error:
            parser.error(str(error))
        found[difficulty] = {name: round(value, 3) for name, value in areas_of(rows).items()}
        say(f"{difficulty}: {len(rows)} series in {time.perf_counter() - start:.0f} s")
        for name, value in found[difficulty].items():
            say(f"  {name:45} {value:.3f}")
    broken = [f"{difficulty}: {fault}" for difficulty, areas in found.items() for fault in faults(areas, difficulty)]
    for line in broken:
        say(line)
    if given.json is not None:
        about = {"series": given.series, "seed": given.seed, "size": given.size, "machine": describe_machine()}
        write_json(given.json, {**about, "areas": found})
    return 1 if broken else 0


def faults(areas: dict[str, float], difficulty: Difficulty = "hard") -> list[str]:
    """Which areas are out of their bounds: an easy phantom has none, and blobs may show the sacs of a medium one."""
    low, high = SHORTCUT_BOUNDS
    told: list[str] = []
    if difficulty == "easy":
        return told
    for name, value in areas.items():
        if difficulty == "medium" and name.startswith("blobs"):
            continue
        observes = name.startswith("observer")
        if observes and name == "observer within modality" and value <= OBSERVER_BOUND:
            told.append(f"{name}: {value:.3f}, not above {OBSERVER_BOUND:g}")
        if not observes and not low <= value <= high:
            told.append(f"{name}: {value:.3f}, not in {low:g} to {high:g}")
    return told


if __name__ == "__main__":
    raise SystemExit(main())
