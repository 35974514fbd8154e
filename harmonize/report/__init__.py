"""The report of a corpus: every scan with its picture, outliers first, intensities, geometry and what was rejected.

One HTML file, readable offline. The rows stand in it as JSON, and the pictures in chunks of JSON that the page parses
only when one of their scans is shown, so that ten thousand scans still open.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from harmonize.corpus import FILE_COLUMNS, Corpus, read_volume
from harmonize.files import room_in
from harmonize.page import Page
from harmonize.progress import Progress
from harmonize.report import charts, outliers
from harmonize.report.thumbnails import thumbnail

REPORT = "report/index.html"
PICTURES_PER_CHUNK = 120
_NAMED = re.compile(r"scan [\w.-]+(?=,)", re.ASCII)


def write_report(path: Path, *, thumbnails: int, workers: int = 1) -> Path:
    """Write a corpus's report into it.

    Args:
        path: The corpus.
        thumbnails: Pictures of at most so many scans, outliers first.
        workers: Threads that read volumes; decompressing leaves Python's lock.

    Returns:
        Path of the page.

    Raises:
        UserError: No corpus there, its tables cannot be read, or its disk is full.
    """
    corpus = Corpus.open(path)
    findings = outliers.find(corpus.scans)
    order = outliers.order(findings)
    scans = corpus.scans.iloc[order]
    rows = cast(list[dict[str, Any]], scans.to_dict("records"))
    pictures = _draw(path, rows[:thumbnails], workers)
    page = _page(corpus, rows, [findings[row] for row in order], pictures)
    with room_in(path):
        page.write(path / REPORT)
    return path / REPORT


def _draw(path: Path, rows: list[dict[str, Any]], workers: int) -> list[str]:
    """WebP pictures in base64, in the order of the rows; empty for a scan that cannot be read."""
    pictures = []
    with Progress("report", total=len(rows)) as progress, ThreadPoolExecutor(max(1, workers)) as threads:
        for picture in threads.map(partial(_picture, path), rows):
            pictures.append(picture)
            progress.advance()
    return pictures


def _picture(path: Path, row: dict[str, Any]) -> str:
    try:
        image, mask, brain = (
            None if row[name] is None else read_volume(path / row[name], shape=row["shape"]) for name in FILE_COLUMNS
        )
    except (OSError, ValueError):
        # `harmonize verify` names the fault; the report shows the scan without a picture.
        return ""
    assert image is not None
    drawn = thumbnail(
        image,
        mask,
        mask_kind=row["mask_kind"],
        unit=row["unit"],
        box=row["foreground_box"],
        percentiles=row["intensity_percentiles"],
        brain=brain,
    )
    return base64.b64encode(drawn).decode("ascii")


def _page(
    corpus: Corpus, rows: list[dict[str, Any]], findings: Sequence[outliers.Finding], pictures: Sequence[str]
) -> Page:
    page = Page(
        f"Harmonized corpus: {corpus.path.resolve().name}",
        lead="What harmonize made of the raw scans, what it rejected and why. The scans that differ most from the "
        "others of their source and modality come first.",
        style=_asset("report.css"),
    )
    flagged = sum(bool(finding.flags) for finding in findings)
    outlying = sum(finding.score > outliers.OUTLIER_Z for finding in findings)
    page.tiles(
        [
            (f"{len(rows):,}", "scans"),
            (f"{len({(row['source'], row['subject']) for row in rows}):,}", "subjects"),
            (f"{len(corpus.rejected):,}", "rejected"),
            (f"{outlying:,}", "outliers"),
            (f"{flagged:,}", "with a flag"),
            (" x ".join(f"{mm:g}" for mm in corpus.spacing), "mm voxels"),
        ]
    )
    page.table(["source", "modality", "unit", "scans"], _counts(rows))
    page.heading("Scans")
    page.text(
        "Axial, coronal and sagittal plane through the foreground box (amber), the patient's right on the left. "
        "The head mask is outlined, the brain too (green), what the source defaced is tinted red, vessels "
        "and a user's own labels are filled. "
        "CT from -160 to 240 HU, all else from its 1st to its 99.5th percentile."
    )
    page.markup("<div id=scans></div>")
    if rows:
        groups = charts.intensity_groups(corpus.scans)
        page.heading("Intensities")
        page.figure(
            charts.intensities(groups),
            caption="Histograms of the foreground on the target grid, before and after normalisation, drawn through "
            f"the {len(corpus.info['percentiles'])} percentiles that the manifest keeps. Thin: single scans; bold: "
            "their mean. CT is stored as it is measured, so both sides agree.",
        )
        page.heading("Geometry")
        page.figure(charts.geometry(corpus.scans), caption="Raw voxel sizes, and the harmonized volumes' sizes.")
    page.heading("Rejected")
    page.text(
        "docs/rejections.md says what each reason means and what to do about it; `harmonize locate SOURCE RAW CORPUS` "
        "names the raw files."
    )
    # Of duplicates each message names another scan, and the table has a row a message.
    messages = [_NAMED.sub("scan ...", message) for message in corpus.rejected["message"]]
    rejected = Counter(zip(corpus.rejected["source"], corpus.rejected["reason"], messages, strict=True))
    page.table(
        ["source", "reason", "message", "scans"],
        [(*group, count) for group, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))],
    )
    page.heading("Flags")
    page.table(["flag", "meaning", "scans"], _flag_rows(findings))
    page.markup(_json("flag-names", list(outliers.FLAGS)))
    page.markup(_json("scan-rows", [_compact(row, finding) for row, finding in zip(rows, findings, strict=True)]))
    for first in range(0, len(pictures), PICTURES_PER_CHUNK):
        chunk = list(pictures[first : first + PICTURES_PER_CHUNK])
        page.markup(_json(f"pictures-{first // PICTURES_PER_CHUNK}", chunk))
    page.markup(f"<script>const PICTURES_PER_CHUNK = {PICTURES_PER_CHUNK};\n{_asset('report.js')}</script>")
    return page


def _compact(row: dict[str, Any], finding: outliers.Finding) -> list[Any]:
    """One scan for the page, in the order that report.js reads."""
    names = list(outliers.FLAGS)
    person = " ".join(
        part for part in (row["sex"] or "", f"{row['age']:.0f} y" if row["age"] == row["age"] else "") if part
    )
    return [
        row["scan_id"],
        row["source"],
        row["modality"],
        row["subject"],
        person,
        " x ".join(f"{mm:.3g}" for mm in row["raw_spacing"]),
        " x ".join(str(size) for size in row["raw_shape"]),
        " x ".join(str(size) for size in row["shape"]),
        [names.index(flag) for flag in finding.flags],
        list(finding.why),
        list(row["decisions"]),
        row["image_file_name"],
    ]


def _counts(rows: Iterable[dict[str, Any]]) -> list[tuple[str, str, str, int]]:
    counts = Counter((row["source"], row["modality"], row["unit"]) for row in rows)
    return [(*group, count) for group, count in sorted(counts.items())]


def _flag_rows(findings: Iterable[outliers.Finding]) -> list[tuple[str, str, int]]:
    counts = Counter(flag for finding in findings for flag in finding.flags)
    return [(flag, meaning, counts[flag]) for flag, meaning in outliers.FLAGS.items() if counts[flag]]


def _json(name: str, value: object) -> str:
    # A literal `</script>` in a value would end the element.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(name, quote=True)}">{text}</script>'


def _asset(name: str) -> str:
    return files("harmonize.report").joinpath(name).read_text(encoding="utf-8")
