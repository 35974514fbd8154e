"""How many points a box of the arteries loses, as a finder lays it and as the head's outline does; those are drawn.

    harmonize phantom --source rsna --out TEST --scans 520 --size 64 --seed 47 --coverage varied \\
        --difficulty easy --prevalence ILL.csv
    harmonize rsna TEST/rsna --out CORPUS_TEST --spacing 2
    python tests/benchmarks/bench_roi.py --corpus CORPUS_TEST --model ROI --raw TEST/rsna \\
        --json roi.json --page roi.html

`ROI` is what `finetune roi` learned from other heads. ILL.csv says that every series has an aneurysm: a line
``modality,prevalence``, and a line with 1 for each modality. A point is lost where it lies outside of the box, whatever
of the box the field of view holds. The bound is the largest share that would lose so few in one of twenty such tests
(Clopper and Pearson, one-sided, 95 %); points of one head count as if they were of several.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.stats import beta

from finetune.finder import Finder, Found, read_finder
from finetune.finder.survey import fixed_centre_mm, survey_of
from finetune.series import Case
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.corpus import Corpus
from harmonize.files import write_json
from harmonize.page import Page
from harmonize.scan import HU
from headspark.data.decoders import read_corpus_file

EDGES_MM = ((112, 112, 112), (96, 112, 96), (80, 96, 80), (72, 88, 72))
SHOWN_AT = (80.0, 96.0, 80.0)
"""Edges in mm of the box whose lost points are drawn."""
BOUND = 0.95
DRAWN = 12
PLANES = ((2, (0, 1), "axial"), (1, (0, 2), "coronal"), (0, (1, 2), "sagittal"))
COLOURS = {"found": "#5cc3ee", "fixed": "#ff8c42"}
HEIGHTS_MM = (100, 140, 180)
ENHANCED_HU = (-100.0, 500.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point, and how the boxes of its series lie.

    Attributes:
        case: The series.
        label: Of the point.
        offsets: From the middle of each box in mm, by the box.
        groups: What the series is one of, by the name of the grouping.
        laid: How the finder's box was laid.
    """

    case: Case
    label: str
    offsets: dict[str, NDArray[np.float64]]
    groups: dict[str, str]
    laid: str

    def is_lost(self, box: str, edges_mm: Sequence[float]) -> bool:
        """Whether it lies outside of a box."""
        return bool((abs(self.offsets[box]) > np.asarray(edges_mm) / 2).any())

    def reach(self, box: str) -> float:
        """How far out it lies, against the walls of a box of `SHOWN_AT`: more than 1 is lost."""
        return float((abs(self.offsets[box]) / (np.asarray(SHOWN_AT) / 2)).max())


def main() -> None:
    """Measure, write JSON and the page, show."""
    arguments = parse()
    corpus, finder, task = Corpus.open(arguments.corpus), read_finder(arguments.model), AneurysmTask()
    points: list[Point] = []
    found_of: dict[str, Found] = {}
    seconds = []
    cases = [case for case in task.cases(corpus).cases if case.spots]
    for case in cases:
        found, took = find(finder, case)
        found_of[case.scan_id] = found
        seconds.append(took)
        points += points_of(case, found, task, arguments.raw)
    report = {
        "machine": platform.processor() or platform.machine(),
        "series": len(cases),
        "points": len(points),
        "finder": finder.facts,
        "laid": {name: sum(one.laid == name for one in found_of.values()) for name in ("found", "unsure", "outside")},
        "seconds_per_series": float(np.median(seconds)),
        "boxes": [row_of(points, edges) for edges in EDGES_MM],
        "groups": {
            name: groups_of(points, name) for name in ("modality", "slices", "height of the field", "vertex", "neck")
        },
        "distance_mm": {
            box: np.percentile([np.abs(one.offsets[box]).max() for one in points], [50, 95, 100]).round(1).tolist()
            for box in COLOURS
        },
    }
    write_json(arguments.json, report)
    if arguments.page is not None:
        write_page(arguments.page, report, points, found_of, corpus)
    show(report)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="of heads that the finder did not learn from")
    parser.add_argument("--model", type=Path, required=True, help="folder that `finetune roi` wrote")
    parser.add_argument("--raw", type=Path, help="the raw tree, whose headers tell how the slices lie")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--page", type=Path, help="where the lost points are drawn")
    return parser.parse_args()


