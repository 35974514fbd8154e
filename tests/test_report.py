"""The report of a corpus: one file that needs no network, lazy pictures, and nothing in a manifest can run as code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harmonize import corpus as layout
from harmonize.cli import main
from harmonize.corpus import Corpus, journal
from harmonize.corpus.journal import Record
from harmonize.engine import duplicates
from harmonize.report import PICTURES_PER_CHUNK, write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SCANS, PICTURES = 150, PICTURES_PER_CHUNK + 3
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
OUTSIDE = re.compile(r"""(src|href)\s*=\s*["'`]?(?!["'`]?data:)[^"'` >]|url\(|@import|fetch\(|XMLHttpRequest""")


@pytest.fixture(scope="module")
def report(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a corpus whose scan 0 stands in many rows, whose one odd file is damaged, and where three were refused."""
    corpus = tmp_path_factory.mktemp("report") / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    first, *_, last = Corpus.open(corpus).scans.to_dict("records")
    rows = [first | {"scan_id": f"s{n}", "raw_hash": f"h{n}", "decisions": [HOSTILE]} for n in range(SCANS - 1)]
    same_group = {name: first[name] for name in ("source", "modality", "unit", "intensity_percentiles")}
    rows.append(last | same_group | {"raw_spacing": [1.0, 1.0, 9.0]})
    refused = [
        {"source": "tcia", "raw_hash": f"r{number}", "stage": "load", "reason": "localizer", "message": "a localizer"}
        for number in range(3)
    ]
    layout.write_manifest(corpus, rows, refused)
    (corpus / last["image_file_name"]).write_bytes(b"damaged")
    assert main(["report", str(corpus), "--workers", "1", "--thumbnails", str(PICTURES)]) == 0
    return corpus / "report" / "index.html"


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found, name
    return json.loads(found[1])


def test_every_scan_stands_in_the_page(report: Path) -> None:
    names = {row[0] for row in embedded(report.read_text(), "scan-rows")}
    assert len(names) == SCANS


def test_pictures_come_in_chunks_and_only_as_many_as_wanted(report: Path) -> None:
    page = report.read_text()
    chunks = embedded(page, "pictures-0"), embedded(page, "pictures-1")
    assert [len(chunk) for chunk in chunks] == [PICTURES_PER_CHUNK, PICTURES - PICTURES_PER_CHUNK]
    assert 'id="pictures-2"' not in page
    assert chunks[1][-1].startswith("UklGR")


def test_the_outlier_comes_first_and_says_why(report: Path) -> None:
    first, second, *_ = embedded(report.read_text(), "scan-rows")
    assert first[0] == "scan-5"
    assert first[9][0].startswith("slice spacing 9 mm")
    assert not second[9]


def test_a_scan_that_cannot_be_read_has_no_picture(report: Path) -> None:
    pictures = embedded(report.read_text(), "pictures-0")
    assert [bool(picture) for picture in pictures] == [False] + [True] * (PICTURES_PER_CHUNK - 1)


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = re.sub(r'<script type="application/json".*?</script>', "", report.read_text(), flags=re.DOTALL)
    page = page.replace("image.src = `data:", "")
    assert not OUTSIDE.search(page)


def test_refused_scans_stand_with_their_reasons(report: Path) -> None:
    assert "<td class=short>localizer</td><td class=short>a localizer</td><td class=number>3</td>" in report.read_text()


def test_duplicates_of_many_scans_are_one_row_of_the_table(tiny_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    records = [Record(source="tcia", raw_hash=f"{n}", row={"scan_id": f"1.2.{n}_0", "labels": None}) for n in range(4)]
    rejections = [duplicates.rejection(records[n + 1], records[n], duplicates.NOTHING) for n in range(3)]
    refused = [journal.rejected_row("tcia", f"{n}", rejection) for n, rejection in enumerate(rejections)]
    layout.write_manifest(tmp_path / "corpus", Corpus.open(tmp_path / "corpus").scans.to_dict("records"), refused)
    page = write_report(tmp_path / "corpus", thumbnails=0).read_text()
    assert "<td>the same voxels as scan ..., which is kept</td><td class=number>3</td>" in page


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_shows_one_page_of_scans_and_runs_nothing_of_the_manifest(report: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )  # fmt: skip
    assert done.stdout.count('class="card"') == 60
    assert done.stdout.count("data:image/webp;base64,UklGR") == 59
    assert f"1 to 60 of {SCANS} scans, page 1 of 3" in done.stdout
    assert "<title>Harmonized corpus" in done.stdout


def test_a_corpus_without_scans_still_has_a_report(tiny_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    layout.write_manifest(tmp_path / "corpus", [], [])
    page = write_report(tmp_path / "corpus", thumbnails=10).read_text()
    assert embedded(page, "scan-rows") == []