def find(finder: Finder, case: Case) -> tuple[Found, float]:
    """The box of a series, and the seconds that it took once the series was read."""
    volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
    began = time.perf_counter()
    found = finder.find_in(survey_of(volume, unit=case.unit, foreground_box=case.foreground_box))
    return found, time.perf_counter() - began


def points_of(case: Case, found: Found, task: AneurysmTask, raw: Path | None) -> list[Point]:
    """The points of a series."""
    volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
    origin_mm, extent_mm = volume.affine[:3, 3], (np.array(case.shape) - 1) * case.spacing
    fixed_mm = np.array(fixed_centre_mm(case.spacing, case.foreground_box))
    height = (case.foreground_box[5] - case.foreground_box[4]) * case.spacing[2]
    air_mm = extent_mm[2] - case.foreground_box[5] * case.spacing[2]
    own = []
    for spot in case.spots:
        at_mm = np.array(spot.xyz_mm) - origin_mm
        below = next((edge for edge in HEIGHTS_MM if height < edge), None)
        groups = {
            "modality": case.modality,
            "slices": "not known" if raw is None else slices_of(raw / "series" / case.scan_id),
            "height of the field": f"{HEIGHTS_MM[-1]} mm and more" if below is None else f"less than {below} mm",
            "vertex": "in sight" if air_mm > 4 else "cut",
            "neck": "80 mm and more below the point" if at_mm[2] >= 80 else "less",
        }
        offsets = {"found": at_mm - found.centre_mm, "fixed": at_mm - fixed_mm}
        own.append(Point(case=case, label=task.labels[spot.label], offsets=offsets, groups=groups, laid=found.laid))
    return own


def slices_of(folder: Path) -> str:
    """How the slices of a raw series lie, by its first header."""
    dataset: Any = pydicom.dcmread(min(folder.glob("*.dcm")), stop_before_pixels=True)
    if "SharedFunctionalGroupsSequence" in dataset:
        dataset = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    along, down = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return ("sagittal", "coronal", "axial")[int(np.argmax(abs(np.cross(along, down))))]


def bound_of(lost: int, count: int) -> float:
    """The largest share that loses so few points in one of twenty tests.

    Example:
        >>> round(bound_of(0, 600), 4), round(bound_of(1, 600), 4)
        (0.005, 0.0079)
    """
    return 1.0 if lost == count else float(beta.ppf(BOUND, lost + 1, count - lost))


def row_of(points: Sequence[Point], edges_mm: Sequence[float]) -> dict[str, Any]:
    """What boxes of a size lose."""
    row: dict[str, Any] = {"edges_mm": list(edges_mm), "points": len(points)}
    for box in COLOURS:
        lost = sum(one.is_lost(box, edges_mm) for one in points)
        row[box] = {"lost": lost, "share": lost / len(points), "bound": bound_of(lost, len(points))}
    return row


def groups_of(points: Sequence[Point], name: str) -> dict[str, Any]:
    """What boxes of `SHOWN_AT` lose in each group of series."""
    values = sorted({one.groups[name] for one in points})
    return {value: row_of([one for one in points if one.groups[name] == value], SHOWN_AT) for value in values}


def show(report: dict[str, Any]) -> None:
    """The numbers, for a person."""
    print(f"{report['points']} points of {report['series']} series; boxes laid: {json.dumps(report['laid'])}")
    print(
        f"{'box (mm)':>16} {'found: lost':>12} {'share':>7} {'bound':>7} {'fixed: lost':>12} {'share':>7} {'bound':>7}"
    )
    for row in report["boxes"]:
        cells = [f"{row[box]['lost']:>12} {row[box]['share']:>7.2%} {row[box]['bound']:>7.2%}" for box in COLOURS]
        print(f"{' x '.join(f'{edge:g}' for edge in row['edges_mm']):>16} {' '.join(cells)}")
    for name, groups in report["groups"].items():
        for value, row in groups.items():
            print(f"  {name}, {value}: {row['points']} points, lost {row['found']['lost']} and {row['fixed']['lost']}")


def write_page(
    path: Path, report: dict[str, Any], points: Sequence[Point], found_of: dict[str, Found], corpus: Corpus
) -> None:
    """The numbers, and pictures of what was lost."""
    size = " x ".join(f"{edge:g}" for edge in SHOWN_AT)
    page = Page(
        "Where boxes of the arteries lie",
        lead=f"{report['points']} held-out points of {report['series']} series of every field of view. A point is lost "
        "where it lies outside of the box; the bound holds with 95 %.",
    )
    page.heading("Lost points")
    columns = ["box (mm)", "found: lost", "share", "bound", "fixed: lost", "share", "bound"]
    page.table(columns, [[" x ".join(f"{e:g}" for e in row["edges_mm"]), *cells_of(row)] for row in report["boxes"]])
    page.heading(f"By group, boxes of {size} mm")
    for name, groups in report["groups"].items():
        rows = [[f"{value} ({row['points']})", *cells_of(row)] for value, row in groups.items()]
        page.table([f"{name} (points)", *columns[1:]], rows)
    laid = ", ".join(f"{name} {count}" for name, count in report["laid"].items())
    page.text(
        f"How the finder laid the boxes of the series: {laid}. Where it is unsure, the head's outline lays the box."
    )
    for box, words in (("found", "the finder's box"), ("fixed", "the fixed box")):
        lost = [one for one in points if one.is_lost(box, SHOWN_AT)]
        page.heading(f"Lost by {words} of {size} mm: {len(lost)}")
        chosen = sorted(lost or points, key=lambda one, box=box: -one.reach(box))[:DRAWN]
        if not lost:
            page.text("None; these lie nearest to its walls.")
        elif len(lost) > len(chosen):
            page.text(f"The {len(chosen)} that lie farthest out of it.")
        page.figure(
            figure_of(chosen, found_of),
            caption="Three planes through each point (ring); the finder's box in blue, the fixed one dashed.",
        )
    page.write(path)


def cells_of(row: dict[str, Any]) -> list[object]:
    """A row of the table."""
    return [
        cell for box in COLOURS for cell in (row[box]["lost"], f"{row[box]['share']:.2%}", f"{row[box]['bound']:.2%}")
    ]


def figure_of(points: Sequence[Point], found_of: dict[str, Found]) -> Figure:
    """A row a point: its planes, with the boxes."""
    figure = Figure(figsize=(10.5, 2.9 * len(points)))
    for number, point in enumerate(points):
        case = point.case
        volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
        values, spacing_3 = volume.values(), np.array(case.spacing)
        low, high = ENHANCED_HU if case.unit == HU else np.percentile(values, [1, 99.7])
        centre_mm = {
            "found": np.array(found_of[case.scan_id].centre_mm),
            "fixed": np.array(fixed_centre_mm(case.spacing, case.foreground_box)),
        }
        at_mm = point.offsets["found"] + centre_mm["found"]
        at = np.clip(np.rint(at_mm / spacing_3).astype(int), 0, np.array(case.shape) - 1)
        for column, (dropped, kept, plane) in enumerate(PLANES):
            axes: Axes = figure.add_subplot(len(points), 3, 3 * number + column + 1)
            shown = np.take(values, at[dropped], axis=dropped).T
            ends = [((0 - 0.5) * spacing_3[k], (case.shape[k] - 0.5) * spacing_3[k]) for k in kept]
            axes.imshow(shown, origin="lower", extent=(*ends[0], *ends[1]), cmap="gray", vmin=low, vmax=high)
            for box, colour in COLOURS.items():
                corner = (centre_mm[box] - np.asarray(SHOWN_AT) / 2)[list(kept)]
                edges = [SHOWN_AT[k] for k in kept]
                style = "-" if box == "found" else "--"
                axes.add_patch(Rectangle(tuple(corner), *edges, fill=False, edgecolor=colour, linestyle=style, lw=1.6))
            axes.plot(*at_mm[list(kept)], "o", markersize=10, fillstyle="none", color="#ffb000", markeredgewidth=1.6)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.autoscale(tight=False)
            axes.set_aspect("equal")
            if column == 0:
                axes.set_title(
                    f"...{case.scan_id[-8:]} {case.modality}, {point.laid}: {point.label}", fontsize=8, loc="left"
                )
            else:
                axes.set_title(plane, fontsize=8)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
